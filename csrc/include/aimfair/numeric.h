#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// Element types of parameters and gradients, their exact conversions to and from float, and the few functions besides
// + - * / that the formulas in topk.h and step.h need. Vector types have their own overloads of those; all of them
// round every operation once, so they give the same bits.

// Functions that run on the host and on the device. They are always inlined: translation units built for different
// instruction sets must not share one out-of-line copy.
#if defined(__CUDACC__)
#define AIMFAIR_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define AIMFAIR_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace aimfair {

enum class DType : uint8_t { float32, bfloat16, float16 };

AIMFAIR_HOST_DEVICE uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

AIMFAIR_HOST_DEVICE float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

AIMFAIR_HOST_DEVICE bool is_nan_bits(uint32_t bits) { return (bits & 0x7fffffffu) > 0x7f800000u; }

// Any bfloat16 is a float with the low half zero.
AIMFAIR_HOST_DEVICE float bfloat16_to_float(uint16_t half) { return bits_float(static_cast<uint32_t>(half) << 16); }

// Round to nearest, ties to even; NaN becomes 0x7fc0, as in torch.
AIMFAIR_HOST_DEVICE uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  if (is_nan_bits(bits)) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Rounds up with probability proportional to the distance: `random` is 16 uniform bits. Infinities stay.
AIMFAIR_HOST_DEVICE uint16_t float_to_bfloat16_stochastic(float value, uint32_t random) {
  const uint32_t bits = float_bits(value);
  if (is_nan_bits(bits)) return 0x7fc0;
  return static_cast<uint16_t>((bits + random) >> 16);
}

AIMFAIR_HOST_DEVICE float float16_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu, mantissa = half & 0x3ffu;
  if (exponent == 0x1f) {  // infinity, or a NaN made quiet as in the hardware conversion
    return bits_float(sign | 0x7f800000u | (mantissa << 13) | (mantissa ? 0x400000u : 0u));
  }
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    return bits_float(sign | float_bits(magnitude));
  }
  return bits_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

// Round to nearest, ties to even; overflow becomes infinity.
AIMFAIR_HOST_DEVICE uint16_t float_to_float16(float value) {
  const uint32_t bits = float_bits(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {  // quiet NaN with the top of its payload
    return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  }
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds past 65504
  if (magnitude < 0x38800000u) {  // subnormal result: adding 0.5 aligns the mantissa and rounds in hardware
    const float aligned = bits_float(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (float_bits(aligned) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

AIMFAIR_HOST_DEVICE float square_root(float x) { return sqrtf(x); }
AIMFAIR_HOST_DEVICE float absolute(float x) { return fabsf(x); }
// a where a >= b, else b (so a NaN in b is kept).
AIMFAIR_HOST_DEVICE float greater_or_second(float a, float b) { return a >= b ? a : b; }

// Of integers, as int32.
AIMFAIR_HOST_DEVICE uint32_t greatest(uint32_t a, uint32_t b) {
  return static_cast<int32_t>(a) > static_cast<int32_t>(b) ? a : b;
}
AIMFAIR_HOST_DEVICE uint32_t least(uint32_t a, uint32_t b) {
  return static_cast<int32_t>(a) < static_cast<int32_t>(b) ? a : b;
}

// Gradients are multiplied by this to divide them by *grad_scale (null: 1).
AIMFAIR_HOST_DEVICE float gradient_factor(const float* grad_scale) { return grad_scale ? 1.0f / *grad_scale : 1.0f; }

}  // namespace aimfair
