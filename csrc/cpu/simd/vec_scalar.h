#pragma once

#include <cstring>

#include "aimfair/numeric.h"
#include "aimfair/topk.h"

// Sixteen floats in an array: plain C++ for any processor. vec_avx512.h and vec_avx2.h hold the same names.

namespace aimfair::cpu::scalar {

using Lanes = uint16_t;  // bit i: lane i

struct Words {  // uint32
  uint32_t v[16];
  Words() = default;
  explicit Words(uint32_t value) {
    for (auto& lane : v) lane = value;
  }
};

template <class Vector, class Lane>
inline Vector by_lane(Lane lane) {
  Vector result;
  for (int i = 0; i < 16; i++) result.v[i] = lane(i);
  return result;
}

template <class Test>
inline Lanes lanes_where(Test test) {
  uint32_t lanes = 0;
  for (int i = 0; i < 16; i++) lanes |= static_cast<uint32_t>(test(i)) << i;
  return static_cast<Lanes>(lanes);
}

template <class Vector>
inline Vector compress_lanes(Lanes lanes, const Vector& x) {
  Vector result{};
  for (int i = 0, j = 0; i < 16; i++) {
    if (lanes >> i & 1) result.v[j++] = x.v[i];
  }
  return result;
}

inline Words operator+(Words a, Words b) {
  return by_lane<Words>([&](int i) { return a.v[i] + b.v[i]; });
}
inline Words operator*(Words a, Words b) {
  return by_lane<Words>([&](int i) { return a.v[i] * b.v[i]; });
}
inline Words operator^(Words a, Words b) {
  return by_lane<Words>([&](int i) { return a.v[i] ^ b.v[i]; });
}
inline Words operator&(Words a, Words b) {
  return by_lane<Words>([&](int i) { return a.v[i] & b.v[i]; });
}
inline Words operator|(Words a, Words b) {
  return by_lane<Words>([&](int i) { return a.v[i] | b.v[i]; });
}
inline Words operator<<(Words a, int bits) {
  return by_lane<Words>([&](int i) { return a.v[i] << bits; });
}
inline Words operator>>(Words a, int bits) {
  return by_lane<Words>([&](int i) { return a.v[i] >> bits; });
}

inline Words lane_index() {
  return by_lane<Words>([](int i) { return static_cast<uint32_t>(i); });
}
inline Words load(const int32_t* from) {
  Words x;
  memcpy(x.v, from, sizeof x.v);
  return x;
}
inline void store(int32_t* to, Words x) { memcpy(to, x.v, sizeof x.v); }
inline Lanes greater(Words a, Words b) {  // as int32
  return lanes_where([&](int i) { return static_cast<int32_t>(a.v[i]) > static_cast<int32_t>(b.v[i]); });
}
inline Words greatest(Words a, Words b) {  // as int32
  return by_lane<Words>([&](int i) { return aimfair::greatest(a.v[i], b.v[i]); });
}
inline Words least(Words a, Words b) {  // as int32
  return by_lane<Words>([&](int i) { return aimfair::least(a.v[i], b.v[i]); });
}
inline Words compress(Lanes lanes, Words x) { return compress_lanes(lanes, x); }
inline Words blend(Lanes lanes, Words yes, Words no) {
  return by_lane<Words>([&](int i) { return lanes >> i & 1 ? yes.v[i] : no.v[i]; });
}

struct Floats {
  float v[16];
  Floats() = default;
  explicit Floats(float value) {
    for (auto& lane : v) lane = value;
  }
};

inline Floats operator+(Floats a, Floats b) {
  return by_lane<Floats>([&](int i) { return a.v[i] + b.v[i]; });
}
inline Floats operator-(Floats a, Floats b) {
  return by_lane<Floats>([&](int i) { return a.v[i] - b.v[i]; });
}
inline Floats operator*(Floats a, Floats b) {
  return by_lane<Floats>([&](int i) { return a.v[i] * b.v[i]; });
}
inline Floats operator/(Floats a, Floats b) {
  return by_lane<Floats>([&](int i) { return a.v[i] / b.v[i]; });
}

inline Floats square_root(Floats x) {
  return by_lane<Floats>([&](int i) { return aimfair::square_root(x.v[i]); });
}
inline Floats absolute(Floats x) {
  return by_lane<Floats>([&](int i) { return aimfair::absolute(x.v[i]); });
}
inline Floats greater_or_second(Floats a, Floats b) {
  return by_lane<Floats>([&](int i) { return aimfair::greater_or_second(a.v[i], b.v[i]); });
}

inline Lanes first_lanes(int count) { return static_cast<Lanes>((1u << count) - 1u); }
inline Floats load_first(const float* from, int count) {
  Floats x(0.0f);
  memcpy(x.v, from, sizeof(float) * static_cast<size_t>(count));
  return x;
}
inline Floats load(const float* from) { return load_first(from, 16); }
inline void store_first(float* to, Floats x, int count) { memcpy(to, x.v, sizeof(float) * static_cast<size_t>(count)); }
inline void store(float* to, Floats x) { store_first(to, x, 16); }
inline Floats blend(Lanes lanes, Floats yes, Floats no) {
  return by_lane<Floats>([&](int i) { return lanes >> i & 1 ? yes.v[i] : no.v[i]; });
}
inline void store_lanes(float* to, Floats x, Lanes lanes, int count) {
  for (int i = 0; i < count; i++) {
    if (lanes >> i & 1) to[i] = x.v[i];
  }
}
// The first `count` lanes from or to from[index], which are different places.
inline Floats gather(const float* from, Words index, int count) {
  Floats x(0.0f);
  for (int i = 0; i < count; i++) x.v[i] = from[index.v[i]];
  return x;
}
inline void scatter(float* to, Words index, Floats x, int count) {
  for (int i = 0; i < count; i++) to[index.v[i]] = x.v[i];
}
inline Floats compress(Lanes lanes, Floats x) { return compress_lanes(lanes, x); }
inline Floats expand(Lanes lanes, Floats x) {
  Floats result{};
  for (int i = 0, j = 0; i < 16; i++) {
    if (lanes >> i & 1) result.v[i] = x.v[j++];
  }
  return result;
}
inline Words bits_of(Floats x) {
  Words bits;
  memcpy(bits.v, x.v, sizeof bits.v);
  return bits;
}
inline Floats floats_of(Words bits) {
  Floats x;
  memcpy(x.v, bits.v, sizeof x.v);
  return x;
}
inline Lanes nan_lanes(Floats x) {
  return lanes_where([&](int i) { return is_nan_bits(float_bits(x.v[i])); });
}
inline Lanes finite_lanes(Floats x) {
  return lanes_where([&](int i) { return (float_bits(x.v[i]) & 0x7fffffffu) < 0x7f800000u; });
}

// score_key of topk.h; no lane may be NaN.
inline Words keys(Floats x, bool largest) {
  return by_lane<Words>([&](int i) { return static_cast<uint32_t>(score_key(float_bits(x.v[i]), largest)); });
}

// lanes[i] += x[i]
inline void add_to(double* lanes, Floats x) {
  for (int i = 0; i < 16; i++) lanes[i] += static_cast<double>(x.v[i]);
}

// 16 bytes; what is stored is below 256.
inline Words load_bytes(const uint8_t* from, int count) {
  Words x(0);
  for (int i = 0; i < count; i++) x.v[i] = from[i];
  return x;
}
inline void store_bytes(uint8_t* to, Words x, int count) {
  for (int i = 0; i < count; i++) to[i] = static_cast<uint8_t>(x.v[i]);
}
inline void store_bytes_lanes(uint8_t* to, Words x, Lanes lanes, int count) {
  for (int i = 0; i < count; i++) {
    if (lanes >> i & 1) to[i] = static_cast<uint8_t>(x.v[i]);
  }
}

struct Halves {  // 16 elements of a 16-bit type
  uint16_t v[16];
};

inline Halves load_halves(const uint16_t* from, int count) {
  Halves x{};
  memcpy(x.v, from, sizeof(uint16_t) * static_cast<size_t>(count));
  return x;
}
inline void store_halves(uint16_t* to, Halves x, int count) {
  memcpy(to, x.v, sizeof(uint16_t) * static_cast<size_t>(count));
}
inline void store_halves_lanes(uint16_t* to, Halves x, Lanes lanes, int count) {
  for (int i = 0; i < count; i++) {
    if (lanes >> i & 1) to[i] = x.v[i];
  }
}

inline Floats bfloat16_to_floats(Halves x) {
  return by_lane<Floats>([&](int i) { return bfloat16_to_float(x.v[i]); });
}
// Adds `rounding` to the bits and cuts off the low half.
inline Halves floats_to_bfloat16(Floats x, Words rounding) {
  return by_lane<Halves>([&](int i) { return float_to_bfloat16_stochastic(x.v[i], rounding.v[i]); });
}
inline Halves floats_to_bfloat16(Floats x) {
  return by_lane<Halves>([&](int i) { return float_to_bfloat16(x.v[i]); });
}
inline Floats float16_to_floats(Halves x) {
  return by_lane<Floats>([&](int i) { return float16_to_float(x.v[i]); });
}
inline Halves floats_to_float16(Floats x) {
  return by_lane<Halves>([&](int i) { return float_to_float16(x.v[i]); });
}

}  // namespace aimfair::cpu::scalar
