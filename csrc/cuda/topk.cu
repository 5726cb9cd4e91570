#include "aimfair/topk.h"

#include <algorithm>
#include <cmath>

#include "aimfair/mask.h"
#include "aimfair/random.h"
#include "cuda/launch.h"
#include "cuda/topk_keys.h"

// select finds the k best keys as on the CPU (cpu/topk.cpp), without the host in between:
//   1. A sample of the keys brackets the k-th best one.
//   2. One pass over the inputs writes the bits of the keys above the bracket and collects those inside: candidates.
//   3. The k-th key is found among the candidates, and the ties of every block are counted.
// The host then checks whether there was a NaN, whether the bracket held the k-th key, and whether there was room for
// its candidates. If so, the bits of the candidates are added in index order; if not, all keys are counted
// (topk_keys.h). The places of candidates in the arena depend on timing, but those of one mask block stay together and
// in order, and nothing else depends on their places.
//
// The other launchers are the parts of a selection over several processes, each of which sees only its own scores.

namespace aimfair::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kSmall = int64_t{1} << 18;      // elements; up to here sampling does not pay
constexpr int64_t kMaxSample = int64_t{1} << 19;  // keys
constexpr int kSampleLanes = 4;                   // keys taken from one sector of memory
constexpr int kSector = 8;                        // elements
constexpr int64_t kCandidateShare = 128;  // room for 1/128 of the elements: 6 bytes each, 1.2% of one fp32 input
constexpr int64_t kCandidateRoom = int64_t{1} << 15;  // and some more, for small inputs
constexpr int kStaged = 256;  // candidates that a warp collects before it reserves a place for them

// The tensor that owns an element. Every thread searches independently.
__device__ int64_t owner_of_element(const int64_t* first_elements, int64_t count, int64_t element) {
  int64_t low = 0, high = count;  // first_elements[low] <= element < first_elements[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (first_elements[middle] <= element ? low : high) = middle;
  }
  return low;
}

// Keys at evenly spaced places with a jitter that depends only on the place, a few from each sector.
__global__ void __launch_bounds__(kThreads)
    sample_keys(ScoreInputs inputs, const int64_t* first_elements, int64_t sectors, int64_t stride, uint32_t* keys) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, sector = i / kSampleLanes;
  if (sector >= sectors) return;
  const uint64_t random = splitmix64(static_cast<uint64_t>(sector));
  const int64_t element = sector * stride + static_cast<int64_t>((random & 0xffffffffu) * stride >> 32);
  const int64_t t = owner_of_element(first_elements, inputs.count, element);
  const ScoreTensor tensor = inputs.tensors[t];
  const int64_t at = (element - first_elements[t]) / kSector * kSector;
  const int64_t left = tensor.numel - at;
  // The first lane is random, so that no place in a sector is preferred. A short last sector of a tensor gives some
  // keys twice: the sample need not be exact.
  const auto lane = static_cast<int64_t>(random >> 32) + i % kSampleLanes * (kSector / kSampleLanes);
  const float score = score_at(tensor, inputs.spec, at + lane % kSector % (left < kSector ? left : kSector));
  keys[i] = unsigned_key(score, inputs.largest);
}

// Elements whose keys fall inside the bracket, and the place of the first one and their number for every mask block.
struct Candidates {
  int64_t capacity;
  uint32_t* keys;
  uint16_t* places;  // in the mask block
  int64_t* first;
  uint16_t* size;
};

// Staging area for candidates in shared memory, a row for each warp, so that not every mask block reserves a place.
struct Stage {
  uint32_t keys[kWarps][kStaged];
  uint16_t places[kWarps][kStaged];
};

// What a warp has staged. Each lane keeps one of the mask blocks.
struct Staged {
  int size = 0, blocks = 0;
  int64_t block = 0;  // of the lane
  int offset = 0;     // of its first candidate in the row
};

// Reserves a place for `n` candidates of a warp; -1 if there is no room.
__device__ __forceinline__ int64_t reserve(const Candidates& found, SelectState* state, int n) {
  Count place = 0;
  if (lane_id() == 0) place = atomicAdd(&state->used, static_cast<Count>(n));
  place = __shfl_sync(kAllLanes, place, 0);
  return place + static_cast<Count>(n) <= static_cast<Count>(found.capacity) ? static_cast<int64_t>(place) : -1;
}

// False if there was no room.
__device__ __forceinline__ bool put_away(const Stage& stage, Staged& staged, const Candidates& found,
                                         SelectState* state) {
  if (staged.blocks == 0) return true;
  const int64_t place = reserve(found, state, staged.size);
  __syncwarp();  // all lanes have written
  if (place >= 0) {
    if (lane_id() < staged.blocks) found.first[staged.block] = place + staged.offset;
    for (int i = lane_id(); i < staged.size; i += kWarp) {
      found.keys[place + i] = stage.keys[warp_id()][i];
      found.places[place + i] = stage.places[warp_id()][i];
    }
  }
  __syncwarp();  // all lanes have read
  staged.size = staged.blocks = 0;
  return place >= 0;
}

// The one pass over the inputs: bits of what is above the bracket, and the candidates. The last thread block sets up
// the search among them.
template <int kTerm, int kDivisor>
__global__ void __launch_bounds__(kThreads, 3)
    collect(ScoreInputs inputs, int64_t k, Candidates found, uint32_t* bits, SelectState* state) {
  __shared__ Stage stage;
  Staged staged;
  const uint32_t low = state->bracket[0].first, high = state->bracket[1].first, width = high - low;
  int64_t above_bracket = 0;
  for (int64_t at = int64_t{blockIdx.x} * kWarps + warp_id(); at < inputs.blocks; at += int64_t{gridDim.x} * kWarps) {
    const ScoreBlock block = score_block(inputs, at);
    uint32_t above = 0, inside = 0;
    bool nan = false;
    for_each_group<kTerm, kDivisor>(inputs.spec, block, [&](int group, const Four& scores) {
      uint32_t above_four = 0, inside_four = 0;
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const uint32_t key = unsigned_key(scores.v[e], inputs.largest);
        nan |= scores.v[e] != scores.v[e];
        above_four |= static_cast<uint32_t>(key > high) << e;
        inside_four |= static_cast<uint32_t>(key - low <= width) << e;
      }
      above |= above_four << (4 * group);
      inside |= inside_four << (4 * group);
    });
    if (__any_sync(kAllLanes, nan) && lane_id() == 0) {
      atomicMin(&state->nan_tensor, static_cast<unsigned>(block.index));
    }
    above = words_of(above) & bits_inside(block.size);
    inside = words_of(inside) & bits_inside(block.size);
    bits[at * kWordsPerBlock + lane_id()] = above;
    above_bracket += __popc(above);
    int size, place = exclusive_sum(__popc(inside), &size);
    if (lane_id() == 0) found.size[at] = static_cast<uint16_t>(size);
    if (size == 0) continue;

    uint32_t* keys;
    uint16_t* places;
    if (size <= kStaged) {
      if ((staged.size + size > kStaged || staged.blocks == kWarp) && !put_away(stage, staged, found, state)) break;
      keys = stage.keys[warp_id()] + staged.size;
      places = stage.places[warp_id()] + staged.size;
      if (lane_id() == staged.blocks) {
        staged.block = at;
        staged.offset = staged.size;
      }
      staged.size += size;
      staged.blocks++;
    } else {
      const int64_t first = reserve(found, state, size);
      if (first < 0) break;
      keys = found.keys + first;
      places = found.places + first;
      if (lane_id() == 0) found.first[at] = first;
    }
    // Recomputing these few keys from cached inputs costs less than keeping all keys.
    for (; inside != 0; inside &= inside - 1) {
      const int element = lane_id() * 32 + __ffs(static_cast<int>(inside)) - 1;
      keys[place] = unsigned_key(score_at(block.tensor, inputs.spec, block.begin + element), inputs.largest);
      places[place++] = static_cast<uint16_t>(element);
    }
  }
  put_away(stage, staged, found, state);
  above_bracket = block_sum<kThreads>(above_bracket);
  if (threadIdx.x == 0) atomicAdd(&state->above, static_cast<Count>(above_bracket));
  if (!last_to_arrive(&state->arrived, gridDim.x) || threadIdx.x != 0) return;
  const int64_t wanted = k - static_cast<int64_t>(state->above);
  const int bits_apart = low == high ? 0 : 32 - __clz(static_cast<int>(low ^ high));
  const auto first = static_cast<uint32_t>(static_cast<uint64_t>(low) >> bits_apart << bits_apart);
  state->threshold = wanted > 0 ? Search{first, bits_apart, wanted} : Search{0xffffffffu, 0, 0};  // no key is that one
}

// Eight lanes read the candidates of one mask block.
constexpr int kShare = 8;
constexpr int kBlocksPerWarp = kWarp / kShare;
constexpr int kBlocksPerThreadBlock = kWarps * kBlocksPerWarp;

// Counts the candidates of every mask block that are the k-th best key.
__global__ void __launch_bounds__(kThreads)
    count_ties(Candidates found, int64_t blocks, const SelectState* state, int64_t* equal) {
  const bool complete = state->used <= static_cast<Count>(found.capacity);  // otherwise some were not written
  const uint32_t threshold = state->threshold.first;
  const int64_t stride = int64_t{gridDim.x} * kBlocksPerThreadBlock;
  for (int64_t begin = int64_t{blockIdx.x} * kBlocksPerThreadBlock; begin < blocks; begin += stride) {
    const int64_t block = begin + threadIdx.x / kShare;
    int same = 0;
    if (block < blocks && complete) {
      const int size = found.size[block];
      const int64_t first = size > 0 ? found.first[block] : 0;
      for (int i = lane_id() % kShare; i < size; i += kShare) same += found.keys[first + i] == threshold;
    }
#pragma unroll
    for (int distance = kShare / 2; distance > 0; distance /= 2) same += __shfl_xor_sync(kAllLanes, same, distance);
    if (block < blocks && lane_id() % kShare == 0) equal[block] = same;
  }
}

// Writes the bits above the bracket and those of the chosen candidates to the mask of the caller. `equal_until` is the
// prefix sum of the counts of count_ties.
__global__ void __launch_bounds__(kThreads) choose(Candidates found, int64_t blocks, const SelectState* state,
                                                   const int64_t* equal_until, const uint32_t* above, uint32_t* bits) {
  __shared__ uint32_t chosen[kWarps][kBlocksPerWarp][kWordsPerBlock];
  const Search threshold = state->threshold;
  auto& own = chosen[warp_id()];
  const int64_t stride = int64_t{gridDim.x} * kBlocksPerThreadBlock;
  for (int64_t begin = int64_t{blockIdx.x} * kBlocksPerThreadBlock + warp_id() * kBlocksPerWarp; begin < blocks;
       begin += stride) {
#pragma unroll
    for (int b = 0; b < kBlocksPerWarp; b++) {
      own[b][lane_id()] = begin + b < blocks ? above[(begin + b) * kWordsPerBlock + lane_id()] : 0;
    }
    __syncwarp();
    const int64_t block = begin + lane_id() / kShare;
    const int size = block < blocks ? found.size[block] : 0;
    if (size > 0) {
      uint32_t* words = own[lane_id() / kShare];
      const int64_t first = found.first[block], before = block == 0 ? 0 : equal_until[block - 1];
      const int64_t equal = equal_until[block] - before, ties = threshold.k - before;
      for (int i = lane_id() % kShare; i < size; i += kShare) {
        const uint32_t key = found.keys[first + i];
        if (key > threshold.first || (key == threshold.first && equal <= ties)) {
          const int place = found.places[first + i];
          atomicOr(words + place / 32, 1u << (place % 32));
        }
      }
      // At most one block has more ties than are left.
      if (0 < ties && ties < equal && lane_id() % kShare == 0) {
        int64_t left = ties;
        for (int i = 0; left > 0; i++) {
          if (found.keys[first + i] != threshold.first) continue;
          const int place = found.places[first + i];
          atomicOr(words + place / 32, 1u << (place % 32));
          left--;
        }
      }
    }
    __syncwarp();
#pragma unroll
    for (int b = 0; b < kBlocksPerWarp; b++) {
      if (begin + b < blocks) bits[(begin + b) * kWordsPerBlock + lane_id()] = own[b][lane_id()];
    }
    __syncwarp();  // all lanes have read the words
  }
}

// Sets up the searches in the sample for two keys between which the k-th best one very likely lies: six standard
// deviations of a sample quantile to either side, or as much as there is room for among the candidates.
void enter_bracket(int64_t k, int64_t total, int64_t sample, int64_t capacity, Search (&bracket)[2]) {
  const auto size = static_cast<double>(sample), share = static_cast<double>(k) / static_cast<double>(total);
  const double room = 0.45 * static_cast<double>(capacity) / static_cast<double>(total) * size;
  const double width = std::min(6.0 * std::sqrt(share * (1 - share) * size) + 2, room);
  const double last = std::ceil(share * size + width), first = std::floor(share * size - width);  // from the best
  bracket[0] = last > size ? Search{0, 0, 0} : Search{0, 32, static_cast<int64_t>(last)};
  bracket[1] = first < 1 ? Search{0xffffffffu, 0, 0} : Search{0, 32, static_cast<int64_t>(first)};
}

// Steps 1 to 3 above, and the mask. *decided is false if the bracket missed or there were too many candidates; then
// nothing was written.
cudaError_t select_by_bracket(const Selection& s, int64_t k, uint32_t* bits, int64_t* rank, const Allocate& allocate,
                              SelectResult* result, bool* decided) {
  const int64_t blocks = s.blocks(), total = s.total(), sectors = std::min(kMaxSample, total / 32) / kSampleLanes;
  const int64_t sample = sectors * kSampleLanes;
  Candidates found;
  found.capacity = total / kCandidateShare + kCandidateRoom;
  found.keys = s.allocate<uint32_t>(found.capacity);
  found.places = s.allocate<uint16_t>(found.capacity);
  found.first = s.allocate<int64_t>(blocks);
  found.size = s.allocate<uint16_t>(blocks);
  if (!found.keys || !found.places || !found.first || !found.size) return cudaErrorMemoryAllocation;
  uint32_t* sampled = s.bits();  // the sample is not larger than the bits, which are written when it is used up

  SelectState state{{}, {}, 0, 0, kNoTensor, 0};
  enter_bracket(k, total, sample, found.capacity, state.bracket);
  AIMFAIR_TRY(s.reset(state));
  AIMFAIR_TRY(launch(sample_keys, (sample + kThreads - 1) / kThreads, kThreads, s.stream(), s.inputs(),
                     s.first_elements(), sectors, total / sectors, sampled));
  SelectState* on_device = s.state();
  AIMFAIR_TRY(
      search_keys(sampled, sample, nullptr, on_device->bracket, 2, s.histograms(), &on_device->arrived, s.stream()));
  AIMFAIR_TRY(with_input_counts(s.inputs().spec, [&](auto term, auto divisor) {
    return launch_persistent(collect<term.value, divisor.value>, (blocks + kWarps - 1) / kWarps, kThreads, s.stream(),
                             s.inputs(), k, found, s.bits(), on_device);
  }));
  AIMFAIR_TRY(search_keys(found.keys, found.capacity, &on_device->used, &on_device->threshold, 1, s.histograms(),
                          &on_device->arrived, s.stream()));
  const int64_t work = (blocks + kBlocksPerThreadBlock - 1) / kBlocksPerThreadBlock;
  AIMFAIR_TRY(launch_persistent(count_ties, work, kThreads, s.stream(), found, blocks, on_device, s.per_block()));
  AIMFAIR_TRY(inclusive_scan(s.per_block(), blocks, allocate, s.stream()));
  AIMFAIR_TRY(s.read(&state));

  const auto wanted = k - static_cast<int64_t>(state.above);
  *decided = state.used <= static_cast<Count>(found.capacity);
  if (*decided && state.nan_tensor != kNoTensor) {
    *result = {state.nan_tensor};
    return cudaSuccess;
  }
  *decided = *decided && wanted >= 0 && wanted <= static_cast<int64_t>(state.used);
  if (!*decided) return cudaSuccess;
  AIMFAIR_TRY(
      launch_persistent(choose, work, kThreads, s.stream(), found, blocks, on_device, s.per_block(), s.bits(), bits));
  return static_cast<cudaError_t>(cuda::rank(bits, blocks, rank, allocate, s.stream()));
}

// counts[t] += the counts of the blocks of tensor t; `until` is the prefix sum of the counts of all blocks.
__global__ void __launch_bounds__(kThreads)
    add_per_tensor(const int64_t* until, const int64_t* first_blocks, int64_t count, int64_t* counts) {
  const int64_t t = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (t >= count) return;
  const int64_t begin = first_blocks[t], end = first_blocks[t + 1];
  if (begin < end) counts[t] += until[end - 1] - (begin == 0 ? 0 : until[begin - 1]);
}

}  // namespace

int select(const ScoreTensor* tensors, int64_t count, const Score& spec, int64_t k, bool largest, uint32_t* bits,
           int64_t* rank, const Allocate& allocate, void* stream, SelectResult* result) {
  *result = {};
  Selection s(tensors, count, spec, largest, allocate, stream);
  if (s.blocks() == 0) return cuda::rank(bits, 0, rank, allocate, stream);
  AIMFAIR_TRY(s.begin());
  AIMFAIR_TRY(s.begin_mask());
  const bool counted = k != 0 && k != s.total();
  if (counted && s.total() > kSmall) {
    bool decided = false;
    AIMFAIR_TRY(select_by_bracket(s, k, bits, rank, allocate, result, &decided));
    if (decided) return cudaSuccess;
  }
  // No score has the greatest key or the key 0.
  const Search threshold = counted ? Search{0, 32, k} : k == 0 ? Search{0xffffffffu, 0, 0} : Search{0, 0, 0};
  AIMFAIR_TRY(s.reset({{}, threshold, 0, 0, kNoTensor, 0}));
  if (counted) AIMFAIR_TRY(s.search_all());
  return s.write_mask(nullptr, bits, rank, result);
}

int count_keys(const ScoreTensor* tensors, int64_t count, const Score& spec, uint32_t first, int bits, bool largest,
               int64_t* counts, const Allocate& allocate, void* stream) {
  Selection s(tensors, count, spec, largest, allocate, stream);
  if (s.blocks() == 0) return cudaSuccess;
  AIMFAIR_TRY(s.begin());
  AIMFAIR_TRY(s.reset({{}, {first, bits, 0}, 0, 0, kNoTensor, 0}));
  return s.count_keys(counts);
}

int count_equal(const ScoreTensor* tensors, int64_t count, const Score& spec, uint32_t key, bool largest,
                int64_t* counts, const Allocate& allocate, void* stream) {
  Selection s(tensors, count, spec, largest, allocate, stream);
  if (s.blocks() == 0) return cudaSuccess;
  auto* equal = s.allocate<int64_t>(s.blocks());
  if (!equal) return cudaErrorMemoryAllocation;
  AIMFAIR_TRY(s.begin());
  AIMFAIR_TRY(s.reset({{}, {key, 0, 0}, 0, 0, kNoTensor, 0}));
  AIMFAIR_TRY(s.compare(nullptr, equal));
  return launch(add_per_tensor, (count + kThreads - 1) / kThreads, kThreads, stream, equal, s.inputs().first_blocks,
                count, counts);
}

int select_above(const ScoreTensor* tensors, int64_t count, const Score& spec, uint32_t key, const int64_t* ties,
                 bool largest, uint32_t* bits, int64_t* rank, const Allocate& allocate, void* stream,
                 SelectResult* result) {
  *result = {};
  Selection s(tensors, count, spec, largest, allocate, stream);
  if (s.blocks() == 0) return cuda::rank(bits, 0, rank, allocate, stream);
  AIMFAIR_TRY(s.begin());
  AIMFAIR_TRY(s.begin_mask());
  AIMFAIR_TRY(s.reset({{}, {key, 0, 0}, 0, 0, kNoTensor, 0}));
  return s.write_mask(ties, bits, rank, result);
}

}  // namespace aimfair::cuda
