#include "aimfair/accumulate.h"

#include <vector>

#include "aimfair/numeric.h"
#include "cpu/chunks.h"
#include "cpu/kernels.h"

namespace aimfair::cpu {

void accumulate(const AccumulateTensor* tensors, int64_t count, const AccumulateOptions& options, double* square_norms,
                int64_t* nonfinite, int threads) {
  constexpr int64_t kChunk = 16 * kBlock;
  const Kernels& kernel = kernels();
  const float grad_factor = gradient_factor(options.grad_scale);
  const Chunks chunks(count, kChunk, [&](int64_t t) { return tensors[t].numel; });
  // Partial results are kept per chunk and added in order, so that the sums do not depend on the number of threads.
  std::vector<double> square_norm(static_cast<size_t>(chunks.count()));
  std::vector<int64_t> bad(static_cast<size_t>(chunks.count()));

  parallel_for(chunks.count(), threads, [&](int64_t i) {
    const Chunk chunk = chunks[i];
    kernel.accumulate(tensors[chunk.tensor], options, grad_factor, chunk.begin, chunk.end,
                      &square_norm[static_cast<size_t>(i)], &bad[static_cast<size_t>(i)]);
  });

  for (int64_t t = 0; t < count; t++) {
    double total = 0;
    for (int64_t i = chunks.first(t); i < chunks.first(t + 1); i++) {
      total += square_norm[static_cast<size_t>(i)];
      nonfinite[t] += bad[static_cast<size_t>(i)];
    }
    square_norms[t] += total;
  }
}

}  // namespace aimfair::cpu
