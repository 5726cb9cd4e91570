#include "cuda/step_kernel.h"

// Plans of the masked step, and its launchers for moments of 32 bits; step_moments.cu has the others.

namespace aimfair::cuda {
namespace {

template <class Update>
cudaError_t launch_with_moments(const StepPlan& plan, const typename Update::Config& config, const StepOptions& options,
                                void* stream) {
  switch (options.moments) {
    case Moments::float32:
      return launch_step<Update, Moments::float32>(plan, config, options, stream);
    case Moments::bfloat16:
      return launch_step<Update, Moments::bfloat16>(plan, config, options, stream);
    case Moments::bits8:
      if constexpr (Update::kStates < kMaxStates) {
        return launch_step<Update, Moments::bits8>(plan, config, options, stream);
      }
  }
  return cudaErrorInvalidValue;
}

}  // namespace

int64_t step_plan_bytes(int64_t count) {
  return first_blocks_place(count) + rounded_up((count + 1) * static_cast<int64_t>(sizeof(int64_t)));
}

int make_step_plan(const StepTensor* tensors, int64_t count, void* memory, void* stream, StepPlan* plan) {
  const auto first_blocks = first_units(count, [&](int64_t t) { return block_count(tensors[t].numel); });
  std::vector<const void*> grads;
  for (int64_t t = 0; t < count; t++) grads.push_back(tensors[t].grad);
  Upload upload;
  upload.add_zeros<unsigned>(1);
  upload.add(tensors, count);
  upload.add(grads);
  upload.add(first_blocks);
  *plan = {memory, count, first_blocks.back()};
  return upload.copy(memory, stream);
}

int set_step_grads(const void* const* grads, int64_t count, void* memory, void* stream) {
  Upload upload;
  upload.add(grads, count);
  return upload.copy(array_at<char>(memory, grads_place(count)), stream);
}

int masked_adamw(const StepPlan& plan, const AdamWConfig& config, bool amsgrad, const StepOptions& options,
                 void* stream) {
  return amsgrad ? launch_with_moments<AdamW<true>>(plan, config, options, stream)
                 : launch_with_moments<AdamW<false>>(plan, config, options, stream);
}

int masked_sgd(const StepPlan& plan, const SgdConfig& config, const StepOptions& options, void* stream) {
  return config.momentum != 0 ? launch_with_moments<Sgd<true>>(plan, config, options, stream)
                              : launch_step<Sgd<false>, Moments::float32>(plan, config, options, stream);
}

}  // namespace aimfair::cuda
