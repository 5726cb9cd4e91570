#include "aimfair/accumulate.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "aimfair/mask.h"

// accumulate on the device: one thread block for each block of 1024 elements of all tensors, in a grid-stride loop.
// Partial norms are kept per block and added in order by a second kernel, so that repeated runs give the same bits.

namespace aimfair::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = kBlock / kThreads;

__device__ float load_grad(const AccumulateTensor& tensor, int64_t at) {
  switch (tensor.dtype) {
    case DType::bfloat16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(tensor.grad)[at]);
    case DType::float16:
      return __half2float(static_cast<const __half*>(tensor.grad)[at]);
    case DType::float32:
      break;
  }
  return static_cast<const float*>(tensor.grad)[at];
}

__device__ void zero_grad(const AccumulateTensor& tensor, int64_t at) {
  if (tensor.dtype == DType::float32) {
    static_cast<float*>(tensor.grad)[at] = 0.0f;
  } else {
    static_cast<uint16_t*>(tensor.grad)[at] = 0;
  }
}

// The tensor that owns a block: the last one whose first block is not past it and that is not empty.
__device__ int64_t tensor_of(const int64_t* first_blocks, int64_t count, int64_t block) {
  int64_t low = 0, high = count;  // first_blocks[low] <= block < first_blocks[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (first_blocks[middle] <= block) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Sum over the thread block, in a fixed order; the result is thread 0's.
__device__ double block_sum(double value) {
  __shared__ double shared[kThreads];
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (threadIdx.x < width) shared[threadIdx.x] += shared[threadIdx.x + width];
    __syncthreads();
  }
  const double total = shared[0];
  __syncthreads();
  return total;
}

__global__ void __launch_bounds__(kThreads)
    accumulate_blocks(const AccumulateTensor* tensors, const int64_t* first_blocks, int64_t count, int64_t blocks,
                      AccumulateOptions options, const float* grad_scale, double* partials, int64_t* nonfinite) {
  const float inverse_scale =
      grad_scale ? static_cast<float>(1.0 / static_cast<double>(*grad_scale)) : options.inverse_scale;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t t = tensor_of(first_blocks, count, block);
    const AccumulateTensor tensor = tensors[t];
    const int64_t begin = (block - first_blocks[t]) * kBlock;
    double squares = 0;
    int bad = 0;
    for (int i = 0; i < kPerThread; i++) {
      const int64_t at = begin + i * kThreads + threadIdx.x;
      if (at >= tensor.numel) break;
      const float g = load_grad(tensor, at) * inverse_scale;
      if (isfinite(g)) {
        const float square = g * g;
        if (tensor.sum) tensor.sum[at] += options.weight * g;
        if (tensor.square) tensor.square[at] += square;
        if (tensor.second_sum) tensor.second_sum[at] += options.second_weight * g;
        squares += square;
      } else {
        bad++;
      }
      if (options.zero_grads) zero_grad(tensor, at);
    }
    if (bad) atomicAdd(reinterpret_cast<unsigned long long*>(nonfinite + t), static_cast<unsigned long long>(bad));
    const double total = block_sum(squares);
    if (threadIdx.x == 0) partials[block] = total;
  }
}

__global__ void __launch_bounds__(kThreads)
    add_partials(const int64_t* first_blocks, int64_t count, const double* partials, double* square_norms) {
  for (int64_t t = blockIdx.x; t < count; t += gridDim.x) {
    double total = 0;
    for (int64_t block = first_blocks[t] + threadIdx.x; block < first_blocks[t + 1]; block += kThreads) {
      total += partials[block];
    }
    total = block_sum(total);
    if (threadIdx.x == 0) square_norms[t] += total;
  }
}

}  // namespace

int accumulate(const AccumulateTensor* tensors, const int64_t* first_blocks, int64_t count, int64_t blocks,
               const AccumulateOptions& options, const float* grad_scale, double* partials, double* square_norms,
               int64_t* nonfinite, void* stream) {
  if (blocks == 0) return cudaSuccess;
  constexpr int64_t kMaxGrid = 1 << 16;
  const auto grid = [](int64_t wanted) { return static_cast<unsigned>(wanted < kMaxGrid ? wanted : kMaxGrid); };
  const auto on = static_cast<cudaStream_t>(stream);
  accumulate_blocks<<<grid(blocks), kThreads, 0, on>>>(tensors, first_blocks, count, blocks, options, grad_scale,
                                                       partials, nonfinite);
  if (const cudaError_t error = cudaGetLastError()) return error;
  add_partials<<<grid(count), kThreads, 0, on>>>(first_blocks, count, partials, square_norms);
  return cudaGetLastError();
}

}  // namespace aimfair::cuda
