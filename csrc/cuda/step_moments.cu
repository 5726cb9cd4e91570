#include "cuda/step_kernel.h"

// The masked step with moments of 16 and 8 bits: a source of its own, so that it is compiled beside step.cu.

namespace aimfair::cuda {

template cudaError_t launch_step<AdamW<false>, Moments::bfloat16>(const StepPlan&, const AdamWConfig&,
                                                                  const StepOptions&, void*);
template cudaError_t launch_step<AdamW<true>, Moments::bfloat16>(const StepPlan&, const AdamWConfig&,
                                                                 const StepOptions&, void*);
template cudaError_t launch_step<Sgd<true>, Moments::bfloat16>(const StepPlan&, const SgdConfig&, const StepOptions&,
                                                               void*);
template cudaError_t launch_step<AdamW<false>, Moments::bits8>(const StepPlan&, const AdamWConfig&, const StepOptions&,
                                                               void*);
template cudaError_t launch_step<Sgd<true>, Moments::bits8>(const StepPlan&, const SgdConfig&, const StepOptions&,
                                                            void*);

}  // namespace aimfair::cuda
