#pragma once

#include <cstdint>
#include <functional>

// What the CUDA launchers share. They take lists of tensors in host memory whose pointers are device memory, queue all
// work on one stream (a cudaStream_t, of the current device) and return a cudaError_t. Lists are copied at once: they
// may go away when the call returns. Unless said otherwise nothing waits for the device, so that calls can be captured
// in a CUDA graph.

namespace aimfair::cuda {

// Device memory for the time of one call: at least `bytes` bytes, aligned to 256, that stay valid until all work that
// the call queues is done. Null: there is no such memory; the launcher then returns cudaErrorMemoryAllocation.
using Allocate = std::function<void*(int64_t bytes)>;

}  // namespace aimfair::cuda
