#pragma once

// Element types in memory. Included by kernels.cpp after a vector header.

namespace aimfair::cpu::AIMFAIR_SIMD {

// get and pack convert; put writes the first `count` of 16 lanes, put_lanes of those only the given ones, so that every
// other element keeps its bits (a NaN its payload). get_at and put_at take the first `count` of 16 places.
template <DType>
struct Storage;

template <>
struct Storage<DType::float32> {
  using type = float;
  static Floats get(const type* from, int count) { return count == 16 ? load(from) : load_first(from, count); }
  static Floats get_at(const type* from, Words places, int count) { return gather(from, places, count); }
  static Floats pack(Floats x) { return x; }
  static void put(type* to, Floats x, int count) {
    if (count == 16) {
      store(to, x);
    } else {
      store_first(to, x, count);
    }
  }
  static void put_lanes(type* to, Floats x, Lanes lanes, int count) { store_lanes(to, x, lanes, count); }
  static void put_at(type* to, Words places, Floats x, int count) { scatter(to, places, x, count); }
};

// Common to the two 16-bit types, which no instruction set gathers or scatters.
struct HalfStorage {
  using type = uint16_t;
  static Halves gathered(const type* from, Words places, int count) {
    int32_t at[16];
    type part[16] = {};
    store(at, places);
    for (int i = 0; i < count; i++) part[i] = from[at[i]];
    return load_halves(part, 16);
  }
  static void put(type* to, Halves x, int count) { store_halves(to, x, count); }
  static void put_lanes(type* to, Halves x, Lanes lanes, int count) { store_halves_lanes(to, x, lanes, count); }
  static void put_at(type* to, Words places, Halves x, int count) {
    int32_t at[16];
    type part[16];
    store(at, places);
    store_halves(part, x, 16);
    for (int i = 0; i < count; i++) to[at[i]] = part[i];
  }
};

template <>
struct Storage<DType::bfloat16> : HalfStorage {
  static Floats get(const type* from, int count) { return bfloat16_to_floats(load_halves(from, count)); }
  static Floats get_at(const type* from, Words at, int count) { return bfloat16_to_floats(gathered(from, at, count)); }
  static Halves pack(Floats x) { return floats_to_bfloat16(x); }
  static Halves pack(Floats x, Words random) { return floats_to_bfloat16(x, random); }
};

template <>
struct Storage<DType::float16> : HalfStorage {
  static Floats get(const type* from, int count) { return float16_to_floats(load_halves(from, count)); }
  static Floats get_at(const type* from, Words at, int count) { return float16_to_floats(gathered(from, at, count)); }
  static Halves pack(Floats x) { return floats_to_float16(x); }
};

// Rounds new values of a parameter, at random with kStochastic, and writes the selected ones. `key` is that of the
// block and `place` that of the first element in it.
template <DType kDType, bool kStochastic>
AIMFAIR_INLINE void put_rounded(typename Storage<kDType>::type* to, Floats x, uint64_t key, int64_t place,
                                Lanes selected, int count) {
  using Param = Storage<kDType>;
  if constexpr (kStochastic) {
    const Words random = random16(key, lane_index() + Words(static_cast<uint32_t>(place)));
    Param::put_lanes(to, Param::pack(x, random), selected, count);
  } else if (selected == 0xffff) {
    Param::put(to, Param::pack(x), count);
  } else {
    Param::put_lanes(to, Param::pack(x), selected, count);
  }
}

}  // namespace aimfair::cpu::AIMFAIR_SIMD
