#pragma once

#include <cstdint>

#include "aimfair/cuda.h"
#include "aimfair/numeric.h"

// accumulate: adds one batch of gradients to the statistics of one source, in one pass over all tensors.

namespace aimfair {

struct AccumulateTensor {
  void* grad = nullptr;  // numel elements of dtype; only zero_grads writes them
  DType dtype = DType::float32;
  int64_t numel = 0;
  float* sum = nullptr;         // sum        += weight * g           (null: not kept)
  float* square = nullptr;      // square     += g * g                (null: not kept)
  float* second_sum = nullptr;  // second_sum += second_weight * g    (null: not kept)
};

struct AccumulateOptions {
  float weight = 1.0f;
  float second_weight = 0.0f;
  bool zero_grads = false;
  const float* grad_scale = nullptr;  // one value on the device of the tensors: g = grad / *grad_scale (null: g = grad)
};

namespace cpu {

// Adds the sum of g * g to square_norms[t] and the number of NaN and infinite gradient values to nonfinite[t]; those
// values are left out of all sums. The result does not depend on `threads` (0: OpenMP's default).
void accumulate(const AccumulateTensor* tensors, int64_t count, const AccumulateOptions& options, double* square_norms,
                int64_t* nonfinite, int threads = 0);

}  // namespace cpu

namespace cuda {

// The same on the device (see cuda.h), in one launch after the copy of the list. square_norms and nonfinite are device
// memory.
int accumulate(const AccumulateTensor* tensors, int64_t count, const AccumulateOptions& options, double* square_norms,
               int64_t* nonfinite, const Allocate& allocate, void* stream);

}  // namespace cuda
}  // namespace aimfair
