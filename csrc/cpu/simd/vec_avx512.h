#pragma once

#include <immintrin.h>

#include "aimfair/numeric.h"

// Sixteen floats in one AVX-512 register. vec_avx2.h and vec_scalar.h hold the same names in the same order.
// Needs AVX-512 F, BW, DQ, VL.

namespace aimfair::cpu::avx512 {

using Lanes = uint16_t;  // bit i: lane i

struct Words {  // uint32
  __m512i v;
  Words() = default;
  Words(__m512i value) : v(value) {}
  explicit Words(uint32_t value) : v(_mm512_set1_epi32(static_cast<int>(value))) {}
  friend Words operator+(Words a, Words b) { return _mm512_add_epi32(a.v, b.v); }
  friend Words operator*(Words a, Words b) { return _mm512_mullo_epi32(a.v, b.v); }
  friend Words operator^(Words a, Words b) { return _mm512_xor_si512(a.v, b.v); }
  friend Words operator&(Words a, Words b) { return _mm512_and_si512(a.v, b.v); }
  friend Words operator|(Words a, Words b) { return _mm512_or_si512(a.v, b.v); }
  friend Words operator<<(Words a, int bits) { return _mm512_slli_epi32(a.v, static_cast<unsigned>(bits)); }
  friend Words operator>>(Words a, int bits) { return _mm512_srli_epi32(a.v, static_cast<unsigned>(bits)); }
};

inline Words lane_index() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
inline Words load(const int32_t* from) { return _mm512_loadu_si512(from); }
inline void store(int32_t* to, Words x) { _mm512_storeu_si512(to, x.v); }
inline Lanes greater(Words a, Words b) { return _mm512_cmpgt_epi32_mask(a.v, b.v); }  // as int32
inline Words greatest(Words a, Words b) { return _mm512_max_epi32(a.v, b.v); }        // as int32
inline Words least(Words a, Words b) { return _mm512_min_epi32(a.v, b.v); }           // as int32
inline Words compress(Lanes lanes, Words x) { return _mm512_maskz_compress_epi32(lanes, x.v); }
inline Words blend(Lanes lanes, Words yes, Words no) { return _mm512_mask_blend_epi32(lanes, no.v, yes.v); }

struct Floats {
  __m512 v;
  Floats() = default;
  Floats(__m512 value) : v(value) {}
  explicit Floats(float value) : v(_mm512_set1_ps(value)) {}
  friend Floats operator+(Floats a, Floats b) { return _mm512_add_ps(a.v, b.v); }
  friend Floats operator-(Floats a, Floats b) { return _mm512_sub_ps(a.v, b.v); }
  friend Floats operator*(Floats a, Floats b) { return _mm512_mul_ps(a.v, b.v); }
  friend Floats operator/(Floats a, Floats b) { return _mm512_div_ps(a.v, b.v); }
};

inline Floats square_root(Floats x) { return _mm512_sqrt_ps(x.v); }
inline Floats absolute(Floats x) { return _mm512_abs_ps(x.v); }
inline Floats greater_or_second(Floats a, Floats b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ), b.v, a.v);
}

inline Lanes first_lanes(int count) { return static_cast<Lanes>((1u << count) - 1u); }
inline Floats load(const float* from) { return _mm512_loadu_ps(from); }
inline Floats load_first(const float* from, int count) { return _mm512_maskz_loadu_ps(first_lanes(count), from); }
inline void store(float* to, Floats x) { _mm512_storeu_ps(to, x.v); }
inline void store_first(float* to, Floats x, int count) { _mm512_mask_storeu_ps(to, first_lanes(count), x.v); }
inline void store_lanes(float* to, Floats x, Lanes lanes, int count) {
  _mm512_mask_storeu_ps(to, static_cast<Lanes>(lanes & first_lanes(count)), x.v);
}
inline Floats blend(Lanes lanes, Floats yes, Floats no) { return _mm512_mask_blend_ps(lanes, no.v, yes.v); }
// The first `count` lanes from or to from[index], which are different places.
inline Floats gather(const float* from, Words index, int count) {
  return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), first_lanes(count), index.v, from, 4);
}
inline void scatter(float* to, Words index, Floats x, int count) {
  _mm512_mask_i32scatter_ps(to, first_lanes(count), index.v, x.v, 4);
}
inline Floats compress(Lanes lanes, Floats x) { return _mm512_maskz_compress_ps(lanes, x.v); }
inline Floats expand(Lanes lanes, Floats x) { return _mm512_maskz_expand_ps(lanes, x.v); }
inline Words bits_of(Floats x) { return _mm512_castps_si512(x.v); }
inline Floats floats_of(Words bits) { return _mm512_castsi512_ps(bits.v); }
inline Lanes nan_lanes(Floats x) { return _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q); }
inline Lanes finite_lanes(Floats x) {
  return _mm512_cmp_ps_mask(_mm512_abs_ps(x.v), _mm512_castsi512_ps(_mm512_set1_epi32(0x7f800000)), _CMP_LT_OQ);
}

// score_key of topk.h; no lane may be NaN.
inline Words keys(Floats x, bool largest) {
  const __m512i bits = _mm512_maskz_mov_epi32(
      _mm512_cmpneq_epi32_mask(_mm512_castps_si512(x.v), _mm512_set1_epi32(INT32_MIN)), _mm512_castps_si512(x.v));
  const __m512i key = _mm512_xor_si512(bits, _mm512_srli_epi32(_mm512_srai_epi32(bits, 31), 1));
  return largest ? key : _mm512_xor_si512(key, _mm512_set1_epi32(-1));
}

// lanes[i] += x[i]
inline void add_to(double* lanes, Floats x) {
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x.v));
  const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x.v, 1));
  _mm512_storeu_pd(lanes, _mm512_add_pd(_mm512_loadu_pd(lanes), low));
  _mm512_storeu_pd(lanes + 8, _mm512_add_pd(_mm512_loadu_pd(lanes + 8), high));
}

// 16 bytes; what is stored is below 256.
inline Words load_bytes(const uint8_t* from, int count) {
  return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first_lanes(count), from));
}
inline void store_bytes(uint8_t* to, Words x, int count) {
  _mm_mask_storeu_epi8(to, first_lanes(count), _mm512_cvtepi32_epi8(x.v));
}
inline void store_bytes_lanes(uint8_t* to, Words x, Lanes lanes, int count) {
  _mm_mask_storeu_epi8(to, static_cast<Lanes>(lanes & first_lanes(count)), _mm512_cvtepi32_epi8(x.v));
}

using Halves = __m256i;  // 16 elements of a 16-bit type

inline Halves load_halves(const uint16_t* from, int count) {
  return count == 16 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))
                     : _mm256_maskz_loadu_epi16(first_lanes(count), from);
}
inline void store_halves(uint16_t* to, Halves x, int count) {
  if (count == 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x);
  } else {
    _mm256_mask_storeu_epi16(to, first_lanes(count), x);
  }
}
inline void store_halves_lanes(uint16_t* to, Halves x, Lanes lanes, int count) {
  _mm256_mask_storeu_epi16(to, static_cast<Lanes>(lanes & first_lanes(count)), x);
}

inline Floats bfloat16_to_floats(Halves x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
// Adds `rounding` to the bits and cuts off the low half.
inline Halves floats_to_bfloat16(Floats x, Words rounding) {
  const __m512i sum = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(x.v), rounding.v), 16);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(sum, nan_lanes(x), _mm512_set1_epi32(0x7fc0)));
}
inline Words nearest_even(Floats x) {
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(_mm512_castps_si512(x.v), 16), _mm512_set1_epi32(1));
  return _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
}
inline Halves floats_to_bfloat16(Floats x) { return floats_to_bfloat16(x, nearest_even(x)); }
inline Floats float16_to_floats(Halves x) { return _mm512_cvtph_ps(x); }
inline Halves floats_to_float16(Floats x) {
  return _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

}  // namespace aimfair::cpu::avx512
