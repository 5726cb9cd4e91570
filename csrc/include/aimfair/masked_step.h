#pragma once

#include <cstdint>

#include "aimfair/dtype.h"
#include "aimfair/mask.h"
#include "aimfair/update.h"

// masked step: AdamW or SGD on the selected elements of all tensors. An element that is not selected keeps every bit.

namespace aimfair {

constexpr int kMaxStates = 3;

struct StepTensor {
  void* param = nullptr;  // numel elements of dtype
  const void* grad = nullptr;
  DType dtype = DType::float32;
  int64_t numel = 0;
  int64_t first_block = 0;  // of this tensor in the mask
  double step = 1;          // number of this step, from 1
  // Dense state: numel floats each. Compact state: one float per selected element, in index order.
  // AdamW: exp_avg, exp_avg_sq, max_exp_avg_sq (amsgrad). SGD: momentum_buffer (momentum != 0).
  float* state[kMaxStates] = {};
  float* master = nullptr;  // fp32 weights, same form as the state; null: the parameter is the only copy
};

struct StepOptions {
  MaskView mask;
  bool compact = false;              // form of state and master
  bool maximize = false;             // step up the gradient
  bool stochastic_rounding = false;  // of bfloat16 parameters; not with master weights
  uint64_t seed = 0;                 // of the stochastic rounding
  float inverse_scale = 1.0f;        // g = grad * inverse_scale
};

namespace cpu {

// The result does not depend on `threads` (0: all that OpenMP offers). Tensors must not overlap.
void masked_adamw(const StepTensor* tensors, int64_t count, const AdamWConfig& config, bool amsgrad,
                  const StepOptions& options, int threads = 0);
void masked_sgd(const StepTensor* tensors, int64_t count, const SgdConfig& config, const StepOptions& options,
                int threads = 0);

}  // namespace cpu
}  // namespace aimfair
