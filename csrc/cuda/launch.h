#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "aimfair/cuda.h"

// The host side of a launcher: queueing kernels, and tables in device memory, such as the list of tensors that a kernel
// works on. The sources contain no <<<>>>, so that a C++ compiler accepts them too (tests/cuda_emulator).

namespace aimfair::cuda {

// Thread blocks of `threads` threads, in one dimension, on a cudaStream_t.
inline cudaLaunchConfig_t launch_config(int64_t blocks, int threads, void* stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(stream);
  return config;
}

// Queues kernel(arguments...).
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, void* stream,
                   const Arguments&... arguments) {
  const cudaLaunchConfig_t config = launch_config(blocks, threads, stream);
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// The same for a kernel whose thread blocks wait for each other: all must fit on the device at once (resident_blocks).
template <class... Parameters, class... Arguments>
cudaError_t launch_cooperative(void (*kernel)(Parameters...), int64_t blocks, int threads, void* stream,
                               const Arguments&... arguments) {
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config = launch_config(blocks, threads, stream);
  config.attrs = &cooperative;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// Evaluates a call that returns a cudaError_t, or an int that is one, and returns its error from the calling function.
#define AIMFAIR_TRY(...)                                                                              \
  do {                                                                                                \
    if (const auto error = static_cast<cudaError_t>(__VA_ARGS__); error != cudaSuccess) return error; \
  } while (false)

// Thread blocks of a kernel that fit on the current device at once. Cached per kernel and device: the query takes as
// long as a launch.
cudaError_t resident_blocks(const void* kernel, int threads, int64_t* blocks);

// Thread blocks for a kernel that loops over `work` units, one at a time in each: all fit on the device at once.
template <class... Parameters>
cudaError_t persistent_blocks(void (*kernel)(Parameters...), int64_t work, int threads, int64_t* blocks) {
  AIMFAIR_TRY(resident_blocks(reinterpret_cast<const void*>(kernel), threads, blocks));
  *blocks = std::min(work, *blocks);
  return cudaSuccess;
}

// Queues such a kernel.
template <class... Parameters, class... Arguments>
cudaError_t launch_persistent(void (*kernel)(Parameters...), int64_t work, int threads, void* stream,
                              const Arguments&... arguments) {
  if (work == 0) return cudaSuccess;
  int64_t blocks = 0;
  AIMFAIR_TRY(persistent_blocks(kernel, work, threads, &blocks));
  return launch(kernel, blocks, threads, stream, arguments...);
}

// Gathers arrays in host memory and copies them to the device together. The copy travels as kernel parameters: it needs
// no pinned memory, does not synchronize, and becomes part of a CUDA graph that is being captured.
class Upload {
 public:
  // Adds n values and returns their offset in the table, in bytes.
  template <class T>
  int64_t add(const T* values, int64_t n) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= kAlignment);
    return add_bytes(values, n * static_cast<int64_t>(sizeof(T)));
  }
  template <class T>
  int64_t add(const std::vector<T>& values) {
    return add(values.data(), static_cast<int64_t>(values.size()));
  }
  // The same for n values whose bits are zero.
  template <class T>
  int64_t add_zeros(int64_t n) {
    return add_bytes(nullptr, n * static_cast<int64_t>(sizeof(T)));
  }

  int64_t bytes() const { return static_cast<int64_t>(table_.size()); }

  // Queues the copy to `to`, aligned to kAlignment, with room for bytes(), and zeroes the `zeros` bytes after them, a
  // multiple of kAlignment.
  cudaError_t copy(void* to, void* stream, int64_t zeros = 0) const;

  static constexpr int64_t kAlignment = 16;

 private:
  int64_t add_bytes(const void* from, int64_t bytes);

  std::vector<char> table_;
};

// The bytes that an array of this many bytes takes in a table.
constexpr int64_t rounded_up(int64_t bytes) {
  return (bytes + Upload::kAlignment - 1) / Upload::kAlignment * Upload::kAlignment;
}

// The array at the offset that Upload::add returned.
template <class T>
T* array_at(void* table, int64_t place) {
  return reinterpret_cast<T*>(static_cast<char*>(table) + place);
}

// The first unit of work of each tensor, and the number of units at the end: count + 1 entries.
template <class Units>
std::vector<int64_t> first_units(int64_t tensors, const Units& units) {
  std::vector<int64_t> firsts(static_cast<size_t>(tensors) + 1);
  for (int64_t t = 0; t < tensors; t++) firsts[static_cast<size_t>(t) + 1] = firsts[static_cast<size_t>(t)] + units(t);
  return firsts;
}

// Queues an inclusive prefix sum in place: values[i] becomes values[0] + ... + values[i].
cudaError_t inclusive_scan(int64_t* values, int64_t n, const Allocate& allocate, void* stream);

}  // namespace aimfair::cuda
