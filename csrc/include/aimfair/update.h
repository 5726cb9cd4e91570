#pragma once

#include <cmath>

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

// What a step needs of the configuration, computed in double and rounded once.
struct AdamWScalars {
  float decay;  // 1 - lr * weight_decay
  float beta1, one_minus_beta1;
  float beta2, one_minus_beta2;
  float step_size;                 // lr / (1 - beta1^step)
  float inverse_bias_correction2;  // 1 / sqrt(1 - beta2^step)
  float eps;
};

// `step` counts from 1.
inline AdamWScalars adamw_scalars(const AdamWConfig& config, double step) {
  AdamWScalars scalars;
  scalars.decay = static_cast<float>(1.0 - config.lr * config.weight_decay);
  scalars.beta1 = static_cast<float>(config.beta1);
  scalars.one_minus_beta1 = static_cast<float>(1.0 - config.beta1);
  scalars.beta2 = static_cast<float>(config.beta2);
  scalars.one_minus_beta2 = static_cast<float>(1.0 - config.beta2);
  scalars.step_size = static_cast<float>(config.lr / (1.0 - std::pow(config.beta1, step)));
  scalars.inverse_bias_correction2 = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(config.beta2, step)));
  scalars.eps = static_cast<float>(config.eps);
  return scalars;
}

// AdamW (arXiv 1711.05101), with AMSGrad (arXiv 1904.09237) as an option. State: exp_avg, exp_avg_sq, max_exp_avg_sq.
template <bool kAmsgrad>
struct AdamW {
  static constexpr int kStates = kAmsgrad ? 3 : 2;
  AdamWScalars scalars;

  template <class F>
  AIMFAIR_HOST_DEVICE F prepare(F, F grad) const {
    return grad;
  }

  template <class F>
  AIMFAIR_HOST_DEVICE F direction(F grad, F* state) const {
    state[0] = state[0] * F(scalars.beta1) + grad * F(scalars.one_minus_beta1);
    state[1] = state[1] * F(scalars.beta2) + (grad * grad) * F(scalars.one_minus_beta2);
    F second_moment = state[1];
    if constexpr (kAmsgrad) second_moment = state[2] = greater_or_second(state[2], state[1]);
    const F denominator = square_root(second_moment) * F(scalars.inverse_bias_correction2) + F(scalars.eps);
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

struct SgdScalars {
  float lr;
  float momentum;
  float one_minus_dampening;
  float weight_decay;
  bool nesterov;
  bool first_step;
};

// `step` counts from 1.
inline SgdScalars sgd_scalars(const SgdConfig& config, double step) {
  SgdScalars scalars;
  scalars.lr = static_cast<float>(config.lr);
  scalars.momentum = static_cast<float>(config.momentum);
  scalars.one_minus_dampening = static_cast<float>(1.0 - config.dampening);
  scalars.weight_decay = static_cast<float>(config.weight_decay);
  scalars.nesterov = config.nesterov;
  scalars.first_step = step <= 1;
  return scalars;
}

// SGD as in torch.optim.SGD: coupled weight decay, and the first step takes the gradient itself as momentum, so that
// dampening does not apply to it. State: momentum_buffer, if there is momentum.
template <bool kMomentum>
struct Sgd {
  static constexpr int kStates = kMomentum ? 1 : 0;
  SgdScalars scalars;

  template <class F>
  AIMFAIR_HOST_DEVICE F prepare(F param, F grad) const {
    return scalars.weight_decay != 0.0f ? grad + F(scalars.weight_decay) * param : grad;
  }

  template <class F>
  AIMFAIR_HOST_DEVICE F direction(F grad, F* state) const {
    if constexpr (kMomentum) {
      state[0] = scalars.first_step ? grad : F(scalars.momentum) * state[0] + F(scalars.one_minus_dampening) * grad;
      grad = scalars.nesterov ? grad + F(scalars.momentum) * state[0] : state[0];
    }
    return F(scalars.lr) * grad;
  }

  template <class F>
  AIMFAIR_HOST_DEVICE F apply(F param, F direction) const {
    return param - direction;
  }
};

}  // namespace aimfair
