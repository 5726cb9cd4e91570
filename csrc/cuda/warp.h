#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "aimfair/numeric.h"

// Collective operations of the threads of a warp, a thread block or a grid. All of them must call, at the same place.

namespace aimfair::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / kWarp; }

// Sum of the values of the lanes before this one; *total is the sum over all lanes.
template <class T>
__device__ __forceinline__ T exclusive_sum(T value, T* total) {
  T sum = value;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const T other = __shfl_up_sync(kAllLanes, sum, distance);
    if (lane_id() >= distance) sum += other;
  }
  *total = __shfl_sync(kAllLanes, sum, kWarp - 1);
  return sum - value;
}

// Sum over the lanes, returned to each of them, in a fixed order.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

// The greatest value of the lanes, returned to each of them.
__device__ __forceinline__ uint32_t warp_greatest(uint32_t value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = greatest(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

// Sum over a thread block of kThreads threads, returned to each of them, in a fixed order.
template <int kThreads, class T>
static __device__ __forceinline__ T block_sum(T value) {
  __shared__ T sums[kThreads / kWarp];
  value = warp_sum(value);
  __syncthreads();  // the sums of the previous call have been read
  if (lane_id() == 0) sums[warp_id()] = value;
  __syncthreads();
  T total = sums[0];
#pragma unroll
  for (int warp = 1; warp < kThreads / kWarp; warp++) total += sums[warp];
  return total;
}

// Like exclusive_sum, over the threads of a thread block of kThreads.
template <int kThreads, class T>
static __device__ __forceinline__ T block_exclusive_sum(T value, T* total) {
  __shared__ T sums[kThreads / kWarp];
  T sum_of_warp;
  T before = exclusive_sum(value, &sum_of_warp);
  __syncthreads();  // the sums of the previous call have been read
  if (lane_id() == 0) sums[warp_id()] = sum_of_warp;
  __syncthreads();
  *total = 0;
#pragma unroll
  for (int warp = 0; warp < kThreads / kWarp; warp++) {
    if (warp < warp_id()) before += sums[warp];
    *total += sums[warp];
  }
  return before;
}

// The owner of unit i, where tensor t owns units firsts[t] <= i < firsts[t + 1] and firsts[0] <= i < firsts[count].
// A search in which the lanes of a warp probe 32 places at once.
__device__ __forceinline__ int64_t owner_of(const int64_t* firsts, int64_t count, int64_t i) {
  int64_t low = 0, size = count;  // the owner is one of these
  while (size > 1) {
    const int64_t stride = (size + kWarp - 1) / kWarp, offset = lane_id() * stride;
    const bool reached = offset < size && firsts[low + offset] <= i;  // in the first lanes only
    const int64_t last = __popc(__ballot_sync(kAllLanes, reached)) - 1;
    low += last * stride;
    size = size - last * stride < stride ? size - last * stride : stride;
  }
  return low;
}

// True in all threads of the last of `parties` thread blocks to arrive; what the others wrote before is visible to it.
// *arrived must be 0 and is 0 again afterwards.
static __device__ __forceinline__ bool last_to_arrive(unsigned* arrived, unsigned parties) {
  __shared__ bool is_last;
  __syncthreads();  // all threads of this block have written, and read is_last of the previous call
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicAdd(arrived, 1u) == parties - 1;
    if (is_last) *arrived = 0;
    __threadfence();
  }
  __syncthreads();
  return is_last;
}

// Where the thread blocks of a cooperative launch wait for each other. In device memory, zero at first.
struct Meeting {
  unsigned arrived = 0, round = 0;
};

// Waits until all thread blocks have arrived and all threads of the last one have called last(). What was written
// before is visible to all. Only in kernels of launch_cooperative.
template <class Last>
static __device__ __forceinline__ void meet(Meeting* meeting, const Last& last) {
  volatile unsigned* round = &meeting->round;
  const unsigned own = threadIdx.x == 0 ? *round : 0;  // it changes only after this thread block has arrived
  const bool is_last = last_to_arrive(&meeting->arrived, gridDim.x);
  if (is_last) {
    last();
    __syncthreads();  // all threads have returned
  }
  if (threadIdx.x == 0) {
    __threadfence();
    if (is_last) {
      *round = own + 1;
    } else {
      while (*round == own) __nanosleep(32);
    }
    __threadfence();
  }
  __syncthreads();
}

}  // namespace aimfair::cuda
