#include "cuda/topk_select.h"

// The pass of select over the inputs. Scores are compared with both ends of the bracket; only the few inside become
// keys. Where the sample holds many keys that equal an end, the elements that equal it are counted for every mask block
// instead of collected, so that even a constant tensor takes one pass.

namespace aimfair::cuda {
namespace {

constexpr int kThreads = kSearchThreads;
constexpr int kWarps = kThreads / kWarp;
constexpr int kStaged = 256;             // candidates that a warp collects before it reserves a place for them
constexpr int64_t kTiedShare = 1 << 11;  // an end of the bracket with more than 1 of so many keys of the sample is tied

// Staging area for candidates in shared memory, a row for each warp, so that not every mask block reserves a place.
struct Row {
  int size, blocks;  // candidates, and the mask blocks that have them
  uint32_t keys[kStaged];
  uint16_t places[kStaged];
  int64_t block[kWarp];
  uint16_t first[kWarp];  // candidate of that block
};

// The bracket, and what the looks at a mask block tell. The second and third, which find the inputs in the cache, take
// out what equals an end. In shared memory, because there are no registers for what is seldom used.
struct Looks {
  uint32_t low, high;
  int count;
  int better[kThreads];       // of each lane
  uint32_t inside[kThreads];  // the lane's word
  unsigned ends[kThreads];    // at_low, and at_high in the upper half

  // The range of the candidates.
  __device__ Search candidates() const { return {low, low == high ? 0 : 32 - __clz(static_cast<int>(high - low)), 0}; }
};

// Reserves a place for `n` candidates of a warp; -1 if there is no room.
__device__ __forceinline__ int64_t reserve(const Candidates& found, SelectState* state, int n) {
  Count place = 0;
  if (lane_id() == 0) place = atomicAdd(&state->used, static_cast<Count>(n));
  place = __shfl_sync(kAllLanes, place, 0);
  return place + static_cast<Count>(n) <= static_cast<Count>(found.capacity) ? static_cast<int64_t>(place) : -1;
}

// Empties the row of a warp; false if there was no room.
__device__ __forceinline__ bool put_away(Row& row, const Candidates& found, SelectState* state) {
  __syncwarp();  // all lanes have written
  const int size = row.size, blocks = row.blocks;
  if (blocks == 0) return true;
  const int64_t place = reserve(found, state, size);
  if (place >= 0) {
    if (lane_id() < blocks) found.first[row.block[lane_id()]] = static_cast<uint32_t>(place + row.first[lane_id()]);
    for (int i = lane_id(); i < size; i += kWarp) {
      found.keys[place + i] = row.keys[i];
      found.places[place + i] = row.places[i];
    }
  }
  __syncwarp();  // all lanes have read
  if (lane_id() == 0) row.size = row.blocks = 0;
  __syncwarp();
  return place >= 0;
}

// Once everything is counted: where to search for the k-th best key. `candidates` is the range of the candidates.
__device__ __forceinline__ void decide(SelectState* state, int64_t k, int64_t capacity, const Search& candidates,
                                       uint32_t high) {
  const auto at_low = static_cast<int64_t>(state->at_low), at_high = static_cast<int64_t>(state->at_high);
  const auto used = static_cast<int64_t>(state->used);
  const int64_t wanted = k - static_cast<int64_t>(state->above);
  const bool held = used <= capacity && 0 <= wanted && wanted <= at_high + used + at_low;
  state->missed = !held && state->nan_tensor == kNoTensor;
  state->bracket[0].first = candidates.first;
  state->bracket[1].first = high;
  if (state->missed) {
    state->threshold = {0, 32, k};
    state->above = state->at_low = state->at_high = state->used = 0;
  } else if (!held || wanted == 0) {
    state->threshold = {0xffffffffu, 0, 0};  // no key is that one
  } else if (wanted <= at_high) {
    state->threshold = {high, 0, wanted};
  } else if (wanted <= at_high + used) {
    state->threshold = {candidates.first, candidates.bits, wanted - at_high};
  } else {
    state->threshold = {candidates.first, 0, wanted - at_high - used};
  }
}

template <int kTerm, int kDivisor>
__global__ void __launch_bounds__(kThreads, 3)
    collect_candidates(ScoreInputs inputs, int64_t k, Candidates found, uint32_t* above, SelectState* state,
                       Count* histogram, int64_t tied, bool exact) {
  if (exact && !state->missed) return;
  __shared__ Row rows[kWarps];
  __shared__ Looks looks;
  __shared__ unsigned bins[kBins], sums[3];  // above, at_low, at_high
  zero_bins(bins);
  Row& row = rows[warp_id()];
  if (lane_id() == 0) row.size = row.blocks = 0;
  if (threadIdx.x < 3) sums[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    looks.low = key_of_a_score((exact ? state->threshold : state->bracket[0]).first, inputs.largest);
    looks.high = key_of_a_score((exact ? state->threshold : state->bracket[1]).first, inputs.largest);
    looks.count = looks.low != looks.high && (state->bracket[0].keys > tied || state->bracket[1].keys > tied) ? 3 : 1;
  }
  __syncthreads();

  for (int64_t at = int64_t{blockIdx.x} * kWarps + warp_id(); at < inputs.blocks; at += int64_t{gridDim.x} * kWarps) {
    const ScoreBlock block = score_block(inputs, at);
#pragma unroll 1
    for (int look = 0; look < looks.count; look++) {
      const ScoreRange range(look == 2 ? looks.high : looks.low, look == 1 ? looks.low : looks.high, inputs.largest);
      const Compared compared = compare_block<kTerm, kDivisor>(inputs, block, range);
      if (look == 0) {
        if (__any_sync(kAllLanes, compared.nan) && lane_id() == 0) {
          atomicMin(&state->nan_tensor, static_cast<unsigned>(block.index));
        }
        above[at * kWordsPerBlock + lane_id()] = compared.better;
        looks.better[threadIdx.x] = __popc(compared.better);
        looks.inside[threadIdx.x] = compared.inside;
        looks.ends[threadIdx.x] = 0;
        if (!__any_sync(kAllLanes, compared.inside != 0)) break;
      } else {
        looks.inside[threadIdx.x] &= ~compared.inside;
        looks.ends[threadIdx.x] += static_cast<unsigned>(__popc(compared.inside)) << (16 * (look - 1));
      }
    }
    uint32_t inside = looks.inside[threadIdx.x];
    unsigned ends = looks.ends[threadIdx.x];
    if (looks.low == looks.high) {
      ends = __popc(inside);
      inside = 0;
    }
    int sizes, place = exclusive_sum(__popc(inside) | looks.better[threadIdx.x] << 16, &sizes) & 0xffff;
    const int size = sizes & 0xffff;
    if (looks.low == looks.high || looks.count > 1) ends = warp_sum(ends);
    if (lane_id() == 0) {
      found.counts[at] = {static_cast<uint16_t>(sizes >> 16), static_cast<uint16_t>(ends & 0xffff),
                          static_cast<uint16_t>(ends >> 16), static_cast<uint16_t>(size)};
      atomicAdd(&sums[0], static_cast<unsigned>(sizes >> 16));
      if (ends != 0) {
        atomicAdd(&sums[1], ends & 0xffff);
        atomicAdd(&sums[2], ends >> 16);
      }
    }
    if (size == 0) continue;

    uint32_t* keys;
    uint16_t* places;
    if (size <= kStaged) {
      if ((row.size + size > kStaged || row.blocks == kWarp) && !put_away(row, found, state)) break;
      keys = row.keys + row.size;
      places = row.places + row.size;
      __syncwarp();  // all lanes have read the sizes
      if (lane_id() == 0) {
        row.block[row.blocks] = at;
        row.first[row.blocks] = static_cast<uint16_t>(row.size);
        row.size += size;
        row.blocks++;
      }
      __syncwarp();
    } else {
      const int64_t first = reserve(found, state, size);
      if (first < 0) break;
      keys = found.keys + first;
      places = found.places + first;
      if (lane_id() == 0) found.first[at] = static_cast<uint32_t>(first);
    }
    // Recomputing these few keys from cached inputs costs less than keeping all keys.
    const ScoreTensor& tensor = inputs.tensors[block.index];
    for (; inside != 0; inside &= inside - 1) {
      const int element = lane_id() * 32 + __ffs(static_cast<int>(inside)) - 1;
      const uint32_t key = unsigned_key(score_at(tensor, inputs.spec, block.begin + element), inputs.largest);
      atomicAdd(&bins[bin_of(key, looks.candidates())], 1u);
      keys[place] = key;
      places[place++] = static_cast<uint16_t>(element);
    }
  }
  put_away(row, found, state);

  __syncthreads();
  if (threadIdx.x == 0) {
    atomicAdd(&state->above, Count{sums[0]});
    atomicAdd(&state->at_low, Count{sums[1]});
    atomicAdd(&state->at_high, Count{sums[2]});
  }
  add_bins(bins, histogram);
  if (!last_to_arrive(&state->meeting.arrived, gridDim.x)) return;
  if (threadIdx.x == 0) decide(state, k, found.capacity, looks.candidates(), looks.high);
  __syncthreads();
  if (!state->missed && state->threshold.bits != 0) narrow(&state->threshold, histogram);
  zero_bins(histogram);
}

}  // namespace

cudaError_t collect(const Selection& s, int64_t k, const Candidates& found, uint32_t* above, bool exact) {
  return with_input_counts(s.inputs().spec, [&](auto term, auto divisor) {
    return launch_persistent(collect_candidates<term.value, divisor.value>, (s.blocks() + kWarps - 1) / kWarps,
                             kThreads, s.stream(), s.inputs(), k, found, above, s.state(), s.histograms(),
                             sample_size(s.total()) / kTiedShare, exact);
  });
}

}  // namespace aimfair::cuda
