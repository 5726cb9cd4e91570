#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "aimfair/score.h"
#include "aimfair/select.h"
#include "cuda/element.h"

// Scores of elements of one tensor in device memory, one at a time or four at once.

namespace aimfair::cuda {

// What the formulas of aimfair/score.h need of a vector.

template <class Operation>
AIMFAIR_HOST_DEVICE Four by_lane(const Four& x, const Four& y, const Operation& operation) {
  return {{operation(x.v[0], y.v[0]), operation(x.v[1], y.v[1]), operation(x.v[2], y.v[2]), operation(x.v[3], y.v[3])}};
}

AIMFAIR_HOST_DEVICE Four operator+(const Four& x, const Four& y) {
  return by_lane(x, y, [](float a, float b) { return a + b; });
}
AIMFAIR_HOST_DEVICE Four operator-(const Four& x, const Four& y) {
  return by_lane(x, y, [](float a, float b) { return a - b; });
}
AIMFAIR_HOST_DEVICE Four operator*(const Four& x, const Four& y) {
  return by_lane(x, y, [](float a, float b) { return a * b; });
}
AIMFAIR_HOST_DEVICE Four operator/(const Four& x, const Four& y) {
  return by_lane(x, y, [](float a, float b) { return a / b; });
}
AIMFAIR_HOST_DEVICE Four square_root(const Four& x) {
  return by_lane(x, x, [](float a, float) { return sqrtf(a); });
}
AIMFAIR_HOST_DEVICE Four absolute(const Four& x) {
  return by_lane(x, x, [](float a, float) { return fabsf(a); });
}

template <class F>
__device__ __forceinline__ F all_lanes(float x) {
  if constexpr (sizeof(F) == sizeof(float)) {
    return x;
  } else {
    return {{x, x, x, x}};
  }
}

template <class F>
__device__ __forceinline__ F term_score(const ScoreTerm& term, float eps, const F& a, const F& b) {
  const F scale_a = all_lanes<F>(term.scale_a), scale_b = all_lanes<F>(term.scale_b);
  switch (term.criterion) {
    case Criterion::magnitude:
      return score_magnitude(a, scale_a);
    case Criterion::difference:
      return score_difference(a, b, scale_a, scale_b);
    case Criterion::relative_difference:
      return score_relative_difference(a, b, scale_a, scale_b, all_lanes<F>(eps));
    case Criterion::norm_ratio:
      return score_norm_ratio(a, b, scale_a, scale_b, all_lanes<F>(eps));
    case Criterion::value:
    case Criterion::none:
      break;
  }
  return score_value(a);
}

// load(which) gives the elements of one input; only those that the criteria read are asked for. The spec should be a
// parameter of the kernel, so that all threads branch alike.
template <class F, class Load>
__device__ __forceinline__ F score_of(const ScoreTensor& tensor, const ScoreSpec& spec, const Load& load) {
  const bool divided = spec.divisor.criterion != Criterion::none;
  // All loads come before the arithmetic.
  F a = load(tensor.a), b = all_lanes<F>(0.0f), c = b, d = b;
  if (has_second_input(spec.term.criterion)) b = load(tensor.b);
  if (divided) c = load(tensor.c);
  if (has_second_input(spec.divisor.criterion)) d = load(tensor.d);
  const F score = term_score(spec.term, spec.eps, a, b);
  return divided ? score / (term_score(spec.divisor, spec.eps, c, d) + all_lanes<F>(spec.eps)) : score;
}

// Score of element `at`.
__device__ __forceinline__ float score_at(const ScoreTensor& tensor, const ScoreSpec& spec, int64_t at) {
  return score_of<float>(tensor, spec, [&](const float* from) { return from[at]; });
}

// Whether all inputs begin where four floats can be read at once.
__device__ __forceinline__ bool fours_aligned(const ScoreTensor& tensor) {
  constexpr int64_t kSize = 4 * sizeof(float);
  return four_aligned(tensor.a, kSize) && four_aligned(tensor.b, kSize) && four_aligned(tensor.c, kSize) &&
         four_aligned(tensor.d, kSize);
}

// Scores of the four elements from `at`, a multiple of 4; `aligned` is fours_aligned(tensor). Lanes past the end of
// the tensor hold no score, and may be NaN.
__device__ __forceinline__ Four scores_at(const ScoreTensor& tensor, const ScoreSpec& spec, int64_t at, bool aligned) {
  if (aligned && at + 4 <= tensor.numel) {
    return score_of<Four>(tensor, spec, [&](const float* from) { return load_four<DType::float32>(from + at); });
  }
  return score_of<Four>(tensor, spec, [&](const float* from) {
    Four x;
#pragma unroll
    for (int i = 0; i < 4; i++) x.v[i] = at + i < tensor.numel ? from[at + i] : 0.0f;
    return x;
  });
}

}  // namespace aimfair::cuda
