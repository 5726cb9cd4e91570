#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

// Launching kernels. The sources hold no <<<>>>, so that a C++ compiler takes them too (tests/cuda_emulator).

namespace aimfair::cuda {

// Queues kernel(arguments...) on a cudaStream_t: `blocks` thread blocks of `threads` threads, in one dimension.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, void* stream,
                   const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// Thread blocks of a kernel that the current device holds at once. CUDA is asked once for each kernel and device, as
// that takes as long as a launch.
cudaError_t resident_blocks(const void* kernel, int threads, int64_t* blocks);

// Queues a kernel that loops over `work` units, one at a time in each thread block.
template <class... Parameters, class... Arguments>
cudaError_t launch_persistent(void (*kernel)(Parameters...), int64_t work, int threads, void* stream,
                              const Arguments&... arguments) {
  if (work == 0) return cudaSuccess;
  int64_t resident = 0;
  const cudaError_t error = resident_blocks(reinterpret_cast<const void*>(kernel), threads, &resident);
  if (error != cudaSuccess) return error;
  return launch(kernel, std::min(work, resident), threads, stream, arguments...);
}

}  // namespace aimfair::cuda
