#pragma once

#include <cstdint>

#include "aimfair/cuda.h"
#include "aimfair/mask.h"
#include "aimfair/score.h"

// select: the exact global top-k over the elements of all tensors, by scores computed on the fly.

namespace aimfair {

// Inputs of the scores of one tensor; see score.h for which a criterion reads.
struct ScoreTensor {
  int64_t numel = 0;
  const float* a = nullptr;
  const float* b = nullptr;
  const float* c = nullptr;
  const float* d = nullptr;
};

constexpr int64_t kKeyBins = 2048;  // of count_keys

// What a selection found.
struct SelectResult {
  int64_t nan_tensor = -1;  // a tensor with a NaN score (the lowest), in which case nothing was written; else -1
};

namespace cpu {

// Writes the mask of the k best scores (greatest if `largest`), equal scores by lowest global index: `bits` with
// kWordsPerBlock words for every block, `rank` with blocks + 1 entries. Needs 0 <= k <= total elements. Extra memory:
// under 5% of the inputs. Throws std::bad_alloc before anything is written. The result does not depend on `threads`.
SelectResult select(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, int64_t k, bool largest,
                    uint32_t* bits, int64_t* rank, int threads = 0);

// Mean score of every unit: tensor t is cut into units[t] runs of equal length (its rows, or 1 for the whole tensor)
// and out[t] gets units[t] floats, which mean nothing if a score is NaN. unit_sum.h gives the order of the sums.
SelectResult unit_scores(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, const int64_t* units,
                         float* const* out, int threads = 0);

// The parts of a selection over the scores of several processes: the counts of all are added before each decision.
// A key here is score_key of score.h with its sign bit flipped, so that unsigned keys have its order. NaN scores have
// no key.

// Adds 1 to counts[(key - first) >> max(0, bits - 11)] for every key in [first, first + 2^bits), and the number of NaN
// scores to counts[kKeyBins]. Needs 0 <= bits <= 32 and `first` a multiple of 2^bits.
void count_keys(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, uint32_t first, int bits,
                bool largest, int64_t* counts, int threads = 0);

// Adds to counts[t] the number of elements of tensor t whose key is `key`.
void count_equal(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, uint32_t key, bool largest,
                 int64_t* counts, int threads = 0);

// Writes the mask of all elements with a greater key than `key` and of the first ties[t] elements of tensor t whose key
// is `key` (of all of them if there are no more, of none if ties[t] < 0). Mask, memory and NaN as in select.
SelectResult select_above(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, uint32_t key,
                          const int64_t* ties, bool largest, uint32_t* bits, int64_t* rank, int threads = 0);

}  // namespace cpu

// The same on the device; see cuda.h. What writes a mask waits for the device once or, where many scores are equal,
// twice: it must know whether there is a NaN. It cannot be captured in a CUDA graph.
namespace cuda {

int select(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, int64_t k, bool largest, uint32_t* bits,
           int64_t* rank, const Allocate& allocate, void* stream, SelectResult* result);

// `counts` and `ties` are device memory.
int count_keys(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, uint32_t first, int bits, bool largest,
               int64_t* counts, const Allocate& allocate, void* stream);
int count_equal(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, uint32_t key, bool largest,
                int64_t* counts, const Allocate& allocate, void* stream);
int select_above(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, uint32_t key, const int64_t* ties,
                 bool largest, uint32_t* bits, int64_t* rank, const Allocate& allocate, void* stream,
                 SelectResult* result);

// As the others, it waits for the stream. Extra memory: under 0.1% of the inputs.
int unit_scores(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, const int64_t* units,
                float* const* out, const Allocate& allocate, void* stream, SelectResult* result);

}  // namespace cuda
}  // namespace aimfair
