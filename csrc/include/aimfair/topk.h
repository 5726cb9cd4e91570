#pragma once

#include <cstdint>

#include "aimfair/cuda.h"
#include "aimfair/mask.h"
#include "aimfair/numeric.h"

// topk: sensitivity scores, computed on the fly from accumulated statistics, and the exact top-k over the
// elements of all tensors or within segments of them. First the formulas, where F is float or a vector of floats; then
// the launchers.

namespace aimfair {

enum class Criterion : uint8_t {
  none,                 // no divisor
  value,                // a, any sign
  magnitude,            // |x|
  difference,           // |x - y|
  relative_difference,  // |x - y| / (|x| + |y| + eps)
  norm_ratio,           // sqrt(y) / sqrt(x + eps)
};

AIMFAIR_HOST_DEVICE bool has_second_input(Criterion criterion) {
  return criterion == Criterion::difference || criterion == Criterion::relative_difference ||
         criterion == Criterion::norm_ratio;
}

// One criterion, with the scales that turn sums over batches into means: x = a * scale_a, y = b * scale_b.
struct ScoreTerm {
  Criterion criterion = Criterion::none;
  float scale_a = 1.0f;
  float scale_b = 1.0f;
};

// score = term(a, b), or term(a, b) / (divisor(c, d) + eps).
struct Score {
  ScoreTerm term;
  ScoreTerm divisor;
  float eps = 1e-12f;
};

template <class F>
AIMFAIR_HOST_DEVICE F score_value(F a) {
  return a;
}

template <class F>
AIMFAIR_HOST_DEVICE F score_magnitude(F a, F scale_a) {
  return absolute(a * scale_a);
}

template <class F>
AIMFAIR_HOST_DEVICE F score_difference(F a, F b, F scale_a, F scale_b) {
  return absolute(a * scale_a - b * scale_b);
}

template <class F>
AIMFAIR_HOST_DEVICE F score_relative_difference(F a, F b, F scale_a, F scale_b, F eps) {
  const F x = a * scale_a, y = b * scale_b;
  return absolute(x - y) / ((absolute(x) + absolute(y)) + eps);
}

template <class F>
AIMFAIR_HOST_DEVICE F score_norm_ratio(F a, F b, F scale_a, F scale_b, F eps) {
  return square_root(b * scale_b) / square_root(a * scale_a + eps);
}

// An order-preserving map of non-NaN floats to signed integers; the best scores have the greatest keys, and -0 and +0
// the same.
AIMFAIR_HOST_DEVICE int32_t score_key(uint32_t bits, bool largest) {
  if (bits == 0x80000000u) bits = 0;
  const int32_t key = static_cast<int32_t>(bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) >> 1));
  return largest ? key : ~key;
}

// The order in which the scores of a unit are added, in double, on every device. Lanes start at 0.
//
// - A block of up to 1024 scores: score i is added to lane i % 16, then the lanes are added as a tree.
// - A span of up to 16 blocks: the sums of the blocks as a tree of 16 lanes.
// - The unit: the sum of span i is added to lane i % 256, then the lanes are added as a tree.

constexpr int kBlockLanes = 16;
constexpr int kBlocksPerSpan = 16;
constexpr int64_t kSpan = kBlocksPerSpan * kBlock;  // elements
constexpr int kSpanLanes = 256;

AIMFAIR_HOST_DEVICE int64_t span_count(int64_t length) { return length / kSpan + (length % kSpan != 0); }

// Adds the second half of the lanes to the first, and so on down to one; overwrites the lanes. Lanes of 0 change no
// sum, so a tree of more lanes gives the same result.
template <int kLanes>
AIMFAIR_HOST_DEVICE double tree_sum(double* lanes) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// Inputs of the scores of one tensor; has_second_input tells which a criterion reads.
struct ScoreTensor {
  int64_t numel = 0;
  const float* a = nullptr;
  const float* b = nullptr;
  const float* c = nullptr;
  const float* d = nullptr;
};

// Segments of a list: tensor t is cut into units[t] runs of equal length (its rows, or 1 for the whole tensor, or
// groups of a few elements), of each of which the ks[t] best are selected. Tensors with the same number in `groups` are
// one segment together, in list order: they have one unit each, and the same k. Null: every tensor is by itself.
struct Segments {
  const int64_t* units = nullptr;
  const int64_t* ks = nullptr;
  const int64_t* groups = nullptr;
};

constexpr int64_t kKeyBins = 2048;  // of count_keys

// The outcome of a selection.
struct SelectResult {
  int64_t nan_tensor = -1;  // the first tensor with a NaN score, in which case nothing was written; else -1
};

namespace cpu {

// Writes the mask of the k best scores (greatest if `largest`), equal scores by lowest global index: `bits` with
// kWordsPerBlock words for every block, `rank` with blocks + 1 entries. Needs 0 <= k <= total elements. Extra memory:
// under 5% of the inputs. Throws std::bad_alloc before anything is written. The result does not depend on `threads`.
SelectResult select(const ScoreTensor* tensors, int64_t count, const Score& score, int64_t k, bool largest,
                    uint32_t* bits, int64_t* rank, int threads = 0);

// The same in every segment by itself, equal scores of a segment by lowest index. Needs 0 <= ks[t] <= elements of a
// segment. The keys of a segment of up to 2^18 elements are kept by the thread that selects them.
SelectResult select_segments(const ScoreTensor* tensors, int64_t count, const Score& score, const Segments& segments,
                             bool largest, uint32_t* bits, int64_t* rank, int threads = 0);

// Mean score of every unit: tensor t is cut into units[t] runs of equal length (its rows, or 1 for the whole tensor)
// and out[t] gets units[t] floats, which are undefined if a score is NaN. The order of the sums is the one above.
SelectResult unit_scores(const ScoreTensor* tensors, int64_t count, const Score& score, const int64_t* units,
                         float* const* out, int threads = 0);

// The parts of a selection over several processes, which add up their counts before each decision. A key here is
// score_key with its sign bit flipped, so that unsigned keys have its order. NaN scores have no key.

// Adds 1 to counts[(key - first) >> max(0, bits - 11)] for every key in [first, first + 2^bits), and the number of NaN
// scores to counts[kKeyBins]. Needs 0 <= bits <= 32 and `first` a multiple of 2^bits.
void count_keys(const ScoreTensor* tensors, int64_t count, const Score& score, uint32_t first, int bits, bool largest,
                int64_t* counts, int threads = 0);

// Adds to counts[t] the number of elements of tensor t whose key is `key`.
void count_equal(const ScoreTensor* tensors, int64_t count, const Score& score, uint32_t key, bool largest,
                 int64_t* counts, int threads = 0);

// Writes the mask of all elements with a greater key than `key` and of the first ties[t] elements of tensor t whose key
// is `key` (of all of them if there are no more, of none if ties[t] < 0). Mask, memory and NaN as in select.
SelectResult select_above(const ScoreTensor* tensors, int64_t count, const Score& score, uint32_t key,
                          const int64_t* ties, bool largest, uint32_t* bits, int64_t* rank, int threads = 0);

}  // namespace cpu

// The same on the device (see cuda.h). Launchers that write a mask synchronize once, to learn whether there is a NaN;
// they cannot be captured in a CUDA graph.
namespace cuda {

int select(const ScoreTensor* tensors, int64_t count, const Score& score, int64_t k, bool largest, uint32_t* bits,
           int64_t* rank, const Allocate& allocate, void* stream, SelectResult* result);

int select_segments(const ScoreTensor* tensors, int64_t count, const Score& score, const Segments& segments,
                    bool largest, uint32_t* bits, int64_t* rank, const Allocate& allocate, void* stream,
                    SelectResult* result);

// `counts` and `ties` are device memory.
int count_keys(const ScoreTensor* tensors, int64_t count, const Score& score, uint32_t first, int bits, bool largest,
               int64_t* counts, const Allocate& allocate, void* stream);
int count_equal(const ScoreTensor* tensors, int64_t count, const Score& score, uint32_t key, bool largest,
                int64_t* counts, const Allocate& allocate, void* stream);
int select_above(const ScoreTensor* tensors, int64_t count, const Score& score, uint32_t key, const int64_t* ties,
                 bool largest, uint32_t* bits, int64_t* rank, const Allocate& allocate, void* stream,
                 SelectResult* result);

// Synchronizes like those. Extra memory: under 0.1% of the inputs.
int unit_scores(const ScoreTensor* tensors, int64_t count, const Score& score, const int64_t* units, float* const* out,
                const Allocate& allocate, void* stream, SelectResult* result);

}  // namespace cuda

}  // namespace aimfair
