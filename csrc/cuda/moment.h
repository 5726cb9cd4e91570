#pragma once

#include <cuda_runtime.h>

#include "aimfair/moments.h"

// Moments in device memory: how one value is kept, by type.

namespace aimfair::cuda {

template <Moments>
struct Moment;

// Nothing is kept for a block.
struct NoBase {};

template <>
struct Moment<Moments::float32> {
  using type = float;
  using Base = NoBase;
  static __device__ __forceinline__ type* values(void* memory, int64_t) { return static_cast<type*>(memory); }
  static __device__ __forceinline__ Base base(const void*, int) { return {}; }
  template <int kRootState>
  static __device__ __forceinline__ float decode(type x, Base, int) {
    return x;
  }
};

template <>
struct Moment<Moments::bfloat16> {
  using type = uint16_t;
  using Base = NoBase;
  static __device__ __forceinline__ type* values(void* memory, int64_t) { return static_cast<type*>(memory); }
  static __device__ __forceinline__ Base base(const void*, int) { return {}; }
  template <int kRootState>
  static __device__ __forceinline__ float decode(type x, Base, int) {
    return bfloat16_to_float(x);
  }
};

// State kRootState is kept as its root, the others with their sign. A rounded value is a magnitude, before the base is
// subtracted, and the sign in the uppermost bit.
template <>
struct Moment<Moments::bits8> {
  using type = uint8_t;
  using Base = uint16_t;
  using Root = Bits8Format<true>;
  using Signed = Bits8Format<false>;

  static __device__ __forceinline__ type* values(void* memory, int64_t numel) { return bits8_in(memory, numel).codes; }
  static __device__ __forceinline__ Base base(const void* memory, int block) {
    return __ldca(static_cast<const Base*>(memory) + block);
  }

  template <int kRootState>
  static __device__ __forceinline__ float decode(type x, Base base, int s) {
    const uint32_t code = x;
    if (s == kRootState) {
      const float root = bits_float(Root::decode(code, uint32_t{base}));
      return root * root;
    }
    return bits_float(Signed::decode(code & 127u, uint32_t{base}) | (code & 128u) << 24);
  }

  template <int kRootState>
  static __device__ __forceinline__ uint16_t round(float x, uint32_t random, int s) {
    if (s == kRootState) return static_cast<uint16_t>(Root::round(bits_of(square_root(x)), random));
    const uint32_t bits = bits_of(x);
    return static_cast<uint16_t>(Signed::round(bits & 0x7fffffffu, random) | (bits >> 31) << 15);
  }

  template <int kRootState>
  static __device__ __forceinline__ uint32_t base_of(uint32_t largest, int s) {
    return s == kRootState ? Root::base(largest) : Signed::base(largest);
  }

  template <int kRootState>
  static __device__ __forceinline__ type encode(uint32_t rounded, uint32_t base, int s) {
    if (s == kRootState) return static_cast<type>(Root::encode(rounded, 0 - base));
    return static_cast<type>(Signed::encode(rounded & 0x7fffu, 0 - base) | (rounded >> 15) << 7);
  }

 private:
  static __device__ __forceinline__ uint32_t bits_of(float x) {
    const uint32_t bits = float_bits(x);
    return is_nan_bits(bits) ? kQuietNaN : bits;
  }
};

}  // namespace aimfair::cuda
