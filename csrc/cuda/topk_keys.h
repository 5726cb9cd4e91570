#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "aimfair/cuda.h"
#include "aimfair/topk.h"
#include "cuda/launch.h"
#include "cuda/topk_score.h"
#include "cuda/warp.h"

// What the launchers of topk share: the inputs in device memory; unsigned keys that are counted and turned into bits.
//
// The search for the k-th best key is that of cpu/topk_keys.h, without the host: every round histograms the keys of one
// range into bins, and the thread block that finishes last continues with the bin that holds the k-th best key.

namespace aimfair::cuda {

constexpr int kSearchThreads = 256;
constexpr int kBinBits = 11;
constexpr int kBins = 1 << kBinBits;
constexpr int kRounds = 3;  // of 11, 11 and 10 bits

// The k-th best of the keys that agree with `first` in all but the low `bits` bits, which are zero in `first`. With no
// bits left, `first` is the key, and `k` of those that equal it are among the best.
struct Search {
  uint32_t first;
  int32_t bits;
  int64_t k;
};

using Count = unsigned long long;  // the type that atomicAdd takes

__host__ __device__ __forceinline__ int shift_of(const Search& search) {
  return search.bits > kBinBits ? search.bits - kBinBits : 0;
}

// The bin of a key, or -1 if it is outside the range.
__device__ __forceinline__ int bin_of(uint32_t key, const Search& search) {
  const uint32_t offset = key - search.first;
  return static_cast<uint64_t>(offset) >> search.bits == 0 ? static_cast<int>(offset >> shift_of(search)) : -1;
}

// Adds the bins of a thread block to the histogram. All threads must call, after a barrier.
__device__ __forceinline__ void add_bins(const unsigned* bins, Count* histogram) {
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kSearchThreads) {
    if (bins[bin] != 0) atomicAdd(histogram + bin, Count{bins[bin]});
  }
}

// Narrows the range to the bin with the k-th best key and zeroes the histogram. All kSearchThreads threads of one
// thread block must call. If the range has fewer than k keys, it stays.
__device__ __forceinline__ void narrow(Search* search, Count* histogram) {
  constexpr int kPerThread = kBins / kSearchThreads;
  const Search old = *search;
  const int best = kBins - 1 - static_cast<int>(threadIdx.x) * kPerThread;  // of the thread's bins
  int64_t counts[kPerThread], sum = 0, total;
#pragma unroll
  for (int i = 0; i < kPerThread; i++) {
    counts[i] = static_cast<int64_t>(histogram[best - i]);
    histogram[best - i] = 0;
    sum += counts[i];
  }
  int64_t before = block_exclusive_sum<kSearchThreads>(sum, &total);
#pragma unroll
  for (int i = 0; i < kPerThread; i++) {
    if (before < old.k && old.k <= before + counts[i]) {  // in one bin of one thread
      const int shift = shift_of(old);
      *search = {old.first + (static_cast<uint32_t>(best - i) << shift), shift, old.k - before};
    }
    before += counts[i];
  }
}

// Queues the rounds that finish one or two searches among `n` keys in device memory, or among *used of them if that is
// given, none if it is more than n. `histograms`, kBins counts for each search, and *arrived are zero before and
// after. If there are fewer than k keys, the result of a search is undefined.
cudaError_t search_keys(const uint32_t* keys, int64_t n, const Count* used, Search* searches, int count,
                        Count* histograms, unsigned* arrived, void* stream);

// The state of a selection in device memory. Aligned so that it is as large as its upload.
struct alignas(Upload::kAlignment) SelectState {
  Search bracket[2];  // lowest and highest key
  Search threshold;   // the k-th best key
  Count above;        // keys better than the bracket
  Count used;         // keys inside the bracket; if more than there is room for, some are missing
  unsigned nan_tensor;
  unsigned arrived;  // of last_to_arrive
};

constexpr unsigned kNoTensor = 0xffffffffu;

// A list of scored tensors, to be counted or turned into a mask. Member functions return the error of CUDA.
class Selection {
 public:
  Selection(const ScoreTensor* tensors, int64_t count, const Score& spec, bool largest, const Allocate& allocate,
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

  // Queues the copy of the list. Call it first.
  cudaError_t begin();

  // Allocates bits() and per_block(). Call it before a mask is written.
  cudaError_t begin_mask();
  uint32_t* bits() const { return bits_; }           // not the caller's, which must not change if a score is NaN
  int64_t* per_block() const { return per_block_; }  // a count for every block

  // Queues a write of `initial` to the state.
  cudaError_t reset(const SelectState& initial) const;

  // Synchronizes with the stream and reads the state.
  cudaError_t read(SelectState* state) const;

  // Queues the search for the k-th best of all keys except NaN; state()->threshold is {0, 32, k}.
  cudaError_t search_all() const;

  // Queues the histogram of the keys in the range of state()->threshold, added to kBins counts, and that of the NaN
  // scores, added to the one after them.
  cudaError_t count_keys(int64_t* counts) const;

  // Queues the comparison of all keys with state()->threshold. Writes the bits of those that are greater, unless `bits`
  // is null, and for every block the number of those that are equal; records NaN in the state.
  cudaError_t compare(uint32_t* bits, int64_t* equal) const;

  // Queues the bits of the first keys that equal the threshold: threshold.k of all, or ties[t] of tensor t if `ties`,
  // in device memory, is given. `equal_until` is the running sum of what compare counted.
  cudaError_t add_ties(uint32_t* bits, const int64_t* equal_until, const int64_t* ties) const;

  // Writes the mask of the keys that are greater than state()->threshold and of ties as in add_ties, after
  // synchronizing; if there is a NaN, sets only *result.
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
