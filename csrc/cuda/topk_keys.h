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

// The k-th best of the 2^bits keys from `first` on. With no bits left, `first` is the key, and `k` of those that equal
// it are among the best.
struct Search {
  uint32_t first;
  int32_t bits;
  int64_t k;
  int64_t keys = 0;  // in the range; 0 before it is narrowed
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

// Narrows the range to the bin with the k-th best key. All kSearchThreads threads of one thread block must call. If the
// range has fewer than k keys, it stays.
__device__ __forceinline__ void narrow(Search* search, const Count* histogram) {
  constexpr int kPerThread = kBins / kSearchThreads;
  const Search old = *search;
  const int best = kBins - 1 - static_cast<int>(threadIdx.x) * kPerThread;  // of the thread's bins
  int64_t counts[kPerThread], sum = 0, total;
#pragma unroll
  for (int i = 0; i < kPerThread; i++) {
    counts[i] = static_cast<int64_t>(__ldcg(histogram + best - i));  // the L1 cache may have an older one
    sum += counts[i];
  }
  int64_t before = block_exclusive_sum<kSearchThreads>(sum, &total);
#pragma unroll
  for (int i = 0; i < kPerThread; i++) {
    if (before < old.k && old.k <= before + counts[i]) {  // in one bin of one thread
      const int shift = shift_of(old);
      *search = {old.first + (static_cast<uint32_t>(best - i) << shift), shift, old.k - before, counts[i]};
    }
    before += counts[i];
  }
}

// Zeroes bins, in a histogram after all threads have called narrow. All threads of a thread block must call.
template <class T>
__device__ __forceinline__ void zero_bins(T* bins, int n = kBins) {
  for (int bin = static_cast<int>(threadIdx.x); bin < n; bin += kSearchThreads) bins[bin] = 0;
}

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
  unsigned arrived = 0;  // of last_to_arrive
  unsigned missed = 0;   // 1: the k-th best key is to be found by counting all keys
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

// Queues a round of the searches for the ends of the bracket among n keys in device memory.
cudaError_t search_sample(const Selection& s, const uint32_t* keys, int64_t n);

// Queues the rest of the search for state()->threshold among state()->used keys, of at most n.
cudaError_t search_candidates(const Selection& s, const uint32_t* keys, int64_t n);

}  // namespace aimfair::cuda
