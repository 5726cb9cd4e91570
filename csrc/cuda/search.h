#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "aimfair/cuda.h"
#include "cuda/warp.h"

// The exact search of cpu/threshold.h on the device, without the host: every round histograms the keys of one range
// into bins, and the thread block that finishes last goes on with the bin that holds the k-th best key. Keys are
// unsigned.

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

using Count = unsigned long long;  // as atomicAdd takes it

__host__ __device__ __forceinline__ int shift_of(const Search& search) {
  return search.bits > kBinBits ? search.bits - kBinBits : 0;
}

// The bin of a key, or -1 if it is outside the range.
__device__ __forceinline__ int bin_of(uint32_t key, const Search& search) {
  const uint32_t offset = key - search.first;
  return static_cast<uint64_t>(offset) >> search.bits == 0 ? static_cast<int>(offset >> shift_of(search)) : -1;
}

// Adds the bins of a thread block to those of all. All threads must call, after a barrier.
__device__ __forceinline__ void add_bins(const unsigned* bins, Count* histogram) {
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kSearchThreads) {
    if (bins[bin] != 0) atomicAdd(histogram + bin, Count{bins[bin]});
  }
}

// Narrows the range to the bin with the k-th best key, and leaves the histogram zero. All kSearchThreads of one thread
// block must call. If the range has less than k keys, it stays.
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
// given, none if it is more than n. `histograms`: kBins counts for each search, zero, as is *arrived; both are zero
// again afterwards. If there are less than k keys, what a search ends with has no meaning.
cudaError_t search_keys(const uint32_t* keys, int64_t n, const Count* used, Search* searches, int count,
                        Count* histograms, unsigned* arrived, void* stream);

}  // namespace aimfair::cuda
