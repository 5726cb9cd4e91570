#include "cuda/search.h"

#include "cuda/launch.h"

namespace aimfair::cuda {
namespace {

template <int kSearches>
__global__ void __launch_bounds__(kSearchThreads) search_round(const uint32_t* keys, int64_t n, const Count* used,
                                                               Search* searches, Count* histograms, unsigned* arrived) {
  __shared__ unsigned bins[kSearches * kBins];
  Search search[kSearches];
  bool done = true;
#pragma unroll
  for (int s = 0; s < kSearches; s++) {
    search[s] = searches[s];
    done &= search[s].bits == 0;
  }
  if (done) return;
  for (int i = static_cast<int>(threadIdx.x); i < kSearches * kBins; i += kSearchThreads) bins[i] = 0;
  __syncthreads();
  if (used) n = *used <= static_cast<Count>(n) ? static_cast<int64_t>(*used) : 0;
  const int64_t stride = int64_t{gridDim.x} * kSearchThreads;
  for (int64_t i = int64_t{blockIdx.x} * kSearchThreads + threadIdx.x; i < n; i += stride) {
    const uint32_t key = keys[i];
#pragma unroll
    for (int s = 0; s < kSearches; s++) {
      const int bin = bin_of(key, search[s]);
      if (bin >= 0) atomicAdd(&bins[s * kBins + bin], 1u);
    }
  }
  __syncthreads();
#pragma unroll
  for (int s = 0; s < kSearches; s++) {
    if (search[s].bits != 0) add_bins(bins + s * kBins, histograms + s * kBins);
  }
  if (!last_to_arrive(arrived, gridDim.x)) return;
#pragma unroll
  for (int s = 0; s < kSearches; s++) {
    if (search[s].bits != 0) narrow(searches + s, histograms + s * kBins);
  }
}

template <int kSearches>
cudaError_t queue_rounds(const uint32_t* keys, int64_t n, const Count* used, Search* searches, Count* histograms,
                         unsigned* arrived, void* stream) {
  constexpr int64_t kKeysPerThread = 4;  // less thread blocks have less bins to add up
  const int64_t work = (n + kKeysPerThread * kSearchThreads - 1) / (kKeysPerThread * kSearchThreads);
  cudaError_t error = cudaSuccess;
  for (int round = 0; round < kRounds && error == cudaSuccess; round++) {
    error = launch_persistent(search_round<kSearches>, work, kSearchThreads, stream, keys, n, used, searches,
                              histograms, arrived);
  }
  return error;
}

}  // namespace

cudaError_t search_keys(const uint32_t* keys, int64_t n, const Count* used, Search* searches, int count,
                        Count* histograms, unsigned* arrived, void* stream) {
  return count == 1 ? queue_rounds<1>(keys, n, used, searches, histograms, arrived, stream)
                    : queue_rounds<2>(keys, n, used, searches, histograms, arrived, stream);
}

}  // namespace aimfair::cuda
