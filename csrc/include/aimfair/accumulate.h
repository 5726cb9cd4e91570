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

// A list of tensors in device memory, valid as StepPlan (step.h) is.
struct AccumulatePlan {
  void* memory = nullptr;
  int64_t count = 0;   // tensors
  int64_t blocks = 0;  // of 1024 elements
};

// Bytes of device memory, aligned to 16, that a plan needs.
int64_t accumulate_plan_bytes(int64_t count, int64_t blocks);

// Queues the copy of the list into `memory` and describes the plan in *plan.
int make_accumulate_plan(const AccumulateTensor* tensors, int64_t count, void* memory, void* stream,
                         AccumulatePlan* plan);

// Queues the copy of other addresses of the gradients, one for each tensor, into the memory of a plan.
int set_accumulate_grads(void* const* grads, int64_t count, void* memory, void* stream);

// The same on the device (see cuda.h), in one launch. square_norms and nonfinite are device memory.
int accumulate(const AccumulatePlan& plan, const AccumulateOptions& options, double* square_norms, int64_t* nonfinite,
               void* stream);

}  // namespace cuda
}  // namespace aimfair
