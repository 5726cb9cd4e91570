#pragma once

#include <cstdint>

#include "aimfair/accumulate.h"
#include "aimfair/step.h"
#include "aimfair/topk.h"

// The kernels, compiled once per instruction set (simd/kernels.cpp): single-threaded work on a range of one tensor.
// Ranges start at a multiple of kBlock. All paths give the same bits.

namespace aimfair::cpu {

// What a step needs besides the tensor and the options.
struct StepValues {
  float grad_factor;  // gradients are multiplied by it
  uint64_t step;      // number of this step, from 1
};

template <class Update>
using StepKernel = void (*)(const StepTensor& tensor, const StepOptions& options, const StepValues& values,
                            const Update& update, int64_t begin, int64_t end);

struct Kernels {
  // Adds elements [begin, end), times grad_factor, into the statistics; *square_norm and *nonfinite are set.
  void (*accumulate)(const AccumulateTensor& tensor, const AccumulateOptions& options, float grad_factor, int64_t begin,
                     int64_t end, double* square_norm, int64_t* nonfinite);

  // Scores of the n <= kBlock elements from `begin`; returns whether one is NaN. `begin` needs no alignment.
  bool (*scores)(const ScoreTensor& tensor, const Score& spec, int64_t begin, int n, float* out);

  // Keys of scores (score_key); `keys` is padded to a multiple of 16 with INT32_MIN, which no score has.
  bool (*score_keys)(const ScoreTensor& tensor, const Score& spec, bool largest, int64_t begin, int n, int32_t* keys);

  // Number of set bits in n words; n is even.
  int64_t (*count_bits)(const uint32_t* words, int64_t n);

  // Sum of n <= kBlock floats in double: element i to lane i % 16, lanes added as a tree.
  double (*sum)(const float* values, int n);

  // Writes the bits of one block: key > threshold. Returns how many keys equal the threshold.
  int (*above)(const int32_t* keys, int n, int32_t threshold, uint16_t* bits);

  // Number of the n keys that are greater than the threshold; keys are padded as those of score_keys.
  int64_t (*count_greater)(const int32_t* keys, int64_t n, int32_t threshold);

  // Writes the bits of one block: key > high, counted in *above. Keys from low to high go to `candidate_keys` and
  // their places, from `place`, to `candidate_places`; both need 16 spare entries. Returns the number of candidates.
  int (*bracket)(const int32_t* keys, int n, int32_t low, int32_t high, uint16_t* bits, int* above, uint32_t place,
                 int32_t* candidate_keys, uint32_t* candidate_places);

  // One step on the selected elements among [begin, end).
  StepKernel<AdamW<false>> adamw;
  StepKernel<AdamW<true>> amsgrad;
  StepKernel<Sgd<false>> sgd;
  StepKernel<Sgd<true>> momentum;
};

namespace scalar {
extern const Kernels kernels;
}
#if defined(AIMFAIR_X86)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#elif defined(AIMFAIR_ARM64)
namespace neon {
extern const Kernels kernels;
}
#endif

// The kernels of the path in use (aimfair/cpu.h).
const Kernels& kernels();

}  // namespace aimfair::cpu
