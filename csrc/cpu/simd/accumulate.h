#pragma once

// accumulate for a range of one tensor. Included by kernels.cpp after a vector header.

namespace aimfair::cpu::AIMFAIR_SIMD {
namespace {

// ((l0 + l8) + (l4 + l12)) + ...: this order defines the result.
inline double lane_sum(const double* lanes) {
  double half[8];
  for (int i = 0; i < 8; i++) half[i] = lanes[i] + lanes[i + 8];
  for (int i = 0; i < 4; i++) half[i] += half[i + 4];
  return (half[0] + half[2]) + (half[1] + half[3]);
}

template <DType kDType, bool kSum, bool kSquare, bool kSecond>
struct Accumulate {
  using Element = typename Storage<kDType>::type;
  const AccumulateTensor& tensor;
  Floats weight, second_weight, grad_factor;
  bool zero_grads;

  // Adds up to 16 elements; returns their squares, and the lanes that were not finite.
  AIMFAIR_INLINE Floats group(int64_t at, int count, Lanes* bad) const {
    Element* grad = static_cast<Element*>(tensor.grad) + at;
    const Floats scaled = Storage<kDType>::get(grad, count) * grad_factor;
    const Lanes finite = finite_lanes(scaled);
    *bad = static_cast<Lanes>(~finite);
    const Floats g = blend(finite, scaled, Floats(0.0f));
    const Floats squares = g * g;
    if constexpr (kSum) add(tensor.sum + at, weight * g, count);
    if constexpr (kSquare) add(tensor.square + at, squares, count);
    if constexpr (kSecond) add(tensor.second_sum + at, second_weight * g, count);
    if (zero_grads) Storage<kDType>::put(grad, Storage<kDType>::pack(Floats(0.0f)), count);
    return squares;
  }

  AIMFAIR_INLINE static void add(float* to, Floats x, int count) {
    Storage<DType::float32>::put(to, Storage<DType::float32>::get(to, count) + x, count);
  }

  void range(int64_t begin, int64_t end, double* square_norm, int64_t* nonfinite) const {
    double lanes[16] = {};
    int64_t bad_count = 0;
    for (int64_t block = begin; block < end; block += kBlock) {
      const int64_t block_end = end - block < kBlock ? end : block + kBlock;
      Floats block_sum(0.0f);
      Lanes bad;
      int64_t at = block;
      for (; at + 16 <= block_end; at += 16) {
        block_sum = block_sum + group(at, 16, &bad);
        if (__builtin_expect(bad != 0, 0)) bad_count += __builtin_popcount(bad);
      }
      if (at < block_end) {
        block_sum = block_sum + group(at, static_cast<int>(block_end - at), &bad);
        bad_count += __builtin_popcount(bad);
      }
      add_to(lanes, block_sum);
    }
    *square_norm = lane_sum(lanes);
    *nonfinite = bad_count;
  }
};

template <DType kDType, bool... kKept>
void accumulate_as(const AccumulateTensor& tensor, const AccumulateOptions& options, float grad_factor, int64_t begin,
                   int64_t end, double* square_norm, int64_t* nonfinite) {
  if constexpr (sizeof...(kKept) < 3) {
    float* const lists[] = {tensor.sum, tensor.square, tensor.second_sum};
    if (lists[sizeof...(kKept)]) {
      accumulate_as<kDType, kKept..., true>(tensor, options, grad_factor, begin, end, square_norm, nonfinite);
    } else {
      accumulate_as<kDType, kKept..., false>(tensor, options, grad_factor, begin, end, square_norm, nonfinite);
    }
  } else {
    const Accumulate<kDType, kKept...> kernel{tensor, Floats(options.weight), Floats(options.second_weight),
                                              Floats(grad_factor), options.zero_grads};
    kernel.range(begin, end, square_norm, nonfinite);
  }
}

void accumulate_range(const AccumulateTensor& tensor, const AccumulateOptions& options, float grad_factor,
                      int64_t begin, int64_t end, double* square_norm, int64_t* nonfinite) {
  switch (tensor.dtype) {
    case DType::float32:
      return accumulate_as<DType::float32>(tensor, options, grad_factor, begin, end, square_norm, nonfinite);
    case DType::bfloat16:
      return accumulate_as<DType::bfloat16>(tensor, options, grad_factor, begin, end, square_norm, nonfinite);
    case DType::float16:
      return accumulate_as<DType::float16>(tensor, options, grad_factor, begin, end, square_norm, nonfinite);
  }
}

}  // namespace
}  // namespace aimfair::cpu::AIMFAIR_SIMD
