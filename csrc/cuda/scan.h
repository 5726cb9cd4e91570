#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "aimfair/cuda.h"

namespace aimfair::cuda {

// Queues a running sum in place: values[i] becomes values[0] + ... + values[i].
cudaError_t inclusive_scan(int64_t* values, int64_t n, const Allocate& allocate, void* stream);

}  // namespace aimfair::cuda
