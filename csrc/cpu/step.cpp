#include "aimfair/step.h"

#include <vector>

#include "cpu/chunks.h"
#include "cpu/kernels.h"

namespace aimfair::cpu {
namespace {

// Counts the step of every tensor, then runs the kernel over the chunks of all tensors with selected elements.
template <class Update>
void step_tensors(const StepTensor* tensors, int64_t count, const typename Update::Config& config,
                  const StepOptions& options, int threads, StepKernel<Update> kernel) {
  if (options.found_inf && *options.found_inf != 0) return;
  constexpr int64_t kChunk = 64 * kBlock;
  const float grad_factor = gradient_factor(options.grad_scale);
  const double lr = learning_rate(options, config.lr);
  std::vector<StepValues> values(static_cast<size_t>(count));
  std::vector<Update> updates(static_cast<size_t>(count), Update{constants_of(config), {}});
  for (int64_t t = 0; t < count; t++) {
    values[t] = {grad_factor, static_cast<uint64_t>(*tensors[t].step += 1)};
    const bool same = t > 0 && values[t].step == values[t - 1].step;  // the usual case
    updates[t].scalars = same ? updates[t - 1].scalars : scalars_of(config, lr, values[t].step);
  }
  const int64_t* rank = options.mask.rank;
  const Chunks chunks(count, kChunk, [&](int64_t t) {
    const int64_t first = tensors[t].first_block;
    const bool nothing = rank && rank[first] == rank[first + block_count(tensors[t].numel)];
    return nothing ? 0 : tensors[t].numel;
  });
  parallel_for(chunks.count(), threads, [&](int64_t i) {
    const Chunk chunk = chunks[i];
    kernel(tensors[chunk.tensor], options, values[chunk.tensor], updates[chunk.tensor], chunk.begin, chunk.end);
  });
}

}  // namespace

void masked_adamw(const StepTensor* tensors, int64_t count, const AdamWConfig& config, bool amsgrad,
                  const StepOptions& options, int threads) {
  return amsgrad ? step_tensors<AdamW<true>>(tensors, count, config, options, threads, kernels().amsgrad)
                 : step_tensors<AdamW<false>>(tensors, count, config, options, threads, kernels().adamw);
}

void masked_sgd(const StepTensor* tensors, int64_t count, const SgdConfig& config, const StepOptions& options,
                int threads) {
  return config.momentum != 0 ? step_tensors<Sgd<true>>(tensors, count, config, options, threads, kernels().momentum)
                              : step_tensors<Sgd<false>>(tensors, count, config, options, threads, kernels().sgd);
}

}  // namespace aimfair::cpu
