#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/topk_keys.h"

// What the launches of select share: the elements whose keys fall inside the bracket, and the counts of every mask
// block.

namespace aimfair::cuda {

// Of a mask block.
struct alignas(8) BlockCounts {
  uint16_t above;            // better than the bracket
  uint16_t at_low, at_high;  // equal to an end of it, and not among the candidates
  uint16_t inside;           // candidates
};

// Elements inside the bracket. Those of one mask block stay together and in order; the places of the blocks depend on
// timing, and nothing else depends on them.
struct Candidates {
  int64_t capacity;
  uint32_t* keys;
  uint16_t* places;     // in the mask block
  uint32_t* first;      // of every block that has any
  BlockCounts* counts;  // of every block
};

// Queues the sample, which brackets the k-th best key: state()->bracket. `keys` has room for sample_size(total).
int64_t sample_size(int64_t total);
cudaError_t sample(const Selection& s, uint32_t* keys);

// The searches in the sample that find the ends of the bracket.
void enter_bracket(int64_t k, int64_t total, int64_t capacity, Search (&bracket)[2]);

// Queues the pass over the inputs: the bits of all keys that are better than the bracket, and the candidates. Then
// state()->threshold is entered for the search among them, or state()->missed is set. If `exact`, the bracket is the
// threshold alone, and nothing is done unless state()->missed.
cudaError_t collect(const Selection& s, int64_t k, const Candidates& found, uint32_t* above, bool exact);

// Queues the rest of the search for the threshold among the candidates, and the mask of the keys that are better and of
// the first of those that equal it. Writes nothing if there is a NaN. `runs` has room for kMaxRuns.
struct RunCounts {
  int64_t better, equal;
};
constexpr int64_t kMaxRuns = 1024;
cudaError_t choose(const Selection& s, const Candidates& found, const uint32_t* above, RunCounts* runs, uint32_t* bits,
                   int64_t* rank);

}  // namespace aimfair::cuda
