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
  float* step = nullptr;    // steps taken so far, one value; the call raises it by 1
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
  // One value each, or null. They are in the memory of the tensors: a captured CUDA graph reads them at every replay.
  const float* grad_scale = nullptr;  // gradients are divided by it
  const float* found_inf = nullptr;   // not 0: nothing changes, not even the steps
  const void* lr = nullptr;           // in place of that of the configuration
  bool lr_is_double = false;          // lr is a double, else a float
};

// The learning rate of a call.
AIMFAIR_HOST_DEVICE double learning_rate(const StepOptions& options, double configured) {
  if (!options.lr) return configured;
  return options.lr_is_double ? *static_cast<const double*>(options.lr)
                              : static_cast<double>(*static_cast<const float*>(options.lr));
}

namespace cpu {

// The result does not depend on `threads` (0: all that OpenMP offers). Tensors must not overlap.
void masked_adamw(const StepTensor* tensors, int64_t count, const AdamWConfig& config, bool amsgrad,
                  const StepOptions& options, int threads = 0);
void masked_sgd(const StepTensor* tensors, int64_t count, const SgdConfig& config, const StepOptions& options,
                int threads = 0);

}  // namespace cpu

namespace cuda {

// A list of tensors in device memory: one launch steps any number of them. It is made once and holds for as long as no
// pointer and no size in it changes. Calls with one plan must not overlap in time: keep them on one stream.
struct StepPlan {
  void* memory = nullptr;
  int64_t count = 0;   // tensors
  int64_t blocks = 0;  // of 1024 elements
};

// Bytes of device memory, aligned to 16, that a plan needs.
int64_t step_plan_bytes(int64_t count);

// Queues the making of a plan in `memory`, and describes it in *plan.
int make_step_plan(const StepTensor* tensors, int64_t count, void* memory, void* stream, StepPlan* plan);

// One launch each.
int masked_adamw(const StepPlan& plan, const AdamWConfig& config, bool amsgrad, const StepOptions& options,
                 void* stream);
int masked_sgd(const StepPlan& plan, const SgdConfig& config, const StepOptions& options, void* stream);

}  // namespace cuda
}  // namespace aimfair
