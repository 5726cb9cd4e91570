#pragma once

// CUDA's vector types, aligned as in CUDA, so that UBSan reports a misaligned access.

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define AIMFAIR_VECTOR2(T, name, alignment) \
  struct alignas(alignment) name {          \
    T x, y;                                 \
  };                                        \
  inline name make_##name(T x, T y) { return {x, y}; }

#define AIMFAIR_VECTOR4(T, name, alignment) \
  struct alignas(alignment) name {          \
    T x, y, z, w;                           \
  };                                        \
  inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }

AIMFAIR_VECTOR2(unsigned short, ushort2, 4)
AIMFAIR_VECTOR2(int, int2, 8)
AIMFAIR_VECTOR2(unsigned, uint2, 8)
AIMFAIR_VECTOR2(float, float2, 8)
AIMFAIR_VECTOR2(long long, longlong2, 16)
AIMFAIR_VECTOR2(unsigned long long, ulonglong2, 16)
AIMFAIR_VECTOR2(double, double2, 16)
AIMFAIR_VECTOR4(unsigned char, uchar4, 4)
AIMFAIR_VECTOR4(unsigned short, ushort4, 8)
AIMFAIR_VECTOR4(int, int4, 16)
AIMFAIR_VECTOR4(unsigned, uint4, 16)
AIMFAIR_VECTOR4(float, float4, 16)

#undef AIMFAIR_VECTOR2
#undef AIMFAIR_VECTOR4
