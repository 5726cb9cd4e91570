#pragma once

#include <cstdint>

#include "aimfair/macros.h"
#include "aimfair/scalar.h"

// Sensitivity scores, computed on the fly from accumulated statistics; F is float or a vector of floats.

namespace aimfair {

enum class Criterion : uint8_t {
  none,                 // no divisor
  value,                // a, any sign
  magnitude,            // |x|
  difference,           // |x - y|
  relative_difference,  // |x - y| / (|x| + |y| + eps)
  norm_ratio,           // sqrt(y) / sqrt(x + eps)
};

AIMFAIR_HOST_DEVICE bool has_second_input(Criterion criterion) {
  return criterion == Criterion::difference || criterion == Criterion::relative_difference ||
         criterion == Criterion::norm_ratio;
}

// One criterion with the scales that turn sums over batches into means: x = a * scale_a, y = b * scale_b.
struct ScoreTerm {
  Criterion criterion = Criterion::none;
  float scale_a = 1.0f;
  float scale_b = 1.0f;
};

// score = term(a, b), or term(a, b) / (divisor(c, d) + eps).
struct ScoreSpec {
  ScoreTerm term;
  ScoreTerm divisor;
  float eps = 1e-12f;
};

template <class F>
AIMFAIR_HOST_DEVICE F score_value(F a) {
  return a;
}

template <class F>
AIMFAIR_HOST_DEVICE F score_magnitude(F a, F scale_a) {
  return absolute(a * scale_a);
}

template <class F>
AIMFAIR_HOST_DEVICE F score_difference(F a, F b, F scale_a, F scale_b) {
  return absolute(a * scale_a - b * scale_b);
}

template <class F>
AIMFAIR_HOST_DEVICE F score_relative_difference(F a, F b, F scale_a, F scale_b, F eps) {
  const F x = a * scale_a, y = b * scale_b;
  return absolute(x - y) / ((absolute(x) + absolute(y)) + eps);
}

template <class F>
AIMFAIR_HOST_DEVICE F score_norm_ratio(F a, F b, F scale_a, F scale_b, F eps) {
  return square_root(b * scale_b) / square_root(a * scale_a + eps);
}

// An order-preserving map of non-NaN floats to signed integers, -0 and +0 alike; `best` keys are the greatest.
AIMFAIR_HOST_DEVICE int32_t score_key(uint32_t bits, bool largest) {
  if (bits == 0x80000000u) bits = 0;
  const int32_t key = static_cast<int32_t>(bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) >> 1));
  return largest ? key : ~key;
}

}  // namespace aimfair
