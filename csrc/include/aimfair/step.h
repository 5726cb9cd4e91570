#pragma once

#include <cmath>
#include <cstdint>

#include "aimfair/mask.h"
#include "aimfair/moments.h"
#include "aimfair/numeric.h"

// step: AdamW or SGD on the selected elements of all tensors. Elements that are not selected keep every bit.
//
// First the optimizer formulas for one element, where F is float or a vector of floats; then the launchers. Every
// operation is rounded once and none is fused, so that all instruction sets give the same bits. A step has three parts,
// so that a kernel can gather the selected elements for the middle one, the only one that touches the state:
//
//     param = apply(param, direction(prepare(param, grad), state))

namespace aimfair {

struct AdamWConfig {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 1e-2;
};

// Values that depend on the configuration alone, computed in double and rounded once.
struct AdamWConstants {
  float beta1, one_minus_beta1;
  float beta2, one_minus_beta2;
  float eps;
};

inline AdamWConstants constants_of(const AdamWConfig& config) {
  return {static_cast<float>(config.beta1), static_cast<float>(1.0 - config.beta1), static_cast<float>(config.beta2),
          static_cast<float>(1.0 - config.beta2), static_cast<float>(config.eps)};
}

// Values that depend on the learning rate and the number of the step.
struct AdamWScalars {
  float decay;                     // 1 - lr * weight_decay
  float step_size;                 // lr / (1 - beta1^step)
  float inverse_bias_correction2;  // 1 / sqrt(1 - beta2^step)
};

// base^exponent by squaring: the same operations on every processor, which std::pow does not guarantee.
AIMFAIR_HOST_DEVICE double power(double base, uint64_t exponent) {
  double result = 1.0;
  for (; exponent != 0; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}

// `step` counts from 1; `lr` replaces that of the configuration. Divisions and the square root are in float.
AIMFAIR_HOST_DEVICE AdamWScalars scalars_of(const AdamWConfig& config, double lr, uint64_t step) {
  AdamWScalars scalars;
  scalars.decay = static_cast<float>(1.0 - lr * config.weight_decay);
  scalars.step_size = static_cast<float>(lr) / static_cast<float>(1.0 - power(config.beta1, step));
  scalars.inverse_bias_correction2 = 1.0f / square_root(static_cast<float>(1.0 - power(config.beta2, step)));
  return scalars;
}

// AdamW (arXiv 1711.05101), with AMSGrad (arXiv 1904.09237) as an option. State: exp_avg, exp_avg_sq, max_exp_avg_sq.
template <bool kAmsgrad>
struct AdamW {
  using Config = AdamWConfig;
  using Constants = AdamWConstants;
  using Scalars = AdamWScalars;
  static constexpr int kStates = kAmsgrad ? 3 : 2;
  static constexpr int kRootState = 1;  // in 8 bits its square root is kept
  AdamWConstants constants;
  AdamWScalars scalars;

  template <class F>
  AIMFAIR_HOST_DEVICE F prepare(F, F grad) const {
    return grad;
  }

  template <class F>
  AIMFAIR_HOST_DEVICE F direction(F grad, F* state) const {
    state[0] = state[0] * F(constants.beta1) + grad * F(constants.one_minus_beta1);
    state[1] = state[1] * F(constants.beta2) + (grad * grad) * F(constants.one_minus_beta2);
    F second_moment = state[1];
    if constexpr (kAmsgrad) second_moment = state[2] = greater_or_second(state[2], state[1]);
    const F denominator = square_root(second_moment) * F(scalars.inverse_bias_correction2) + F(constants.eps);
    return (F(scalars.step_size) * state[0]) / denominator;
  }

  template <class F>
  AIMFAIR_HOST_DEVICE F apply(F param, F direction) const {
    return param * F(scalars.decay) - direction;
  }
};

struct SgdConfig {
  double lr = 1e-3;
  double momentum = 0.0;
  double dampening = 0.0;
  double weight_decay = 0.0;
  bool nesterov = false;
};

struct SgdConstants {
  float momentum;
  float one_minus_dampening;
  float weight_decay;
  bool nesterov;
};

inline SgdConstants constants_of(const SgdConfig& config) {
  return {static_cast<float>(config.momentum), static_cast<float>(1.0 - config.dampening),
          static_cast<float>(config.weight_decay), config.nesterov};
}

struct SgdScalars {
  float lr;
  bool first_step;
};

AIMFAIR_HOST_DEVICE SgdScalars scalars_of(const SgdConfig&, double lr, uint64_t step) {
  return {static_cast<float>(lr), step <= 1};
}

// SGD as in torch.optim.SGD: coupled weight decay; the first step sets the momentum buffer to the gradient, without
// dampening. State: momentum_buffer, if there is momentum.
template <bool kMomentum>
struct Sgd {
  using Config = SgdConfig;
  using Constants = SgdConstants;
  using Scalars = SgdScalars;
  static constexpr int kStates = kMomentum ? 1 : 0;
  static constexpr int kRootState = -1;
  SgdConstants constants;
  SgdScalars scalars;

  template <class F>
  AIMFAIR_HOST_DEVICE F prepare(F param, F grad) const {
    return constants.weight_decay != 0.0f ? grad + F(constants.weight_decay) * param : grad;
  }

  template <class F>
  AIMFAIR_HOST_DEVICE F direction(F grad, F* state) const {
    if constexpr (kMomentum) {
      state[0] = scalars.first_step ? grad : F(constants.momentum) * state[0] + F(constants.one_minus_dampening) * grad;
      grad = constants.nesterov ? grad + F(constants.momentum) * state[0] : state[0];
    }
    return F(scalars.lr) * grad;
  }

  template <class F>
  AIMFAIR_HOST_DEVICE F apply(F param, F direction) const {
    return param - direction;
  }
};

constexpr int kMaxStates = 3;

struct StepTensor {
  void* param = nullptr;  // numel elements of dtype
  const void* grad = nullptr;
  DType dtype = DType::float32;
  int64_t numel = 0;
  int64_t first_block = 0;  // of the tensor in the mask
  float* step = nullptr;    // steps taken so far, one value; the call adds 1
  // Dense state: numel values each. Compact state: one value per selected element, in index order. StepOptions::moments
  // says of which type; with bits8 the bases of all blocks precede them.
  // AdamW: exp_avg, exp_avg_sq, max_exp_avg_sq (amsgrad). SGD: momentum_buffer (momentum != 0).
  void* state[kMaxStates] = {};
  float* master = nullptr;  // fp32 weights in the form of the state; null: the parameter is the only copy
};

struct StepOptions {
  MaskView mask;
  Moments moments = Moments::float32;  // type of the state; with amsgrad not bits8
  bool compact = false;                // form of the state and the master weights
  bool maximize = false;               // step in the direction of the gradient
  bool stochastic_rounding = false;    // of bfloat16 parameters; not with master weights
  uint64_t seed = 0;                   // of the stochastic rounding of parameters and state
  // One value each, or null, on the device of the tensors: a captured CUDA graph reads them at every replay.
  const float* grad_scale = nullptr;  // gradients are divided by it
  const float* found_inf = nullptr;   // not 0: the call changes nothing, not even the steps
  const void* lr = nullptr;           // replaces that of the configuration
  bool lr_is_double = false;          // lr points to a double, else to a float
};

// The learning rate of a call.
AIMFAIR_HOST_DEVICE double learning_rate(const StepOptions& options, double configured) {
  if (!options.lr) return configured;
  return options.lr_is_double ? *static_cast<const double*>(options.lr)
                              : static_cast<double>(*static_cast<const float*>(options.lr));
}

namespace cpu {

// The result does not depend on `threads` (0: OpenMP's default). Tensors must not overlap.
void masked_adamw(const StepTensor* tensors, int64_t count, const AdamWConfig& config, bool amsgrad,
                  const StepOptions& options, int threads = 0);
void masked_sgd(const StepTensor* tensors, int64_t count, const SgdConfig& config, const StepOptions& options,
                int threads = 0);

}  // namespace cpu

namespace cuda {

// A list of tensors in device memory; one launch steps all of them. A plan stays valid while no pointer and no size in
// it changes; those of the gradients can be replaced. Calls with the same plan must not overlap in time: keep them on
// one stream.
struct StepPlan {
  void* memory = nullptr;
  int64_t count = 0;   // tensors
  int64_t blocks = 0;  // of 1024 elements
};

// Bytes of device memory, aligned to 16, that a plan needs.
int64_t step_plan_bytes(int64_t count);

// Queues the copy of the list into `memory` and describes the plan in *plan.
int make_step_plan(const StepTensor* tensors, int64_t count, void* memory, void* stream, StepPlan* plan);

// Queues the copy of other addresses of the gradients, one for each tensor, into the memory of a plan.
int set_step_grads(const void* const* grads, int64_t count, void* memory, void* stream);

// One launch each.
int masked_adamw(const StepPlan& plan, const AdamWConfig& config, bool amsgrad, const StepOptions& options,
                 void* stream);
int masked_sgd(const StepPlan& plan, const SgdConfig& config, const StepOptions& options, void* stream);

}  // namespace cuda

}  // namespace aimfair
