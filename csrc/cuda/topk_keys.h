#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "aimfair/cuda.h"
#include "aimfair/topk.h"
#include "cuda/launch.h"
#include "cuda/topk_score.h"
#include "cuda/topk_search.h"
#include "cuda/warp.h"

// What the launchers of topk share: the inputs in device memory; unsigned keys that are counted and turned into bits.

namespace aimfair::cuda {

constexpr unsigned kNoTensor = 0xffffffffu;

// The state of a selection in device memory. Aligned so that it is as large as its upload.
struct alignas(Upload::kAlignment) SelectState {
  Search bracket[2];  // lowest and highest key
  Search threshold;   // the k-th best key
  Count above = 0;    // keys better than the bracket
  Count at_low = 0;   // keys at an end of the bracket that are counted instead of collected
  Count at_high = 0;
  Count used = 0;  // keys collected inside the bracket; if more than there is room for, some are missing
  unsigned nan_tensor = kNoTensor;
  unsigned missed = 0;  // 1: the k-th best key is to be found by counting all keys
  Meeting meeting;      // of the thread blocks of each launch
};

// A list of scored tensors, to be counted or turned into a mask. Member functions return the error of CUDA.
class Selection {
 public:
  Selection(const ScoreTensor* tensors, int64_t count, const Score& spec, bool largest, const Allocate& allocate,
            void* stream);

  // Reserves memory for `n` values of T, and returns their place. Before begin().
  template <class T>
  int64_t reserve(int64_t n) {
    const int64_t place = reserved_;
    reserved_ += (n * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return place;
  }

  // Allocates all memory at once, and queues the copy of the list and of the initial state. Call it first.
  cudaError_t begin(const SelectState& initial);

  int64_t total() const { return total_; }
  int64_t blocks() const { return inputs_.blocks; }
  const ScoreInputs& inputs() const { return inputs_; }
  const int64_t* first_elements() const { return first_elements_; }  // device memory, count + 1 entries
  SelectState* state() const { return state_; }
  Count* histograms() const { return histograms_; }  // two, zero between the rounds
  void* stream() const { return stream_; }

  // The memory at a reserved place.
  template <class T>
  T* at(int64_t place) const {
    return array_at<T>(memory_, place);
  }

  // Synchronizes with the stream and reads the state.
  cudaError_t read(SelectState* state) const;

  // Queues the search for the k-th best of all keys except NaN, which does nothing unless state()->missed.
  // state()->threshold is {0, 32, k}.
  cudaError_t search_all() const;

  // Queues the histogram of the keys in the range of state()->threshold, added to kBins counts, and that of the NaN
  // scores, added to the one after them.
  cudaError_t count_keys(int64_t* counts) const;

  // Queues the comparison of all keys with state()->threshold. Writes the bits of those that are greater, unless `bits`
  // is null, and for every block the running sum of those that are equal; records NaN in the state.
  cudaError_t compare(uint32_t* bits, int64_t* equal_until) const;

  // Queues the bits of the first ties[t] keys of tensor t that equal the threshold; `ties` is device memory.
  // `equal_until` is of compare.
  cudaError_t add_ties(uint32_t* bits, const int64_t* equal_until, const int64_t* ties) const;

 private:
  static constexpr int64_t kAlignment = 128;

  const ScoreTensor* tensors_;
  ScoreInputs inputs_;
  const Allocate& allocate_;
  void* stream_;
  int64_t total_;
  int64_t reserved_ = 0;
  const int64_t* first_elements_ = nullptr;
  SelectState* state_ = nullptr;
  Count* histograms_ = nullptr;
  void* memory_ = nullptr;  // the reserved part
};

}  // namespace aimfair::cuda
