#pragma once

#include <arm_neon.h>

#include <cstring>

#include "aimfair/numeric.h"

// Sixteen floats in four NEON registers (AArch64). vec_avx2.h, vec_avx512.h and vec_scalar.h hold the same names in the
// same order.

namespace aimfair::cpu::neon {

using Lanes = uint16_t;  // bit i: lane i

// f(0), f(1), f(2), f(3), the registers of a vector.
template <class Vector, class F>
inline Vector by_register(const F& f) {
  return {{f(0), f(1), f(2), f(3)}};
}

struct Words {  // uint32
  uint32x4_t v[4];
  Words() = default;
  Words(const uint32x4_t (&quads)[4]) : v{quads[0], quads[1], quads[2], quads[3]} {}
  explicit Words(uint32_t value) : v{vdupq_n_u32(value), vdupq_n_u32(value), vdupq_n_u32(value), vdupq_n_u32(value)} {}
  friend Words operator+(Words a, Words b) {
    return by_register<Words>([&](int q) { return vaddq_u32(a.v[q], b.v[q]); });
  }
  friend Words operator*(Words a, Words b) {
    return by_register<Words>([&](int q) { return vmulq_u32(a.v[q], b.v[q]); });
  }
  friend Words operator^(Words a, Words b) {
    return by_register<Words>([&](int q) { return veorq_u32(a.v[q], b.v[q]); });
  }
  friend Words operator&(Words a, Words b) {
    return by_register<Words>([&](int q) { return vandq_u32(a.v[q], b.v[q]); });
  }
  friend Words operator|(Words a, Words b) {
    return by_register<Words>([&](int q) { return vorrq_u32(a.v[q], b.v[q]); });
  }
  friend Words operator<<(Words a, int bits) {
    return by_register<Words>([&](int q) { return vshlq_u32(a.v[q], vdupq_n_s32(bits)); });
  }
  friend Words operator>>(Words a, int bits) {
    return by_register<Words>([&](int q) { return vshlq_u32(a.v[q], vdupq_n_s32(-bits)); });
  }
};

// The lanes in which all bits are set; in the others none is.
template <class F>
inline Lanes lanes_of(const F& quad) {
  const uint8x16_t bytes = vcombine_u8(vmovn_u16(vcombine_u16(vmovn_u32(quad(0)), vmovn_u32(quad(1)))),
                                       vmovn_u16(vcombine_u16(vmovn_u32(quad(2)), vmovn_u32(quad(3)))));
  const uint8x8_t bit = {1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x16_t bits = vandq_u8(bytes, vcombine_u8(bit, bit));
  return static_cast<Lanes>(vaddv_u8(vget_low_u8(bits)) | vaddv_u8(vget_high_u8(bits)) << 8);
}

// All bits set in those of the four lanes of register q that are in the set.
inline uint32x4_t lane_mask(Lanes lanes, int q) {
  const uint32x4_t bit = {1, 2, 4, 8};
  return vtstq_u32(vdupq_n_u32(static_cast<uint32_t>(lanes) >> (4 * q)), bit);
}

// For every set of four lanes, the bytes that bring them to the front (vqtbl1q_u8), and back from there. Bytes beyond
// the front are 0xff, which gives zero.
struct Orders {
  uint8_t front[16][16], back[16][16];
  constexpr Orders() : front{}, back{} {
    for (int set = 0; set < 16; set++) {
      int next = 0;
      for (int lane = 0; lane < 4; lane++) {
        const bool selected = set >> lane & 1;
        for (int byte = 0; byte < 4; byte++) {
          back[set][4 * lane + byte] = selected ? static_cast<uint8_t>(4 * next + byte) : uint8_t{0xff};
          if (selected) front[set][4 * next + byte] = static_cast<uint8_t>(4 * lane + byte);
        }
        next += selected;
      }
      for (int byte = 4 * next; byte < 16; byte++) front[set][byte] = 0xff;
    }
  }
};
inline constexpr Orders kOrders;

inline int count_of(Lanes lanes) { return __builtin_popcount(lanes); }
inline Lanes quad_of(Lanes lanes, int q) { return static_cast<Lanes>(lanes >> (4 * q) & 15); }

// The lanes of registers of bytes to the front of `packed`, which has room for 16 and 3 more.
template <class F>
inline void pack_lanes(Lanes lanes, const F& quad, uint32_t* packed) {
  int next = 0;
  for (int q = 0; q < 4; q++) {
    const Lanes set = quad_of(lanes, q);
    vst1q_u8(reinterpret_cast<uint8_t*>(packed + next), vqtbl1q_u8(quad(q), vld1q_u8(kOrders.front[set])));
    next += count_of(set);
  }
}

inline Words lane_index() {
  const uint32x4_t first = {0, 1, 2, 3};
  return by_register<Words>([&](int q) { return vaddq_u32(first, vdupq_n_u32(static_cast<uint32_t>(4 * q))); });
}
inline Words load(const int32_t* from) {
  return by_register<Words>([&](int q) { return vreinterpretq_u32_s32(vld1q_s32(from + 4 * q)); });
}
inline void store(int32_t* to, Words x) {
  for (int q = 0; q < 4; q++) vst1q_s32(to + 4 * q, vreinterpretq_s32_u32(x.v[q]));
}
inline Lanes greater(Words a, Words b) {  // as int32
  return lanes_of([&](int q) { return vcgtq_s32(vreinterpretq_s32_u32(a.v[q]), vreinterpretq_s32_u32(b.v[q])); });
}
inline Words greatest(Words a, Words b) {  // as int32
  return by_register<Words>([&](int q) {
    return vreinterpretq_u32_s32(vmaxq_s32(vreinterpretq_s32_u32(a.v[q]), vreinterpretq_s32_u32(b.v[q])));
  });
}
inline Words least(Words a, Words b) {  // as int32
  return by_register<Words>([&](int q) {
    return vreinterpretq_u32_s32(vminq_s32(vreinterpretq_s32_u32(a.v[q]), vreinterpretq_s32_u32(b.v[q])));
  });
}
inline Words compress(Lanes lanes, Words x) {
  uint32_t packed[20];
  pack_lanes(lanes, [&](int q) { return vreinterpretq_u8_u32(x.v[q]); }, packed);
  return by_register<Words>([&](int q) { return vld1q_u32(packed + 4 * q); });
}

inline Words blend(Lanes lanes, Words yes, Words no) {
  return by_register<Words>([&](int q) { return vbslq_u32(lane_mask(lanes, q), yes.v[q], no.v[q]); });
}

struct Floats {
  float32x4_t v[4];
  Floats() = default;
  Floats(const float32x4_t (&quads)[4]) : v{quads[0], quads[1], quads[2], quads[3]} {}
  explicit Floats(float value) : v{vdupq_n_f32(value), vdupq_n_f32(value), vdupq_n_f32(value), vdupq_n_f32(value)} {}
  friend Floats operator+(Floats a, Floats b) {
    return by_register<Floats>([&](int q) { return vaddq_f32(a.v[q], b.v[q]); });
  }
  friend Floats operator-(Floats a, Floats b) {
    return by_register<Floats>([&](int q) { return vsubq_f32(a.v[q], b.v[q]); });
  }
  friend Floats operator*(Floats a, Floats b) {
    return by_register<Floats>([&](int q) { return vmulq_f32(a.v[q], b.v[q]); });
  }
  friend Floats operator/(Floats a, Floats b) {
    return by_register<Floats>([&](int q) { return vdivq_f32(a.v[q], b.v[q]); });
  }
};

inline Floats square_root(Floats x) {
  return by_register<Floats>([&](int q) { return vsqrtq_f32(x.v[q]); });
}
inline Floats absolute(Floats x) {
  return by_register<Floats>([&](int q) { return vabsq_f32(x.v[q]); });
}
inline Floats greater_or_second(Floats a, Floats b) {
  return by_register<Floats>([&](int q) { return vbslq_f32(vcgeq_f32(a.v[q], b.v[q]), a.v[q], b.v[q]); });
}

inline Lanes first_lanes(int count) { return static_cast<Lanes>((1u << count) - 1u); }
inline Floats load(const float* from) {
  return by_register<Floats>([&](int q) { return vld1q_f32(from + 4 * q); });
}
inline Floats load_first(const float* from, int count) {
  float part[16] = {};
  memcpy(part, from, sizeof(float) * static_cast<size_t>(count));
  return load(part);
}
inline void store(float* to, Floats x) {
  for (int q = 0; q < 4; q++) vst1q_f32(to + 4 * q, x.v[q]);
}
inline void store_first(float* to, Floats x, int count) {
  float part[16];
  store(part, x);
  memcpy(to, part, sizeof(float) * static_cast<size_t>(count));
}
inline Floats blend(Lanes lanes, Floats yes, Floats no) {
  return by_register<Floats>([&](int q) { return vbslq_f32(lane_mask(lanes, q), yes.v[q], no.v[q]); });
}
inline void store_lanes(float* to, Floats x, Lanes lanes, int count) {
  if (count == 16) {
    store(to, blend(lanes, x, load(to)));
  } else {
    store_first(to, blend(lanes, x, load_first(to, count)), count);
  }
}
// The first `count` lanes from or to from[index], which are different places.
inline Floats gather(const float* from, Words index, int count) {
  int32_t places[16];
  float part[16] = {};
  store(places, index);
  for (int i = 0; i < count; i++) part[i] = from[places[i]];
  return load(part);
}
inline void scatter(float* to, Words index, Floats x, int count) {
  int32_t places[16];
  float part[16];
  store(places, index);
  store(part, x);
  for (int i = 0; i < count; i++) to[places[i]] = part[i];
}
inline Floats compress(Lanes lanes, Floats x) {
  uint32_t packed[20];
  pack_lanes(lanes, [&](int q) { return vreinterpretq_u8_f32(x.v[q]); }, packed);
  return by_register<Floats>([&](int q) { return vreinterpretq_f32_u32(vld1q_u32(packed + 4 * q)); });
}
inline Floats expand(Lanes lanes, Floats x) {
  float packed[20];
  store(packed, x);
  int next = 0;
  return by_register<Floats>([&](int q) {
    const Lanes set = quad_of(lanes, q);
    const uint8x16_t front = vreinterpretq_u8_f32(vld1q_f32(packed + next));
    next += count_of(set);
    return vreinterpretq_f32_u8(vqtbl1q_u8(front, vld1q_u8(kOrders.back[set])));
  });
}
inline Words bits_of(Floats x) {
  return by_register<Words>([&](int q) { return vreinterpretq_u32_f32(x.v[q]); });
}
inline Floats floats_of(Words bits) {
  return by_register<Floats>([&](int q) { return vreinterpretq_f32_u32(bits.v[q]); });
}
inline Lanes nan_lanes(Floats x) {
  return lanes_of([&](int q) { return vmvnq_u32(vceqq_f32(x.v[q], x.v[q])); });
}
inline Lanes finite_lanes(Floats x) {
  const float32x4_t infinity = vreinterpretq_f32_u32(vdupq_n_u32(0x7f800000u));
  return lanes_of([&](int q) { return vcltq_f32(vabsq_f32(x.v[q]), infinity); });
}

// score_key of topk.h; no lane may be NaN.
inline Words keys(Floats x, bool largest) {
  const uint32x4_t flip = vdupq_n_u32(largest ? 0u : ~0u);
  return by_register<Words>([&](int q) {
    uint32x4_t bits = vreinterpretq_u32_f32(x.v[q]);
    bits = vbicq_u32(bits, vceqq_u32(bits, vdupq_n_u32(0x80000000u)));
    const uint32x4_t sign = vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(bits), 31));
    return veorq_u32(veorq_u32(bits, vshrq_n_u32(sign, 1)), flip);
  });
}

// lanes[i] += x[i]
inline void add_to(double* lanes, Floats x) {
  for (int q = 0; q < 4; q++) {
    double* to = lanes + 4 * q;
    vst1q_f64(to, vaddq_f64(vld1q_f64(to), vcvt_f64_f32(vget_low_f32(x.v[q]))));
    vst1q_f64(to + 2, vaddq_f64(vld1q_f64(to + 2), vcvt_high_f64_f32(x.v[q])));
  }
}

// 16 bytes; what is stored is below 256.
inline Words load_bytes(const uint8_t* from, int count) {
  uint8_t part[16] = {};
  if (count != 16) memcpy(part, from, static_cast<size_t>(count));
  const uint8x16_t bytes = vld1q_u8(count == 16 ? from : part);
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_u8(vget_high_u8(bytes));
  return {{vmovl_u16(vget_low_u16(low)), vmovl_u16(vget_high_u16(low)), vmovl_u16(vget_low_u16(high)),
           vmovl_u16(vget_high_u16(high))}};
}
inline void store_bytes(uint8_t* to, Words x, int count) {
  uint8_t part[16];
  const uint16x8_t low = vcombine_u16(vmovn_u32(x.v[0]), vmovn_u32(x.v[1]));
  const uint16x8_t high = vcombine_u16(vmovn_u32(x.v[2]), vmovn_u32(x.v[3]));
  vst1q_u8(count == 16 ? to : part, vcombine_u8(vmovn_u16(low), vmovn_u16(high)));
  if (count != 16) memcpy(to, part, static_cast<size_t>(count));
}
inline void store_bytes_lanes(uint8_t* to, Words x, Lanes lanes, int count) {
  store_bytes(to, blend(lanes, x, load_bytes(to, count)), count);
}

struct Halves {  // 16 elements of a 16-bit type
  uint16x8_t lo, hi;
};

inline Halves load_halves(const uint16_t* from, int count) {
  if (count == 16) return {vld1q_u16(from), vld1q_u16(from + 8)};
  uint16_t part[16] = {};
  memcpy(part, from, sizeof(uint16_t) * static_cast<size_t>(count));
  return {vld1q_u16(part), vld1q_u16(part + 8)};
}
inline void store_halves(uint16_t* to, Halves x, int count) {
  uint16_t part[16];
  uint16_t* at = count == 16 ? to : part;
  vst1q_u16(at, x.lo);
  vst1q_u16(at + 8, x.hi);
  if (count != 16) memcpy(to, part, sizeof(uint16_t) * static_cast<size_t>(count));
}
inline void store_halves_lanes(uint16_t* to, Halves x, Lanes lanes, int count) {
  const uint16x8_t bit = {1, 2, 4, 8, 16, 32, 64, 128}, low = vdupq_n_u16(lanes), high = vdupq_n_u16(lanes >> 8);
  const Halves old = load_halves(to, count);
  store_halves(to, {vbslq_u16(vtstq_u16(low, bit), x.lo, old.lo), vbslq_u16(vtstq_u16(high, bit), x.hi, old.hi)},
               count);
}

inline uint16x4_t quarter(Halves x, int q) {
  const uint16x8_t half = q < 2 ? x.lo : x.hi;
  return q % 2 == 0 ? vget_low_u16(half) : vget_high_u16(half);
}
template <class F>
inline Halves by_quarter(const F& f) {
  return {vcombine_u16(f(0), f(1)), vcombine_u16(f(2), f(3))};
}

inline Floats bfloat16_to_floats(Halves x) {
  return by_register<Floats>([&](int q) { return vreinterpretq_f32_u32(vshll_n_u16(quarter(x, q), 16)); });
}
// Adds `rounding` to the bits and cuts off the low half.
inline Halves floats_to_bfloat16(Floats x, Words rounding) {
  return by_quarter([&](int q) {
    const uint16x4_t cut = vshrn_n_u32(vaddq_u32(vreinterpretq_u32_f32(x.v[q]), rounding.v[q]), 16);
    return vbsl_u16(vmovn_u32(vceqq_f32(x.v[q], x.v[q])), cut, vdup_n_u16(0x7fc0));
  });
}
inline Halves floats_to_bfloat16(Floats x) {
  const Words bits = bits_of(x);
  return floats_to_bfloat16(x, by_register<Words>([&](int q) {
                              const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits.v[q], 16), vdupq_n_u32(1));
                              return vaddq_u32(odd, vdupq_n_u32(0x7fff));
                            }));
}
inline Floats float16_to_floats(Halves x) {
  return by_register<Floats>([&](int q) { return vcvt_f32_f16(vreinterpret_f16_u16(quarter(x, q))); });
}
inline Halves floats_to_float16(Floats x) {
  return by_quarter([&](int q) { return vreinterpret_u16_f16(vcvt_f16_f32(x.v[q])); });
}

}  // namespace aimfair::cpu::neon
