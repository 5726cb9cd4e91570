#pragma once

#include <cstdint>
#include <functional>

// Conventions of the CUDA launchers. They take lists of tensors in host memory whose pointers are device memory, queue
// all work on one stream (a cudaStream_t of the current device) and return a cudaError_t. Lists are copied before the
// call returns. Unless documented otherwise, calls do not synchronize and can be captured in a CUDA graph.

namespace aimfair::cuda {

// Allocates scratch memory on the device for one call: at least `bytes` bytes, aligned to 256, valid until all work
// that the call queues is done. If it returns null, the launcher returns cudaErrorMemoryAllocation.
using Allocate = std::function<void*(int64_t bytes)>;

}  // namespace aimfair::cuda
