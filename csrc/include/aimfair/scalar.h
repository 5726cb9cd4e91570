#pragma once

#include <cmath>

#include "aimfair/macros.h"

// The float versions of the few functions that the formulas in score.h and update.h need besides + - * /.
// Vector types bring their own overloads; both round every operation once, so both give the same bits.

namespace aimfair {

AIMFAIR_HOST_DEVICE float square_root(float x) { return sqrtf(x); }
AIMFAIR_HOST_DEVICE float absolute(float x) { return fabsf(x); }
// a where a >= b, else b (so a NaN in b is kept).
AIMFAIR_HOST_DEVICE float greater_or_second(float a, float b) { return a >= b ? a : b; }

// Gradients are multiplied by this to divide them by *grad_scale (null: 1).
AIMFAIR_HOST_DEVICE float gradient_factor(const float* grad_scale) { return grad_scale ? 1.0f / *grad_scale : 1.0f; }

}  // namespace aimfair
