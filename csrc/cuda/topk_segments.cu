#include <cuda_runtime.h>

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "aimfair/mask.h"
#include "aimfair/topk.h"
#include "cuda/launch.h"
#include "cuda/topk_keys.h"

// select in every segment by itself. The number of launches does not depend on them, but for the list:
//   1. A thread block selects a segment of up to kShort elements, of one tensor, or a tile of tiny ones. Its search is
//      that of topk_search.h within the thread block; the keys are in shared memory, or computed again in every round
//      where they do not fit.
//   2. Longer segments, and those of several tensors, are cut into pieces of one tensor each. Thread blocks take equal
//      runs of the mask blocks of all pieces and count keys into one histogram per segment; they wait for each other,
//      narrow the ranges of all segments, and go on, as in topk_keys.cu.
//   3. The keys of the pieces are compared with the thresholds of their segments, and the first of those that equal a
//      threshold are added.
// Bits are set in zeroed scratch memory, in words that neighbouring segments share by atomics, and copied to the
// caller's mask once the host has read that no score is NaN.

namespace aimfair::cuda {
namespace {

constexpr int kThreads = kSearchThreads;
constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kShort = int64_t{1} << 18;  // elements; a histogram takes 1.6% of a longer segment of one input
constexpr int kStored = 8192;                 // keys in shared memory
constexpr int kTiny = 64;                     // elements; up to here all pairs are compared
constexpr int64_t kTile = 4 * kBlock;         // elements of tiny segments that a thread block takes at a time

__device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ bool is_nan(float x) { return x != x; }

// What the kernels read and write besides the tables.
struct SegmentState {
  Score spec;
  bool largest;
  unsigned* nan_tensor;
  uint32_t* bits;
};

// The keys of four elements.
struct FourKeys {
  uint32_t v[4];
};

// Keys of the elements `at`, `at` + stride, ... that are below `end`; 0, which no score has, for the others.
__device__ __forceinline__ FourKeys keys_at(const ScoreTensor& tensor, const SegmentState& state, int64_t at,
                                            int64_t stride, int64_t end, bool* nan) {
  const Four scores = score_of<Four>(tensor, state.spec, [&](const float* from) {
    Four x;
#pragma unroll
    for (int j = 0; j < 4; j++) x.v[j] = at + j * stride < end ? __ldg(from + at + j * stride) : 0.0f;
    return x;
  });
  FourKeys keys;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const bool inside = at + j * stride < end;
    *nan |= inside && is_nan(scores.v[j]);
    keys.v[j] = inside ? unsigned_key(scores.v[j], state.largest) : 0;
  }
  return keys;
}

// Sets bits of scratch memory: the word's first bit is bit `at`.
__device__ __forceinline__ void set_bits(uint32_t* bits, int64_t at, uint32_t word) {
  const int shift = static_cast<int>(at % 32);
  const uint32_t low = word << shift, high = shift == 0 ? 0 : word >> (32 - shift);
  if (low != 0) atomicOr(bits + at / 32, low);
  if (high != 0) atomicOr(bits + at / 32 + 1, high);
}

// Adds to the bins of a thread block; -1 for none. All lanes must call: many equal keys would contend for one bin.
__device__ __forceinline__ void add_to_bin(unsigned* bins, int bin) {
  const int first = __shfl_sync(kAllLanes, bin, 0);
  if (__all_sync(kAllLanes, bin == first)) {
    if (lane_id() == 0 && first >= 0) atomicAdd(&bins[first], unsigned{kWarp});
  } else if (bin >= 0) {
    atomicAdd(&bins[bin], 1u);
  }
}

// Where the search for the k best of `keys` keys begins. No score has the greatest key or the key 0.
__host__ __device__ __forceinline__ Search search_for(int64_t k, int64_t keys) {
  if (k == 0) return {0xffffffffu, 0, 0};
  if (k == keys) return {0, 0, k};
  return {0, 32, k};
}

// -- short segments ---------------------------------------------------------------------------------------------------

// A tensor and its short segments.
struct ShortTensor {
  ScoreTensor inputs;
  int64_t index;      // of the tensor in the list
  int64_t first_bit;  // in the mask
  int64_t units, length, k;
  int64_t units_per_tile;
};

// Units [first, end) of up to kTiny elements, which fill whole words. Returns whether a score is NaN.
__device__ __forceinline__ bool select_tiny(const ShortTensor& tensor, const SegmentState& state, int64_t first,
                                            int64_t end, uint32_t* keys) {
  const int64_t begin = first * tensor.length;
  const int n = static_cast<int>((end - first) * tensor.length), length = static_cast<int>(tensor.length);
  bool nan = false;
  for (int i = thread(); i < n; i += 4 * kThreads) {
    const FourKeys four = keys_at(tensor.inputs, state, begin + i, kThreads, begin + n, &nan);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (i + j * kThreads < n) keys[i + j * kThreads] = four.v[j];
    }
  }
  __syncthreads();  // all keys are there
  uint32_t* words = state.bits + (tensor.first_bit + begin) / 32;
  for (int i = thread(); i - lane_id() < n; i += kThreads) {
    bool best = false;
    if (i < n) {
      const uint32_t own = keys[i];
      const int unit = i / length * length;
      int before = 0;
      for (int j = unit; j < unit + length; j++) before += keys[j] > own || (keys[j] == own && j < i);
      best = before < tensor.k;
    }
    const unsigned word = __ballot_sync(kAllLanes, best);
    if (lane_id() == 0) words[i / 32] = word;
  }
  return nan;
}

// One unit of up to kShort elements. Returns whether a score is NaN.
__device__ __forceinline__ bool select_short(const ShortTensor& tensor, const SegmentState& state, int64_t unit,
                                             uint32_t* stored, unsigned* bins, Search* search) {
  const int64_t begin = unit * tensor.length;
  const int length = static_cast<int>(tensor.length);
  const bool kept = length <= kStored;
  bool nan = false;
  if (kept) {
    for (int i = thread(); i < length; i += 4 * kThreads) {
      const FourKeys four = keys_at(tensor.inputs, state, begin + i, kThreads, begin + length, &nan);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        if (i + j * kThreads < length) stored[i + j * kThreads] = four.v[j];
      }
    }
  }
  // The keys of elements i, i + 32, ... of the unit, and 0 past its end.
  const auto keys_of = [&](int i) {
    if (!kept) return keys_at(tensor.inputs, state, begin + i, kWarp, begin + length, &nan);
    FourKeys four;
#pragma unroll
    for (int j = 0; j < 4; j++) four.v[j] = i + j * kWarp < length ? stored[i + j * kWarp] : 0;
    return four;
  };
  const int of_thread = warp_id() * 4 * kWarp + lane_id();

  if (thread() == 0) *search = search_for(tensor.k, length);
  __syncthreads();  // the keys and the search are there
  for (int round = 0; round < kRounds && search->bits > 0; round++) {
    const Search range = *search;
    zero_bins(bins);
    __syncthreads();
    for (int first = 0; first < length; first += 4 * kThreads) {
      const FourKeys four = keys_of(first + of_thread);
#pragma unroll
      for (int j = 0; j < 4; j++) add_to_bin(bins, four.v[j] == 0 ? -1 : bin_of(four.v[j], range));
    }
    __syncthreads();
    narrow(search, bins);
    __syncthreads();  // the range is narrower
  }

  const uint32_t threshold = search->first;
  const int ties = static_cast<int>(search->k);
  const bool all_ties = search->keys <= search->k;
  int equal_before = 0;
  for (int first = 0; first < length; first += 4 * kThreads) {
    const FourKeys four = keys_of(first + of_thread);
    unsigned better[4], equal[4];
    int own_equal = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      better[j] = __ballot_sync(kAllLanes, four.v[j] > threshold);
      equal[j] = __ballot_sync(kAllLanes, four.v[j] == threshold && four.v[j] != 0);
      own_equal += __popc(equal[j]);
    }
    int left = kWarp * 4;  // of the ties, for the words of this warp
    if (!all_ties) {
      int all_equal;
      const int until = block_exclusive_sum<kThreads>(lane_id() == 0 ? own_equal : 0, &all_equal);
      left = ties - equal_before - __shfl_sync(kAllLanes, until, 0);
      equal_before += all_equal;
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
      unsigned taken = equal[j];
      if (lane_id() == 0) {
        while (__popc(taken) > left && taken != 0) taken &= ~(0x80000000u >> __clz(static_cast<int>(taken)));
        left -= __popc(equal[j]);
        const int64_t at = first + warp_id() * 4 * kWarp + j * kWarp;
        set_bits(state.bits, tensor.first_bit + begin + at, better[j] | taken);
      }
    }
  }
  __syncthreads();  // all threads have read the search
  return nan;
}

__global__ void __launch_bounds__(kThreads, 2)
    select_short_segments(const ShortTensor* tensors, const int64_t* first_tiles, int64_t count, int64_t tiles,
                          SegmentState state) {
  __shared__ uint32_t keys[kStored];
  __shared__ unsigned bins[kBins];
  __shared__ Search search;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t t = owner_of(first_tiles, count, tile);
    const ShortTensor tensor = tensors[t];
    const int64_t first = (tile - first_tiles[t]) * tensor.units_per_tile, rest = tensor.units - first;
    bool nan;
    if (tensor.length <= kTiny) {
      nan = select_tiny(tensor, state, first, first + (rest < tensor.units_per_tile ? rest : tensor.units_per_tile),
                        keys);
    } else {
      nan = select_short(tensor, state, first, keys, bins, &search);
    }
    if (nan) atomicMin(state.nan_tensor, static_cast<unsigned>(tensor.index));
    __syncthreads();  // all threads have read the keys
  }
}

// -- pieces of longer segments, and of those of several tensors -------------------------------------------------------

struct Piece {
  int64_t index;      // of the tensor in the list
  int64_t first_bit;  // in the mask
};

// The pieces, ordered by segment. `inputs` are their scores, each of them a tensor of its own.
struct Pieces {
  ScoreInputs inputs;
  const Piece* pieces;
  const int64_t* first_blocks;  // of the segments: `segments` + 1 entries
  int64_t segments;
  Search* searches;
  Meeting* meeting;
};

// Calls use(word, the lane's key, or 0 past the end of the block) for the 32 words of a mask block. The lanes of a warp
// have the elements of a word.
template <class Use>
__device__ __forceinline__ void for_each_word(const ScoreBlock& block, const SegmentState& state, bool* nan,
                                              const Use& use) {
  for (int word = 0; word * kWarp < block.size; word += 4) {
    const FourKeys four =
        keys_at(block.tensor, state, block.begin + word * kWarp + lane_id(), kWarp, block.begin + block.size, nan);
#pragma unroll
    for (int j = 0; j < 4; j++) use(word + j, four.v[j]);
  }
}

// Narrows the ranges of all segments until one key is left in each: a cooperative launch. Every thread block has a run
// of mask blocks.
__global__ void __launch_bounds__(kThreads)
    search_segments(Pieces pieces, SegmentState state, Count* histograms, int64_t run) {
  __shared__ unsigned bins[kBins];
  const int64_t first = blockIdx.x * run,
                last = first + run < pieces.inputs.blocks ? first + run : pieces.inputs.blocks;
  for (int round = 0; round < kRounds; round++) {
    for (int64_t begin = first; begin < last;) {
      const int64_t segment = owner_of(pieces.first_blocks, pieces.segments, begin);
      const int64_t until = pieces.first_blocks[segment + 1], end = until < last ? until : last;
      const Search range = pieces.searches[segment];
      if (range.bits > 0) {
        zero_bins(bins);
        __syncthreads();
        bool nan = false;
        for (int64_t at = begin + warp_id(); at < end; at += kWarps) {
          for_each_word(score_block(pieces.inputs, at), state, &nan,
                        [&](int, uint32_t key) { add_to_bin(bins, key == 0 ? -1 : bin_of(key, range)); });
        }
        __syncthreads();
        add_bins(bins, histograms + segment * kBins);
        __syncthreads();  // all bins have been added
      }
      begin = end;
    }
    meet(pieces.meeting, [] {});
    for (int64_t segment = blockIdx.x; segment < pieces.segments; segment += gridDim.x) {
      if (pieces.searches[segment].bits > 0) {
        narrow(pieces.searches + segment, histograms + segment * kBins);
        __syncthreads();  // all threads have read the histogram
        zero_bins(histograms + segment * kBins);
      }
    }
    meet(pieces.meeting, [] {});
  }
}

// Sets the bits of all keys that are better than the threshold of their segment; equal[b] are those of mask block b
// that equal it.
__global__ void __launch_bounds__(kThreads) compare_segments(Pieces pieces, SegmentState state, int64_t* equal) {
  for (int64_t at = int64_t{blockIdx.x} * kWarps + warp_id(); at < pieces.inputs.blocks;
       at += int64_t{gridDim.x} * kWarps) {
    const uint32_t threshold = pieces.searches[owner_of(pieces.first_blocks, pieces.segments, at)].first;
    const ScoreBlock block = score_block(pieces.inputs, at);
    const Piece piece = pieces.pieces[block.index];
    bool nan = false;
    unsigned own = 0;
    int equals = 0;
    for_each_word(block, state, &nan, [&](int word, uint32_t key) {
      const unsigned better = __ballot_sync(kAllLanes, key > threshold);
      if (lane_id() == word) own = better;
      equals += __popc(__ballot_sync(kAllLanes, key == threshold && key != 0));
    });
    set_bits(state.bits, piece.first_bit + block.begin + lane_id() * kWarp, own);
    if (lane_id() == 0) equal[at] = equals;
    if (nan) atomicMin(state.nan_tensor, static_cast<unsigned>(piece.index));
  }
}

// Sets the bits of the first keys of each segment that equal its threshold, as many as are among the best.
__global__ void __launch_bounds__(kThreads)
    add_ties_of_segments(Pieces pieces, SegmentState state, const int64_t* equal_until) {
  for (int64_t at = int64_t{blockIdx.x} * kWarps + warp_id(); at < pieces.inputs.blocks;
       at += int64_t{gridDim.x} * kWarps) {
    const int64_t before = at == 0 ? 0 : equal_until[at - 1];
    if (equal_until[at] == before) continue;
    const int64_t segment = owner_of(pieces.first_blocks, pieces.segments, at), first = pieces.first_blocks[segment];
    const Search search = pieces.searches[segment];
    const int64_t left = search.k - (before - (first == 0 ? 0 : equal_until[first - 1]));
    if (left <= 0) continue;
    const ScoreBlock block = score_block(pieces.inputs, at);
    bool nan = false;
    unsigned own = 0;
    for_each_word(block, state, &nan, [&](int word, uint32_t key) {
      const unsigned equal = __ballot_sync(kAllLanes, key == search.first && key != 0);
      if (lane_id() == word) own = equal;
    });
    set_bits(state.bits, pieces.pieces[block.index].first_bit + block.begin + lane_id() * kWarp, first_bits(own, left));
  }
}

// -- the host side ----------------------------------------------------------------------------------------------------

// The lists of a call: every tensor is in one of them, or empty.
struct SegmentTables {
  std::vector<ShortTensor> short_tensors;
  std::vector<int64_t> first_tiles = {0};
  std::vector<ScoreTensor> piece_inputs;
  std::vector<Piece> pieces;
  std::vector<int64_t> first_piece_blocks = {0};
  std::vector<int64_t> first_segment_blocks = {0};
  std::vector<Search> searches;
  int64_t blocks = 0;  // of the whole mask

  SegmentTables(const ScoreTensor* tensors, int64_t count, const Segments& segments) {
    std::vector<int64_t> first_bits(static_cast<size_t>(count));
    std::unordered_map<int64_t, std::vector<int64_t>> members;
    std::vector<int64_t> order;  // of the groups
    for (int64_t t = 0; t < count; t++) {
      first_bits[static_cast<size_t>(t)] = blocks * kBlock;
      blocks += block_count(tensors[t].numel);
      const int64_t group = segments.groups ? segments.groups[t] : t;
      auto& tensors_of_group = members[group];
      if (tensors_of_group.empty()) order.push_back(group);
      tensors_of_group.push_back(t);
    }
    for (const int64_t group : order) {
      const std::vector<int64_t>& group_members = members.at(group);
      const int64_t t = group_members.front(), k = segments.ks[t];
      if (group_members.size() > 1) {
        int64_t elements = 0;
        for (const int64_t member : group_members) {
          add_piece(tensors[member], 0, tensors[member].numel, member, first_bits[static_cast<size_t>(member)]);
          elements += tensors[member].numel;
        }
        end_segment(k, elements);
      } else if (tensors[t].numel > 0) {
        const int64_t length = tensors[t].numel / segments.units[t];
        if (length <= kShort) {
          add_short({tensors[t], t, first_bits[static_cast<size_t>(t)], segments.units[t], length, k, 1});
        } else {
          for (int64_t at = 0; at < tensors[t].numel; at += length) {
            add_piece(tensors[t], at, length, t, first_bits[static_cast<size_t>(t)]);
            end_segment(k, length);
          }
        }
      }
    }
  }

 private:
  void add_short(ShortTensor tensor) {
    if (tensor.length <= kTiny) {
      const int64_t aligned = std::max<int64_t>(1, 32 / (tensor.length & -tensor.length));  // so many fill whole words
      tensor.units_per_tile = std::max<int64_t>(1, kTile / (tensor.length * aligned)) * aligned;
    }
    short_tensors.push_back(tensor);
    first_tiles.push_back(first_tiles.back() + (tensor.units + tensor.units_per_tile - 1) / tensor.units_per_tile);
  }

  void add_piece(const ScoreTensor& tensor, int64_t at, int64_t length, int64_t index, int64_t first_bit) {
    if (length == 0) return;
    const auto from = [&](const float* input) { return input ? input + at : nullptr; };
    piece_inputs.push_back({length, from(tensor.a), from(tensor.b), from(tensor.c), from(tensor.d)});
    pieces.push_back({index, first_bit + at});
    first_piece_blocks.push_back(first_piece_blocks.back() + block_count(length));
  }

  // The pieces since the last one are a segment.
  void end_segment(int64_t k, int64_t elements) {
    if (elements == 0) return;
    first_segment_blocks.push_back(first_piece_blocks.back());
    searches.push_back(search_for(k, elements));
  }
};

}  // namespace

int select_segments(const ScoreTensor* tensors, int64_t count, const Score& spec, const Segments& segments,
                    bool largest, uint32_t* bits, int64_t* rank, const Allocate& allocate, void* stream,
                    SelectResult* result) {
  *result = {};
  const SegmentTables tables(tensors, count, segments);
  if (tables.blocks == 0) return cuda::rank(bits, 0, rank, allocate, stream);
  const int64_t words = tables.blocks * kWordsPerBlock, piece_blocks = tables.first_piece_blocks.back();
  const auto long_segments = static_cast<int64_t>(tables.searches.size());

  Upload upload;
  constexpr unsigned kNone = kNoTensor;
  constexpr Meeting kNobody = {};
  const int64_t short_at = upload.add(tables.short_tensors), tiles_at = upload.add(tables.first_tiles);
  const int64_t inputs_at = upload.add(tables.piece_inputs), pieces_at = upload.add(tables.pieces);
  const int64_t blocks_at = upload.add(tables.first_piece_blocks);
  const int64_t segments_at = upload.add(tables.first_segment_blocks), searches_at = upload.add(tables.searches);
  const int64_t nan_at = upload.add(&kNone, 1), meeting_at = upload.add(&kNobody, 1);
  // Zeroed: histograms and bits. Then the counts of equal keys.
  const int64_t histograms_at = upload.bytes();
  const int64_t bits_at = histograms_at + long_segments * kBins * static_cast<int64_t>(sizeof(Count));
  const int64_t equal_at = bits_at + words * static_cast<int64_t>(sizeof(uint32_t));
  void* memory = allocate(equal_at + piece_blocks * static_cast<int64_t>(sizeof(int64_t)));
  if (!memory) return cudaErrorMemoryAllocation;
  AIMFAIR_TRY(upload.copy(memory, stream, equal_at - histograms_at));

  auto* nan_tensor = array_at<unsigned>(memory, nan_at);
  auto* own = array_at<uint32_t>(memory, bits_at);
  const SegmentState state = {spec, largest, nan_tensor, own};
  const int64_t tiles = tables.first_tiles.back();
  AIMFAIR_TRY(launch_persistent(select_short_segments, tiles, kThreads, stream, array_at<ShortTensor>(memory, short_at),
                                array_at<int64_t>(memory, tiles_at), static_cast<int64_t>(tables.short_tensors.size()),
                                tiles, state));
  if (piece_blocks > 0) {
    const ScoreInputs inputs = {array_at<const ScoreTensor>(memory, inputs_at),
                                array_at<const int64_t>(memory, blocks_at),
                                static_cast<int64_t>(tables.pieces.size()),
                                piece_blocks,
                                spec,
                                largest};
    const Pieces pieces = {
        inputs,        array_at<const Piece>(memory, pieces_at), array_at<const int64_t>(memory, segments_at),
        long_segments, array_at<Search>(memory, searches_at),    array_at<Meeting>(memory, meeting_at)};
    auto* equal = array_at<int64_t>(memory, equal_at);
    int64_t most = 0;
    AIMFAIR_TRY(persistent_blocks(search_segments, (piece_blocks + kWarps - 1) / kWarps, kThreads, &most));
    const int64_t run = (piece_blocks + most - 1) / most;
    AIMFAIR_TRY(launch_cooperative(search_segments, (piece_blocks + run - 1) / run, kThreads, stream, pieces, state,
                                   array_at<Count>(memory, histograms_at), run));
    const int64_t work = (piece_blocks + kWarps - 1) / kWarps;
    AIMFAIR_TRY(launch_persistent(compare_segments, work, kThreads, stream, pieces, state, equal));
    AIMFAIR_TRY(inclusive_scan(equal, piece_blocks, allocate, stream));
    AIMFAIR_TRY(launch_persistent(add_ties_of_segments, work, kThreads, stream, pieces, state, equal));
  }

  unsigned found = kNone;
  const auto queue = static_cast<cudaStream_t>(stream);
  AIMFAIR_TRY(cudaMemcpyAsync(&found, nan_tensor, sizeof found, cudaMemcpyDeviceToHost, queue));
  AIMFAIR_TRY(cudaStreamSynchronize(queue));
  if (found != kNone) {
    result->nan_tensor = found;
    return cudaSuccess;
  }
  AIMFAIR_TRY(
      cudaMemcpyAsync(bits, own, static_cast<size_t>(words) * sizeof(uint32_t), cudaMemcpyDeviceToDevice, queue));
  return cuda::rank(bits, tables.blocks, rank, allocate, stream);
}

}  // namespace aimfair::cuda
