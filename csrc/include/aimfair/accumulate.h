#pragma once

#include <cstdint>

#include "aimfair/dtype.h"

// accumulate: one batch of gradients into the statistics of one source, in one pass over all tensors.

namespace aimfair {

struct AccumulateTensor {
  void* grad = nullptr;  // numel elements of dtype; written only by zero_grads
  DType dtype = DType::float32;
  int64_t numel = 0;
  float* sum = nullptr;         // sum        += weight * g           (null: not kept)
  float* square = nullptr;      // square     += g * g                (null: not kept)
  float* second_sum = nullptr;  // second_sum += second_weight * g    (null: not kept)
};

struct AccumulateOptions {
  float weight = 1.0f;
  float second_weight = 0.0f;
  float inverse_scale = 1.0f;  // g = grad * inverse_scale
  bool zero_grads = false;
};

namespace cpu {

// Adds to square_norms[t] the sum of g * g and to nonfinite[t] the number of NaN and infinite gradient values, which
// add nothing anywhere else. The result does not depend on `threads` (0: all that OpenMP offers).
void accumulate(const AccumulateTensor* tensors, int64_t count, const AccumulateOptions& options, double* square_norms,
                int64_t* nonfinite, int threads = 0);

}  // namespace cpu

namespace cuda {

// The same on the device: every pointer is device memory, `tensors` included. `grad_scale`: a device scalar that
// gradients are divided by, in place of options.inverse_scale (null: not used). `first_blocks` has count + 1 entries;
// `partials` is scratch of one double per block. `stream` is a cudaStream_t. Returns a cudaError_t.
int accumulate(const AccumulateTensor* tensors, const int64_t* first_blocks, int64_t count, int64_t blocks,
               const AccumulateOptions& options, const float* grad_scale, double* partials, double* square_norms,
               int64_t* nonfinite, void* stream);

}  // namespace cuda
}  // namespace aimfair
