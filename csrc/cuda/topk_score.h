#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "aimfair/mask.h"
#include "aimfair/numeric.h"
#include "aimfair/topk.h"
#include "cuda/element.h"
#include "cuda/warp.h"

// Scores of elements of one tensor in device memory, one or four at a time, and scores and keys of whole mask blocks,
// one warp for each. Kernels over mask blocks are compiled for every number of inputs that the term and the divisor can
// have, so that loads precede the arithmetic; they branch on the criterion at run time.

namespace aimfair::cuda {

// The operations on a vector that the formulas of aimfair/topk.h use.

template <class Operation>
AIMFAIR_HOST_DEVICE Four by_lane(const Four& x, const Four& y, const Operation& operation) {
  return {{operation(x.v[0], y.v[0]), operation(x.v[1], y.v[1]), operation(x.v[2], y.v[2]), operation(x.v[3], y.v[3])}};
}

AIMFAIR_HOST_DEVICE Four operator+(const Four& x, const Four& y) {
  return by_lane(x, y, [](float a, float b) { return a + b; });
}
AIMFAIR_HOST_DEVICE Four operator-(const Four& x, const Four& y) {
  return by_lane(x, y, [](float a, float b) { return a - b; });
}
AIMFAIR_HOST_DEVICE Four operator*(const Four& x, const Four& y) {
  return by_lane(x, y, [](float a, float b) { return a * b; });
}
AIMFAIR_HOST_DEVICE Four operator/(const Four& x, const Four& y) {
  return by_lane(x, y, [](float a, float b) { return a / b; });
}
AIMFAIR_HOST_DEVICE Four square_root(const Four& x) {
  return by_lane(x, x, [](float a, float) { return sqrtf(a); });
}
AIMFAIR_HOST_DEVICE Four absolute(const Four& x) {
  return by_lane(x, x, [](float a, float) { return fabsf(a); });
}

template <class F>
__device__ __forceinline__ F all_lanes(float x) {
  if constexpr (sizeof(F) == sizeof(float)) {
    return x;
  } else {
    return {{x, x, x, x}};
  }
}

template <class F>
__device__ __forceinline__ F term_score(const ScoreTerm& term, float eps, const F& a, const F& b) {
  const F scale_a = all_lanes<F>(term.scale_a), scale_b = all_lanes<F>(term.scale_b);
  switch (term.criterion) {
    case Criterion::magnitude:
      return score_magnitude(a, scale_a);
    case Criterion::difference:
      return score_difference(a, b, scale_a, scale_b);
    case Criterion::relative_difference:
      return score_relative_difference(a, b, scale_a, scale_b, all_lanes<F>(eps));
    case Criterion::norm_ratio:
      return score_norm_ratio(a, b, scale_a, scale_b, all_lanes<F>(eps));
    case Criterion::value:
    case Criterion::none:
      break;
  }
  return score_value(a);
}

// load(input) returns elements of one input; it is called for the inputs that the criteria read. `spec` should be a
// parameter of the kernel, so that all threads branch alike.
template <class F, class Load>
__device__ __forceinline__ F score_of(const ScoreTensor& tensor, const Score& spec, const Load& load) {
  const bool divided = spec.divisor.criterion != Criterion::none;
  // All loads come before the arithmetic.
  F a = load(tensor.a), b = all_lanes<F>(0.0f), c = b, d = b;
  if (has_second_input(spec.term.criterion)) b = load(tensor.b);
  if (divided) c = load(tensor.c);
  if (has_second_input(spec.divisor.criterion)) d = load(tensor.d);
  const F score = term_score(spec.term, spec.eps, a, b);
  return divided ? score / (term_score(spec.divisor, spec.eps, c, d) + all_lanes<F>(spec.eps)) : score;
}

// Score of element `at`.
__device__ __forceinline__ float score_at(const ScoreTensor& tensor, const Score& spec, int64_t at) {
  return score_of<float>(tensor, spec, [&](const float* from) { return from[at]; });
}

// Whether the addresses of all inputs allow loads of four floats.
__device__ __forceinline__ bool fours_aligned(const ScoreTensor& tensor) {
  constexpr int64_t kSize = 4 * sizeof(float);
  return four_aligned(tensor.a, kSize) && four_aligned(tensor.b, kSize) && four_aligned(tensor.c, kSize) &&
         four_aligned(tensor.d, kSize);
}

// The parameters of kernels over scores. The arrays are device memory.
struct ScoreInputs {
  const ScoreTensor* tensors;
  const int64_t* first_blocks;  // count + 1 entries
  int64_t count;
  int64_t blocks;
  Score spec;
  bool largest;
};

// Calls use(inputs of the term, inputs of the divisor), both as std::integral_constant.
template <class Use>
cudaError_t with_input_counts(const Score& spec, const Use& use) {
  const auto inputs = [](Criterion criterion) {
    return criterion == Criterion::none ? 0 : has_second_input(criterion) ? 2 : 1;
  };
  const auto with_divisor = [&](auto term) {
    switch (inputs(spec.divisor.criterion)) {
      case 0:
        return use(term, std::integral_constant<int, 0>{});
      case 1:
        return use(term, std::integral_constant<int, 1>{});
      default:
        return use(term, std::integral_constant<int, 2>{});
    }
  };
  if (inputs(spec.term.criterion) == 2) return with_divisor(std::integral_constant<int, 2>{});
  return with_divisor(std::integral_constant<int, 1>{});
}

// A term of one input is chosen without a branch.
template <int kInputs>
__device__ __forceinline__ Four term_of(const ScoreTerm& term, float eps, const Four& a, const Four& b) {
  if constexpr (kInputs == 2) {
    return term_score(term, eps, a, b);
  } else {
    const Four magnitude = score_magnitude(a, all_lanes<Four>(term.scale_a));
    return term.criterion == Criterion::value ? a : magnitude;
  }
}

template <int kTerm, int kDivisor>
__device__ __forceinline__ Four scores_of(const Score& spec, const Four (&inputs)[kTerm + kDivisor]) {
  const Four score = term_of<kTerm>(spec.term, spec.eps, inputs[0], inputs[kTerm - 1]);
  if constexpr (kDivisor == 0) {
    return score;
  } else {
    const Four divisor = term_of<kDivisor>(spec.divisor, spec.eps, inputs[kTerm], inputs[kTerm + kDivisor - 1]);
    return score / (divisor + all_lanes<Four>(spec.eps));
  }
}

// Input i of those that a score is made of: a, perhaps b, perhaps c and d.
template <int kTerm>
__device__ __forceinline__ const float* input_of(const ScoreTensor& tensor, int i) {
  if (i < kTerm) return i == 0 ? tensor.a : tensor.b;
  return i == kTerm ? tensor.c : tensor.d;
}

// Keys that compare unsigned: score_key with the sign bit flipped. No number has the key 0 or the greatest one.
__device__ __forceinline__ uint32_t unsigned_key(float score, bool largest) {
  return static_cast<uint32_t>(score_key(float_bits(score), largest)) ^ 0x80000000u;
}

// The score whose key is `key`.
__device__ __forceinline__ float score_of_key(uint32_t key, bool largest) {
  const auto value = static_cast<int32_t>((largest ? key : ~key) ^ 0x80000000u);
  return bits_float(static_cast<uint32_t>(value) ^ (static_cast<uint32_t>(value >> 31) >> 1));
}

// The keys of the worst and the best score there can be, infinite ones.
constexpr uint32_t kWorstKey = 0x007fffffu, kBestKey = 0xff800000u;

// The key itself, or the nearest one that a score has: those beyond infinity would be of NaN, and one is of -0, which
// has the key of +0.
__device__ __forceinline__ uint32_t key_of_a_score(uint32_t key, bool largest) {
  const uint32_t within = key < kWorstKey ? kWorstKey : key > kBestKey ? kBestKey : key;
  return unsigned_key(score_of_key(within, largest), largest);
}

// A mask block is 8 groups of 128 elements, of which a lane has 4 consecutive ones in each.
constexpr int kGroup = 4 * kWarp;
constexpr int kGroups = static_cast<int>(kBlock) / kGroup;

// One mask block and the tensor it belongs to.
struct ScoreBlock {
  ScoreTensor tensor;
  int64_t index;  // of the tensor
  int64_t begin;  // its first element in the tensor
  int size;       // elements
};

// All lanes must call.
__device__ __forceinline__ ScoreBlock score_block(const ScoreInputs& inputs, int64_t block) {
  ScoreBlock found;
  found.index = owner_of(inputs.first_blocks, inputs.count, block);
  found.tensor = inputs.tensors[found.index];
  found.begin = (block - inputs.first_blocks[found.index]) * kBlock;
  const int64_t left = found.tensor.numel - found.begin;
  found.size = static_cast<int>(left < kBlock ? left : kBlock);
  return found;
}

// Four elements from an aligned address. The compiler is told that they are in global memory, which no kernel here
// writes: it cannot know for pointers that come from a table.
__device__ __forceinline__ Four load_input(const float* from) {
  const float4 x = __ldg(reinterpret_cast<const float4*>(from));
  return {{x.x, x.y, x.z, x.w}};
}

// Calls use(group, the lane's four scores) for all groups. What lies past the end repeats the last element.
template <int kTerm, int kDivisor, class Use>
__device__ __forceinline__ void for_each_group(const Score& spec, const ScoreBlock& block, const Use& use) {
  constexpr int kInputs = kTerm + kDivisor;
  // Groups that are loaded at once: 64 bytes or more in each lane, in few enough registers.
  constexpr int kBatch = kInputs == 1 ? 8 : kTerm == 2 && kDivisor == 0 ? 4 : kInputs == 4 ? 1 : 2;
  const int64_t at = block.begin + lane_id() * 4;
  if (block.size == kBlock && fours_aligned(block.tensor)) {
#pragma unroll 1
    for (int first = 0; first < kGroups; first += kBatch) {
      Four inputs[kBatch][kInputs];
#pragma unroll
      for (int g = 0; g < kBatch; g++) {
#pragma unroll
        for (int i = 0; i < kInputs; i++) {
          inputs[g][i] = load_input(input_of<kTerm>(block.tensor, i) + at + (first + g) * kGroup);
        }
      }
#pragma unroll
      for (int g = 0; g < kBatch; g++) use(first + g, scores_of<kTerm, kDivisor>(spec, inputs[g]));
    }
  } else {
    const int64_t last = block.tensor.numel - 1;
#pragma unroll 1
    for (int group = 0; group < kGroups; group++) {
      Four inputs[kInputs];
#pragma unroll
      for (int i = 0; i < kInputs; i++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int64_t element = at + group * kGroup + e;
          inputs[i].v[e] = __ldg(input_of<kTerm>(block.tensor, i) + (element < last ? element : last));
        }
      }
      use(group, scores_of<kTerm, kDivisor>(spec, inputs));
    }
  }
}

// Four bits of each lane for every group, group g's from bit 4 g up, to the words of the mask block: lane i's is word
// i. Lane 8 w + i has bits 4 i to 4 i + 3 of the words 4 g + w, so eight lanes transpose a matrix of eight by eight.
__device__ __forceinline__ uint32_t words_of(uint32_t bits) {
  const int lane = lane_id();
  uint32_t other = __shfl_xor_sync(kAllLanes, bits, 4);
  bits = lane & 4 ? (bits & 0xffff0000u) | other >> 16 : (bits & 0x0000ffffu) | other << 16;
  other = __shfl_xor_sync(kAllLanes, bits, 2);
  bits =
      lane & 2 ? (bits & 0xff00ff00u) | (other >> 8 & 0x00ff00ffu) : (bits & 0x00ff00ffu) | (other << 8 & 0xff00ff00u);
  other = __shfl_xor_sync(kAllLanes, bits, 1);
  bits =
      lane & 1 ? (bits & 0xf0f0f0f0u) | (other >> 4 & 0x0f0f0f0fu) : (bits & 0x0f0f0f0fu) | (other << 4 & 0xf0f0f0f0u);
  return __shfl_sync(kAllLanes, bits, 8 * (lane % 4) + lane / 4);
}

// The bits of the lane's word that are elements of a block of `size`.
__device__ __forceinline__ uint32_t bits_inside(int size) {
  const int left = size - lane_id() * 32;
  return left >= 32 ? ~0u : left > 0 ? (1u << left) - 1 : 0u;
}

// Whether one is NaN: one instruction for two floats.
__device__ __forceinline__ bool unordered(float a, float b) {
  return static_cast<bool>(static_cast<int>(a != a) | static_cast<int>(b != b));
}

// A range of scores, with bounds that are in it.
struct ScoreRange {
  float least, greatest;

  __device__ ScoreRange(uint32_t worst_key, uint32_t best_key, bool largest)
      : least(score_of_key(largest ? worst_key : best_key, largest)),
        greatest(score_of_key(largest ? best_key : worst_key, largest)) {}
};

// The lane's word of a mask block: which scores are better than a range, and which are in it.
struct Compared {
  uint32_t better, inside;
  bool nan;  // one of the lane's scores
};

// All lanes must call. Floats are compared instead of keys, which takes half of the instructions and orders them alike:
// -0 equals +0. The direction only matters for whole words.
template <int kTerm, int kDivisor>
__device__ __forceinline__ Compared compare_block(const ScoreInputs& inputs, const ScoreBlock& block,
                                                  const ScoreRange& range) {
  uint32_t greater = 0, not_less = 0;
  bool nan = false;
  for_each_group<kTerm, kDivisor>(inputs.spec, block, [&](int, const Four& scores) {
    // After all groups, group g's bits are those from 4 g up.
    greater >>= 4;
    not_less >>= 4;
#pragma unroll
    for (int e = 0; e < 4; e++) {
      if (scores.v[e] > range.greatest) greater |= 0x10000000u << e;
      if (scores.v[e] >= range.least) not_less |= 0x10000000u << e;
    }
    nan |= unordered(scores.v[0], scores.v[1]) | unordered(scores.v[2], scores.v[3]);
  });
  greater = words_of(greater);
  not_less = words_of(not_less);
  const uint32_t elements = bits_inside(block.size);
  return {(inputs.largest ? greater : ~not_less) & elements, not_less & ~greater & elements, nan};
}

// The same for a range of one key, which need not be that of a score.
template <int kTerm, int kDivisor>
__device__ __forceinline__ Compared compare_block(const ScoreInputs& inputs, const ScoreBlock& block, uint32_t key) {
  const uint32_t nearest = key_of_a_score(key, inputs.largest);
  Compared found = compare_block<kTerm, kDivisor>(inputs, block, ScoreRange(nearest, nearest, inputs.largest));
  if (nearest > key) found.better |= found.inside;
  if (nearest != key) found.inside = 0;
  return found;
}

// The first n of the bits of a mask block, of which each lane has a word. All lanes must call.
__device__ __forceinline__ uint32_t first_bits(uint32_t word, int64_t n) {
  int total;
  n -= exclusive_sum(__popc(word), &total);
  while (__popc(word) > n && word != 0) word &= ~(0x80000000u >> __clz(static_cast<int>(word)));
  return word;
}

}  // namespace aimfair::cuda
