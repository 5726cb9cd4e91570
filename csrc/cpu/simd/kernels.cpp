// Compiled once per instruction set, with AIMFAIR_SIMD naming it: scalar, avx2, avx512 or neon. Nothing here may use
// templates of the standard library: the linker keeps one copy of each, which could be one that needs AVX-512.

#include "cpu/kernels.h"

#include <cstring>

#include "aimfair/random.h"

#define AIMFAIR_VECTOR_HEADER_avx512 "cpu/simd/vec_avx512.h"
#define AIMFAIR_VECTOR_HEADER_avx2 "cpu/simd/vec_avx2.h"
#define AIMFAIR_VECTOR_HEADER_neon "cpu/simd/vec_neon.h"
#define AIMFAIR_VECTOR_HEADER_scalar "cpu/simd/vec_scalar.h"
#define AIMFAIR_CONCATENATE(a, b) a##b
#define AIMFAIR_VECTOR_HEADER(simd) AIMFAIR_CONCATENATE(AIMFAIR_VECTOR_HEADER_, simd)

#include AIMFAIR_VECTOR_HEADER(AIMFAIR_SIMD)

// Inner loops are inlined completely, except under sanitizers, whose checks would make the function too large.
#if defined(__SANITIZE_ADDRESS__)
#define AIMFAIR_INLINE inline
#else
#define AIMFAIR_INLINE inline __attribute__((always_inline))
#endif

#include "cpu/simd/storage.h"
// The kernels, built on these:
#include "cpu/simd/accumulate.h"
#include "cpu/simd/step.h"
#include "cpu/simd/step_moments.h"
#include "cpu/simd/topk.h"

namespace aimfair::cpu::AIMFAIR_SIMD {

extern const Kernels kernels;
const Kernels kernels = {accumulate_range,
                         scores,
                         score_keys,
                         count_bits,
                         sum,
                         above,
                         count_greater,
                         bracket,
                         step_range<AdamW<false>>,
                         step_range<AdamW<true>>,
                         step_range<Sgd<false>>,
                         step_range<Sgd<true>>};

}  // namespace aimfair::cpu::AIMFAIR_SIMD
