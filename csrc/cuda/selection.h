#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "aimfair/cuda.h"
#include "aimfair/select.h"
#include "cuda/score_block.h"
#include "cuda/search.h"
#include "cuda/upload.h"

// What select and the counting launchers share: the inputs in device memory, keys counted, and keys turned into bits.

namespace aimfair::cuda {

// What the kernels of a selection find, in device memory. As large as its upload.
struct alignas(Upload::kAlignment) SelectState {
  Search bracket[2];  // its lowest and its highest key
  Search threshold;   // the k-th best key
  Count above;        // keys better than the bracket
  Count used;         // keys inside the bracket; more than there is room for: some are missing
  unsigned nan_tensor;
  unsigned arrived;  // of last_to_arrive
};

constexpr unsigned kNoTensor = 0xffffffffu;

// A list of tensors on its way to a mask or to counts. Every member returns what CUDA returned.
class Selection {
 public:
  Selection(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, bool largest, const Allocate& allocate,
            void* stream);

  int64_t total() const { return total_; }
  int64_t blocks() const { return inputs_.blocks; }
  const ScoreInputs& inputs() const { return inputs_; }
  const int64_t* first_elements() const { return first_elements_; }  // device memory, count + 1 entries
  SelectState* state() const { return state_; }
  Count* histograms() const { return histograms_; }  // two, zero between the rounds
  void* stream() const { return stream_; }

  // Memory for `n` values of T until the end of the call; null if there is none.
  template <class T>
  T* allocate(int64_t n) const {
    return static_cast<T*>(allocate_(n * static_cast<int64_t>(sizeof(T))));
  }

  // Queues the copy of the list; the first to be called.
  cudaError_t begin();

  // Makes room for bits() and per_block(); before a mask is made.
  cudaError_t begin_mask();
  uint32_t* bits() const { return bits_; }  // apart from the caller's, which stay as they are if a score is NaN
  int64_t* per_block() const { return per_block_; }  // a count for every block

  // Queues `initial` into the state.
  cudaError_t reset(const SelectState& initial) const;

  // Waits for all that is queued and reads the state.
  cudaError_t read(SelectState* state) const;

  // Queues the search for the k-th best of all keys, NaN left out; state()->threshold is {0, 32, k}.
  cudaError_t search_all() const;

  // Queues the histogram of the keys in the range of state()->threshold, added to kBins counts, and that of the NaN
  // scores, added to the one after them.
  cudaError_t count_keys(int64_t* counts) const;

  // Queues the comparison of all keys with state()->threshold. Writes the bits of those that are greater, unless `bits`
  // is null, and for every block the number of those that are equal; enters NaN in the state.
  cudaError_t compare(uint32_t* bits, int64_t* equal) const;

  // Queues the bits of the first keys that equal the threshold: threshold.k of all, or ties[t] of tensor t if `ties`,
  // in device memory, is given. `equal_until` is the running sum of what compare counted.
  cudaError_t add_ties(uint32_t* bits, const int64_t* equal_until, const int64_t* ties) const;

  // Writes the mask of the keys that are greater than state()->threshold and of ties as in add_ties, after waiting for
  // the device; if there is a NaN, only *result.
  cudaError_t write_mask(const int64_t* ties, uint32_t* bits, int64_t* rank, SelectResult* result) const;

 private:
  const ScoreTensor* tensors_;
  ScoreInputs inputs_;
  const Allocate& allocate_;
  void* stream_;
  int64_t total_;
  const int64_t* first_elements_ = nullptr;
  SelectState* state_ = nullptr;
  Count* histograms_ = nullptr;
  uint32_t* bits_ = nullptr;
  int64_t* per_block_ = nullptr;
};

}  // namespace aimfair::cuda
