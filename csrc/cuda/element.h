#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "aimfair/numeric.h"

// Elements of the three types in device memory, one or four at a time.

namespace aimfair::cuda {

struct Four {
  float v[4];
};

// Four elements from an address that four_aligned accepts.
__device__ __forceinline__ bool four_aligned(const void* at, int64_t size_of_four) {
  return reinterpret_cast<uintptr_t>(at) % static_cast<uintptr_t>(size_of_four) == 0;
}

// Common to the 16-bit types.
struct HalfElement {
  using type = uint16_t;
  using four = ushort4;
};

template <DType>
struct Element;

template <>
struct Element<DType::float32> {
  using type = float;
  using four = float4;
  static __device__ __forceinline__ float decode(float x) { return x; }
  static __device__ __forceinline__ float encode(float x) { return x; }
};

template <>
struct Element<DType::bfloat16> : HalfElement {
  static __device__ __forceinline__ float decode(uint16_t x) { return bfloat16_to_float(x); }
  static __device__ __forceinline__ uint16_t encode(float x) { return float_to_bfloat16(x); }
};

template <>
struct Element<DType::float16> : HalfElement {
  static __device__ __forceinline__ float decode(uint16_t x) { return float16_to_float(x); }
  static __device__ __forceinline__ uint16_t encode(float x) { return float_to_float16(x); }
};

// Accesses of 128 or 64 bits. They are explicit because the addresses come from a table: nvcc does not know that they
// are in global memory, and split one store into four.
template <DType kDType>
__device__ __forceinline__ Four load_four(const typename Element<kDType>::type* at) {
  using E = Element<kDType>;
  const auto x = __ldca(reinterpret_cast<const typename E::four*>(at));
  return {{E::decode(x.x), E::decode(x.y), E::decode(x.z), E::decode(x.w)}};
}

template <DType kDType>
__device__ __forceinline__ void store_four(typename Element<kDType>::type* at, const Four& x) {
  using E = Element<kDType>;
  const typename E::four values = {E::encode(x.v[0]), E::encode(x.v[1]), E::encode(x.v[2]), E::encode(x.v[3])};
  __stwb(reinterpret_cast<typename E::four*>(at), values);
}

}  // namespace aimfair::cuda
