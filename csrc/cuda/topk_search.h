#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/warp.h"

// The search for the k-th best key is that of cpu/topk_keys.h, without the host: every round histograms the keys of one
// range into bins, and the thread block that finishes last continues with the bin that holds the k-th best key. The
// others wait for it.

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
// range has fewer than k keys, it stays. Bins are in shared memory, a histogram (of Count) in that of the device.
template <class T>
__device__ __forceinline__ void narrow(Search* search, const T* histogram) {
  constexpr int kPerThread = kBins / kSearchThreads;
  const Search old = *search;
  const int best = kBins - 1 - static_cast<int>(threadIdx.x) * kPerThread;  // of the thread's bins
  int64_t counts[kPerThread], sum = 0, total;
#pragma unroll
  for (int i = 0; i < kPerThread; i++) {
    if constexpr (sizeof(T) == sizeof(Count)) {
      counts[i] = static_cast<int64_t>(__ldcg(histogram + best - i));  // the L1 cache may have an older one
    } else {
      counts[i] = static_cast<int64_t>(histogram[best - i]);
    }
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

// Ends searches among n keys at a multiple of 16 bytes, in a cooperative launch.
// `histograms` are one for each search, `bins` of the thread block as many.
template <int kSearches>
__device__ __forceinline__ void search_keys(const uint32_t* keys, int64_t n, Search* searches, Count* histograms,
                                            unsigned* bins, Meeting* meeting) {
  const int64_t begin = int64_t{blockIdx.x} * kSearchThreads + threadIdx.x;
  const int64_t stride = int64_t{gridDim.x} * kSearchThreads;
  for (int round = 0; round < kRounds; round++) {
    Search search[kSearches];
    bool ended = true;
#pragma unroll
    for (int s = 0; s < kSearches; s++) {
      search[s] = searches[s];
      ended &= search[s].bits == 0;
    }
    if (ended) return;
    const auto count = [&](uint32_t key) {
#pragma unroll
      for (int s = 0; s < kSearches; s++) {
        const int bin = bin_of(key, search[s]);
        if (bin >= 0) atomicAdd(&bins[s * kBins + bin], 1u);
      }
    };
    if (begin - threadIdx.x <= n / 4) {  // a thread block without keys has no bins to add up
      zero_bins(bins, kSearches * kBins);
      __syncthreads();
#pragma unroll(kSearches == 1 ? 4 : 1)
      for (int64_t i = begin; i < n / 4; i += stride) {
        const uint4 four = reinterpret_cast<const uint4*>(keys)[i];
        count(four.x);
        count(four.y);
        count(four.z);
        count(four.w);
      }
      if (begin < n % 4) count(keys[n / 4 * 4 + begin]);
      __syncthreads();
#pragma unroll
      for (int s = 0; s < kSearches; s++) {
        if (search[s].bits != 0) add_bins(bins + s * kBins, histograms + s * kBins);
      }
    }
    meet(meeting, [&] {
#pragma unroll
      for (int s = 0; s < kSearches; s++) {
        if (search[s].bits != 0) narrow(searches + s, histograms + s * kBins);
      }
      zero_bins(histograms, kSearches * kBins);
    });
  }
}

}  // namespace aimfair::cuda
