#pragma once

#include <cuda_runtime.h>

#include "aimfair/moments.h"

// Moments in device memory: how one value is kept, by type. load gives what decode needs of the value at a place of the
// state that belongs to a block of the tensor.

namespace aimfair::cuda {

template <Moments>
struct Moment;

template <>
struct Moment<Moments::float32> {
  using type = float;
  using Kept = type;
  static __device__ __forceinline__ type* values(void* memory, int64_t) { return static_cast<type*>(memory); }
  static __device__ __forceinline__ Kept load(const type* at, const void*, int) { return __ldca(at); }
  template <int kRootState>
  static __device__ __forceinline__ float decode(Kept x, int) {
    return x;
  }
};

template <>
struct Moment<Moments::bfloat16> {
  using type = uint16_t;
  using Kept = type;
  static __device__ __forceinline__ type* values(void* memory, int64_t) { return static_cast<type*>(memory); }
  static __device__ __forceinline__ Kept load(const type* at, const void*, int) { return __ldca(at); }
  template <int kRootState>
  static __device__ __forceinline__ float decode(Kept x, int) {
    return bfloat16_to_float(x);
  }
};

// State kRootState is kept as its root, the others with their sign. A rounded value is a magnitude, before the base is
// subtracted, and the sign in the uppermost bit.
template <>
struct Moment<Moments::bits8> {
  using type = uint8_t;
  struct Kept {
    uint8_t code;
    uint16_t base;
  };
  using Root = Bits8Format<true>;
  using Signed = Bits8Format<false>;

  static __device__ __forceinline__ type* values(void* memory, int64_t numel) { return bits8_in(memory, numel).codes; }
  static __device__ __forceinline__ Kept load(const type* at, const void* memory, int block) {
    return {__ldca(at), __ldca(static_cast<const uint16_t*>(memory) + block)};
  }

  template <int kRootState>
  static __device__ __forceinline__ float decode(Kept x, int s) {
    const uint32_t code = x.code, base = x.base;
    if (s == kRootState) {
      const float root = bits_float(Root::decode(code, base));
      return root * root;
    }
    return bits_float(Signed::decode(code & 127u, base) | (code & 128u) << 24);
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
