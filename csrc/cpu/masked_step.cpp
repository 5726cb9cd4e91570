#include "aimfair/masked_step.h"

#include <vector>

#include "cpu/chunks.h"
#include "cpu/kernels.h"

namespace aimfair::cpu {
namespace {

// Calls step(tensor, its scalars, begin, end) over chunks of all tensors that have something selected.
template <class Scalars, class MakeScalars, class Step>
void step_tensors(const StepTensor* tensors, int64_t count, const StepOptions& options, int threads,
                  const MakeScalars& make_scalars, const Step& step) {
  constexpr int64_t kChunk = 64 * kBlock;
  std::vector<Scalars> scalars(static_cast<size_t>(count));
  for (int64_t t = 0; t < count; t++) {  // tensors mostly share the step, and pow is slow
    const bool same = t > 0 && tensors[t].step == tensors[t - 1].step;
    scalars[t] = same ? scalars[t - 1] : make_scalars(tensors[t].step);
  }
  const int64_t* rank = options.mask.rank;
  const Chunks chunks(count, kChunk, [&](int64_t t) {
    const int64_t first = tensors[t].first_block;
    const bool nothing = rank && rank[first] == rank[first + block_count(tensors[t].numel)];
    return nothing ? 0 : tensors[t].numel;
  });
  parallel_for(chunks.count(), threads, [&](int64_t i) {
    const Chunk chunk = chunks[i];
    step(tensors[chunk.tensor], scalars[static_cast<size_t>(chunk.tensor)], chunk.begin, chunk.end);
  });
}

}  // namespace

void masked_adamw(const StepTensor* tensors, int64_t count, const AdamWConfig& config, bool amsgrad,
                  const StepOptions& options, int threads) {
  const Kernels& kernel = kernels();
  step_tensors<AdamWScalars>(
      tensors, count, options, threads, [&](double step) { return adamw_scalars(config, step); },
      [&](const StepTensor& tensor, const AdamWScalars& scalars, int64_t begin, int64_t end) {
        kernel.adamw(tensor, options, scalars, amsgrad, begin, end);
      });
}

void masked_sgd(const StepTensor* tensors, int64_t count, const SgdConfig& config, const StepOptions& options,
                int threads) {
  const Kernels& kernel = kernels();
  step_tensors<SgdScalars>(
      tensors, count, options, threads, [&](double step) { return sgd_scalars(config, step); },
      [&](const StepTensor& tensor, const SgdScalars& scalars, int64_t begin, int64_t end) {
        kernel.sgd(tensor, options, scalars, begin, end);
      });
}

}  // namespace aimfair::cpu
