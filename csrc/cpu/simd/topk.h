#pragma once

// Scores, keys and bits of up to one block. Included by kernels.cpp after a vector header.

namespace aimfair::cpu::AIMFAIR_SIMD {
namespace {

// One criterion on the up to 16 elements from `at`.
inline Floats term_score(const ScoreTerm& term, Floats eps, const float* a, const float* b, int64_t at, int count) {
  const Floats x = Storage<DType::float32>::get(a + at, count), scale_a(term.scale_a), scale_b(term.scale_b);
  switch (term.criterion) {
    case Criterion::magnitude:
      return score_magnitude(x, scale_a);
    case Criterion::difference:
      return score_difference(x, Storage<DType::float32>::get(b + at, count), scale_a, scale_b);
    case Criterion::relative_difference:
      return score_relative_difference(x, Storage<DType::float32>::get(b + at, count), scale_a, scale_b, eps);
    case Criterion::norm_ratio:
      return score_norm_ratio(x, Storage<DType::float32>::get(b + at, count), scale_a, scale_b, eps);
    case Criterion::value:
    case Criterion::none:
      break;
  }
  return score_value(x);
}

// Calls use(i, score of elements begin + i .., count) for every group of up to 16; true if a score is NaN.
template <class Use>
inline bool for_each_score(const ScoreTensor& tensor, const Score& spec, int64_t begin, int n, const Use& use) {
  const Floats eps(spec.eps);
  const bool divided = spec.divisor.criterion != Criterion::none;
  Lanes nan = 0;
  for (int i = 0; i < n; i += 16) {
    const int count = n - i < 16 ? n - i : 16;
    Floats score = term_score(spec.term, eps, tensor.a, tensor.b, begin + i, count);
    if (divided) score = score / (term_score(spec.divisor, eps, tensor.c, tensor.d, begin + i, count) + eps);
    nan = static_cast<Lanes>(nan | (nan_lanes(score) & first_lanes(count)));
    use(i, score, count);
  }
  return nan != 0;
}

bool scores(const ScoreTensor& tensor, const Score& spec, int64_t begin, int n, float* out) {
  return for_each_score(tensor, spec, begin, n,
                        [&](int i, Floats score, int count) { Storage<DType::float32>::put(out + i, score, count); });
}

bool score_keys(const ScoreTensor& tensor, const Score& spec, bool largest, int64_t begin, int n, int32_t* out) {
  return for_each_score(tensor, spec, begin, n, [&](int i, Floats score, int count) {
    store(out + i, keys(score, largest));
    for (int lane = count; lane < 16; lane++) out[i + lane] = INT32_MIN;
  });
}

int64_t count_bits(const uint32_t* words, int64_t n) {
  int64_t set = 0;
  for (int64_t i = 0; i < n; i += 2) {
    uint64_t pair;
    memcpy(&pair, words + i, sizeof pair);
    set += __builtin_popcountll(pair);
  }
  return set;
}

double sum(const float* values, int n) {
  double lanes[16] = {};
  int i = 0;
  for (; i + 16 <= n; i += 16) add_to(lanes, load(values + i));
  if (i < n) add_to(lanes, load_first(values + i, n - i));
  return lane_sum(lanes);
}

int above(const int32_t* keys, int n, int32_t threshold, uint16_t* bits) {
  const Words bound(static_cast<uint32_t>(threshold)), below(static_cast<uint32_t>(threshold) - 1u);
  int equal = 0, i = 0;
  for (; i < n; i += 16) {
    const Words key = load(keys + i);
    const Lanes over = greater(key, bound);
    bits[i / 16] = over;
    // INT32_MIN - 1 wraps around to the greatest key, but INT32_MIN itself is no score's key.
    equal += __builtin_popcount(greater(key, below) & ~over & 0xffff);
  }
  for (; i < kBlock; i += 16) bits[i / 16] = 0;
  return equal;
}

int64_t count_greater(const int32_t* keys, int64_t n, int32_t threshold) {
  const Words bound(static_cast<uint32_t>(threshold));
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 16) count += __builtin_popcount(greater(load(keys + i), bound));
  return count;
}

int bracket(const int32_t* keys, int n, int32_t low, int32_t high, uint16_t* bits, int* above_count, uint32_t place,
            int32_t* candidate_keys, uint32_t* candidate_places) {
  const Words upper(static_cast<uint32_t>(high)), lower(static_cast<uint32_t>(low) - 1u);
  int candidates = 0, over_count = 0, i = 0;
  for (; i < n; i += 16) {
    const Words key = load(keys + i);
    const Lanes over = greater(key, upper);
    const Lanes inside = static_cast<Lanes>(greater(key, lower) & ~over);
    bits[i / 16] = over;
    over_count += __builtin_popcount(over);
    if (inside) {
      const Words places = lane_index() + Words(place + static_cast<uint32_t>(i));
      store(candidate_keys + candidates, compress(inside, key));
      store(reinterpret_cast<int32_t*>(candidate_places) + candidates, compress(inside, places));
      candidates += __builtin_popcount(inside);
    }
  }
  for (; i < kBlock; i += 16) bits[i / 16] = 0;
  *above_count = over_count;
  return candidates;
}

}  // namespace
}  // namespace aimfair::cpu::AIMFAIR_SIMD
