#pragma once

#include <cstdint>

#include "aimfair/mask.h"
#include "aimfair/numeric.h"
#include "aimfair/random.h"

// Optimizer moments of 16 or 8 bits. The update itself is computed in float32; only what is kept for the next step is
// rounded, up or down at random in proportion to the distance. So a moving average that changes by less than the
// distance of two representable values still follows its mean, which rounding to nearest would freeze.
//
// bfloat16: the upper half of the float.
//
// bits8: a few upper bits of the float, relative to the largest of its block of the mask (1024 elements, of which only
// the selected ones count). Of exp_avg and momentum_buffer the sign and 7 bits: 3 of the mantissa and an exponent that
// spans 16 powers of two. Of exp_avg_sq the square root, in 8 bits: 4 of the mantissa and again 16 powers of two. What
// is smaller becomes 0 in the first case; a root that is not 0 stays above 0, so that no step is divided by eps alone.
// A NaN or an infinity takes the place of the largest value: the others of its block become the smallest ones.
//
// Memory of a bits8 moment: the base of each block of the tensor (uint16, added to all codes), then the codes (uint8),
// one for each element or, with compact state, for each selected element.

namespace aimfair {

enum class Moments : uint8_t { float32, bfloat16, bits8 };

constexpr int64_t kBaseBytes = 2;  // of a block

struct Bits8 {
  uint16_t* bases;
  uint8_t* codes;
};

AIMFAIR_HOST_DEVICE Bits8 bits8_in(void* memory, int64_t numel) {
  return {static_cast<uint16_t*>(memory), static_cast<uint8_t*>(memory) + kBaseBytes * block_count(numel)};
}

// The 16 random bits for state s of element `index` (0..1023) of a block; those of the parameter have s = -1. U is
// uint32_t or a vector of them, as below.
template <class U>
AIMFAIR_HOST_DEVICE U moment_random(uint64_t block_key, U index, int s) {
  return random16(block_key, index + U(static_cast<uint32_t>(kBlock) * static_cast<uint32_t>(s + 1)));
}

// The formats of bits8: kRoot for exp_avg_sq.
template <bool kRoot>
struct Bits8Format {
  static constexpr int kShift = kRoot ? 19 : 20;  // lower bits of the float that are dropped
  static constexpr uint32_t kLargest = kRoot ? 255 : 127;

  // The upper bits of a magnitude (float bits without the sign; a NaN is kQuietNaN), rounded at random.
  template <class U>
  static AIMFAIR_HOST_DEVICE U round(U magnitude, U random) {
    return (magnitude + (random << (kShift - 16))) >> kShift;
  }

  // The base of a block, from the largest rounded magnitude in it.
  static AIMFAIR_HOST_DEVICE uint32_t base(uint32_t largest) { return greatest(largest - kLargest, 0); }

  // The code of a rounded magnitude, without the sign; minus_base is 0 - base.
  template <class U>
  static AIMFAIR_HOST_DEVICE U encode(U rounded, U minus_base) {
    const U code = greatest(rounded + minus_base, U(kRoot ? 1u : 0u));
    if constexpr (kRoot) return least(code, rounded);  // 0 stays 0
    return code;
  }

  // The magnitude of a code without the sign.
  template <class U>
  static AIMFAIR_HOST_DEVICE U decode(U code, U base) {
    return ((code + base) * least(code, U(1u))) << kShift;
  }
};

constexpr uint32_t kQuietNaN = 0x7fc00000u;

}  // namespace aimfair
