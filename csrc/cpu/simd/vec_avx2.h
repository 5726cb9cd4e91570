#pragma once

#include <immintrin.h>

#include <cstring>

#include "aimfair/numeric.h"

// Sixteen floats in two AVX registers. vec_avx512.h and vec_scalar.h hold the same names in the same order.
// Needs AVX2, BMI, BMI2, POPCNT, F16C.

namespace aimfair::cpu::avx2 {

using Lanes = uint16_t;  // bit i: lane i

struct Words {  // uint32
  __m256i lo, hi;
  Words() = default;
  Words(__m256i low, __m256i high) : lo(low), hi(high) {}
  explicit Words(uint32_t value) : lo(_mm256_set1_epi32(static_cast<int>(value))), hi(lo) {}
  friend Words operator+(Words a, Words b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
  friend Words operator*(Words a, Words b) { return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)}; }
  friend Words operator^(Words a, Words b) { return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)}; }
  friend Words operator&(Words a, Words b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
  friend Words operator|(Words a, Words b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
  friend Words operator<<(Words a, int bits) { return {_mm256_slli_epi32(a.lo, bits), _mm256_slli_epi32(a.hi, bits)}; }
  friend Words operator>>(Words a, int bits) { return {_mm256_srli_epi32(a.lo, bits), _mm256_srli_epi32(a.hi, bits)}; }
};

inline __m256i load_words(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store_words(void* to, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(to), x); }
inline Lanes lanes_of(__m256 low, __m256 high) {
  return static_cast<Lanes>(_mm256_movemask_ps(low) | (_mm256_movemask_ps(high) << 8));
}

// Selected lanes to the front: the permutation is the byte indices 0..7 packed by BMI2.
inline __m256i front_order(uint32_t lanes8) {
  const uint64_t bytes = _pdep_u64(lanes8, 0x0101010101010101ull) * 0xff;
  return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(_pext_u64(0x0706050403020100ull, bytes))));
}

// The inverse: front lanes back to the selected places; the others get anything.
inline __m256i back_order(uint32_t lanes8) {
  const uint64_t bytes = _pdep_u64(lanes8, 0x0101010101010101ull) * 0xff;
  return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(_pdep_u64(0x0706050403020100ull, bytes))));
}

// All bits set in the lanes of an 8-bit set.
inline __m256i lane_mask(uint32_t lanes8) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(lanes8)), bit), bit);
}

inline Words lane_index() {
  return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}
inline Words load(const int32_t* from) { return {load_words(from), load_words(from + 8)}; }
inline void store(int32_t* to, Words x) {
  store_words(to, x.lo);
  store_words(to + 8, x.hi);
}
inline Lanes greater(Words a, Words b) {  // as int32
  return lanes_of(_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.lo, b.lo)),
                  _mm256_castsi256_ps(_mm256_cmpgt_epi32(a.hi, b.hi)));
}
inline Words greatest(Words a, Words b) {  // as int32
  return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)};
}
inline Words least(Words a, Words b) {  // as int32
  return {_mm256_min_epi32(a.lo, b.lo), _mm256_min_epi32(a.hi, b.hi)};
}
inline Words compress(Lanes lanes, Words x) {
  alignas(32) int32_t packed[24];
  store_words(packed, _mm256_permutevar8x32_epi32(x.lo, front_order(lanes & 0xff)));
  store_words(packed + __builtin_popcount(lanes & 0xff), _mm256_permutevar8x32_epi32(x.hi, front_order(lanes >> 8)));
  return {load_words(packed), load_words(packed + 8)};
}

inline Words blend(Lanes lanes, Words yes, Words no) {
  return {_mm256_blendv_epi8(no.lo, yes.lo, lane_mask(lanes & 0xff)),
          _mm256_blendv_epi8(no.hi, yes.hi, lane_mask(lanes >> 8))};
}

struct Floats {
  __m256 lo, hi;
  Floats() = default;
  Floats(__m256 low, __m256 high) : lo(low), hi(high) {}
  explicit Floats(float value) : lo(_mm256_set1_ps(value)), hi(lo) {}
  friend Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
  friend Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
  friend Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
  friend Floats operator/(Floats a, Floats b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
};

inline Floats square_root(Floats x) { return {_mm256_sqrt_ps(x.lo), _mm256_sqrt_ps(x.hi)}; }
inline __m256 absolute(__m256 x) { return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff))); }
inline Floats absolute(Floats x) { return {absolute(x.lo), absolute(x.hi)}; }
inline Floats greater_or_second(Floats a, Floats b) {
  return {_mm256_blendv_ps(b.lo, a.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_GE_OQ)),
          _mm256_blendv_ps(b.hi, a.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_GE_OQ))};
}

inline Lanes first_lanes(int count) { return static_cast<Lanes>((1u << count) - 1u); }
inline Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline Floats load_first(const float* from, int count) {
  alignas(32) float part[16] = {};
  memcpy(part, from, sizeof(float) * static_cast<size_t>(count));
  return load(part);
}
inline void store(float* to, Floats x) {
  _mm256_storeu_ps(to, x.lo);
  _mm256_storeu_ps(to + 8, x.hi);
}
inline void store_first(float* to, Floats x, int count) {
  alignas(32) float part[16];
  store(part, x);
  memcpy(to, part, sizeof(float) * static_cast<size_t>(count));
}
inline Floats blend(Lanes lanes, Floats yes, Floats no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, _mm256_castsi256_ps(lane_mask(lanes & 0xff))),
          _mm256_blendv_ps(no.hi, yes.hi, _mm256_castsi256_ps(lane_mask(lanes >> 8)))};
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
  if (count == 16) return {_mm256_i32gather_ps(from, index.lo, 4), _mm256_i32gather_ps(from, index.hi, 4)};
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
  alignas(32) float packed[24];
  _mm256_storeu_ps(packed, _mm256_permutevar8x32_ps(x.lo, front_order(lanes & 0xff)));
  _mm256_storeu_ps(packed + __builtin_popcount(lanes & 0xff), _mm256_permutevar8x32_ps(x.hi, front_order(lanes >> 8)));
  return load(packed);
}
inline Floats expand(Lanes lanes, Floats x) {
  alignas(32) float packed[24];
  store(packed, x);
  const __m256 high = _mm256_loadu_ps(packed + __builtin_popcount(lanes & 0xff));
  return {_mm256_permutevar8x32_ps(x.lo, back_order(lanes & 0xff)),
          _mm256_permutevar8x32_ps(high, back_order(lanes >> 8))};
}
inline Words bits_of(Floats x) { return {_mm256_castps_si256(x.lo), _mm256_castps_si256(x.hi)}; }
inline Floats floats_of(Words bits) { return {_mm256_castsi256_ps(bits.lo), _mm256_castsi256_ps(bits.hi)}; }
inline Lanes nan_lanes(Floats x) {
  return lanes_of(_mm256_cmp_ps(x.lo, x.lo, _CMP_UNORD_Q), _mm256_cmp_ps(x.hi, x.hi, _CMP_UNORD_Q));
}
inline Lanes finite_lanes(Floats x) {
  const __m256 infinity = _mm256_castsi256_ps(_mm256_set1_epi32(0x7f800000));
  return lanes_of(_mm256_cmp_ps(absolute(x.lo), infinity, _CMP_LT_OQ),
                  _mm256_cmp_ps(absolute(x.hi), infinity, _CMP_LT_OQ));
}

inline __m256i keys8(__m256i bits, bool largest) {
  bits = _mm256_andnot_si256(_mm256_cmpeq_epi32(bits, _mm256_set1_epi32(INT32_MIN)), bits);
  const __m256i key = _mm256_xor_si256(bits, _mm256_srli_epi32(_mm256_srai_epi32(bits, 31), 1));
  return largest ? key : _mm256_xor_si256(key, _mm256_set1_epi32(-1));
}

// score_key of topk.h; no lane may be NaN.
inline Words keys(Floats x, bool largest) {
  return {keys8(_mm256_castps_si256(x.lo), largest), keys8(_mm256_castps_si256(x.hi), largest)};
}

// lanes[i] += x[i]
inline void add_to(double* lanes, Floats x) {
  const __m128 quarters[4] = {_mm256_castps256_ps128(x.lo), _mm256_extractf128_ps(x.lo, 1),
                              _mm256_castps256_ps128(x.hi), _mm256_extractf128_ps(x.hi, 1)};
  for (int i = 0; i < 4; i++) {
    _mm256_storeu_pd(lanes + 4 * i, _mm256_add_pd(_mm256_loadu_pd(lanes + 4 * i), _mm256_cvtps_pd(quarters[i])));
  }
}

// 16 bytes; what is stored is below 256.
inline Words load_bytes(const uint8_t* from, int count) {
  uint8_t part[16] = {};
  if (count != 16) memcpy(part, from, static_cast<size_t>(count));
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(count == 16 ? from : part));
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
inline __m128i packed_bytes(Words x) {
  const __m256i halves = _mm256_permute4x64_epi64(_mm256_packus_epi32(x.lo, x.hi), 0xd8);
  return _mm_packus_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
}
inline void store_bytes(uint8_t* to, Words x, int count) {
  uint8_t part[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(count == 16 ? to : part), packed_bytes(x));
  if (count != 16) memcpy(to, part, static_cast<size_t>(count));
}
inline void store_bytes_lanes(uint8_t* to, Words x, Lanes lanes, int count) {
  store_bytes(to, blend(lanes, x, load_bytes(to, count)), count);
}

using Halves = __m256i;  // 16 elements of a 16-bit type

inline Halves load_halves(const uint16_t* from, int count) {
  if (count == 16) return load_words(from);
  uint16_t part[16] = {};
  memcpy(part, from, sizeof(uint16_t) * static_cast<size_t>(count));
  return load_words(part);
}
inline void store_halves(uint16_t* to, Halves x, int count) {
  if (count == 16) return store_words(to, x);
  uint16_t part[16];
  store_words(part, x);
  memcpy(to, part, sizeof(uint16_t) * static_cast<size_t>(count));
}
inline void store_halves_lanes(uint16_t* to, Halves x, Lanes lanes, int count) {
  const __m256i bit =
      _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, INT16_MIN);
  const __m256i selected = _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(static_cast<short>(lanes)), bit), bit);
  store_halves(to, _mm256_blendv_epi8(load_halves(to, count), x, selected), count);
}

inline Floats bfloat16_to_floats(Halves x) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1)), 16))};
}
inline __m256i floats_to_bfloat16(__m256 x, __m256i rounding) {
  const __m256i sum = _mm256_srli_epi32(_mm256_add_epi32(_mm256_castps_si256(x), rounding), 16);
  return _mm256_blendv_epi8(sum, _mm256_set1_epi32(0x7fc0), _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}
// Adds `rounding` to the bits and cuts off the low half.
inline Halves floats_to_bfloat16(Floats x, Words rounding) {
  const __m256i packed =
      _mm256_packus_epi32(floats_to_bfloat16(x.lo, rounding.lo), floats_to_bfloat16(x.hi, rounding.hi));
  return _mm256_permute4x64_epi64(packed, 0xd8);
}
inline __m256i nearest_even(__m256i bits) {
  return _mm256_add_epi32(_mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1)),
                          _mm256_set1_epi32(0x7fff));
}
inline Words nearest_even(Floats x) {
  return {nearest_even(_mm256_castps_si256(x.lo)), nearest_even(_mm256_castps_si256(x.hi))};
}
inline Halves floats_to_bfloat16(Floats x) { return floats_to_bfloat16(x, nearest_even(x)); }
inline Floats float16_to_floats(Halves x) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))};
}
inline Halves floats_to_float16(Floats x) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return _mm256_set_m128i(_mm256_cvtps_ph(x.hi, kNearest), _mm256_cvtps_ph(x.lo, kNearest));
}

}  // namespace aimfair::cpu::avx2
