#pragma once

#include <cmath>
#include <cstdint>

#include "aimfair/macros.h"
#include "aimfair/scalar.h"

// The optimizer formulas for one element; F is float or a vector of floats. Every operation is rounded once and none
// is fused, so that all instruction sets give the same bits. A step is cut in three, so that a kernel may do the
// middle part, the only one that touches the state, on selected elements that it has moved together:
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

// What a step needs of the configuration alone, computed in double and rounded once.
struct AdamWConstants {
  float beta1, one_minus_beta1;
  float beta2, one_minus_beta2;
  float eps;
};

inline AdamWConstants constants_of(const AdamWConfig& config) {
  return {static_cast<float>(config.beta1), static_cast<float>(1.0 - config.beta1), static_cast<float>(config.beta2),
          static_cast<float>(1.0 - config.beta2), static_cast<float>(config.eps)};
}

// What depends on the learning rate and the number of the step.
struct AdamWScalars {
  float decay;                     // 1 - lr * weight_decay
  float step_size;                 // lr / (1 - beta1^step)
  float inverse_bias_correction2;  // 1 / sqrt(1 - beta2^step)
};

// base^exponent by squaring: the same operations on every processor, which std::pow does not promise.
AIMFAIR_HOST_DEVICE double power(double base, uint64_t exponent) {
  double result = 1.0;
  for (; exponent != 0; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}

// `step` counts from 1; `lr` stands for that of the configuration. Divisions and the root are in float.
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

// SGD as in torch.optim.SGD: coupled weight decay, and the first step takes the gradient itself as momentum, so that
// dampening does not apply to it. State: momentum_buffer, if there is momentum.
template <bool kMomentum>
struct Sgd {
  using Config = SgdConfig;
  using Constants = SgdConstants;
  using Scalars = SgdScalars;
  static constexpr int kStates = kMomentum ? 1 : 0;
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

}  // namespace aimfair
