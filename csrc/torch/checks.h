#pragma once

#include "aimfair/accumulate.h"
#include "aimfair/masked_step.h"
#include "aimfair/select.h"
#include "arguments.h"

// From checked operator arguments to the arguments of the torch-free launchers; the same for every backend.
// The parameters are those of the schemas in schemas.cpp, in their order.

namespace aimfair::ops {

using OptionalTensor = std::optional<Tensor>;

struct AccumulateCall {
  std::vector<AccumulateTensor> tensors;
  AccumulateOptions options;  // inverse_scale is left to the backend: grad_scale is on the device
  double* square_norms;
  int64_t* nonfinite;
  const float* grad_scale;  // may be null
};

AccumulateCall check_accumulate(const TensorList& grads, const TensorList& sums, const TensorList& squares,
                                const TensorList& second_sums, const Tensor& square_norms, const Tensor& nonfinite,
                                double weight, double second_weight, const OptionalTensor& grad_scale, bool zero_grads);

struct ScoreCall {
  std::vector<ScoreTensor> tensors;
  ScoreSpec spec;
};

struct SelectCall : ScoreCall {
  uint32_t* bits;
  int64_t* rank;
};

SelectCall check_select(const Tensor& bits, const Tensor& rank, int64_t k, const std::string& criterion,
                        const TensorList& a, const TensorList& b, double scale_a, double scale_b,
                        const std::string& divisor_criterion, const TensorList& c, const TensorList& d, double scale_c,
                        double scale_d, double eps);

struct UnitScoresCall : ScoreCall {
  std::vector<int64_t> units;
  std::vector<float*> out;
};

UnitScoresCall check_unit_scores(const TensorList& out, const std::string& criterion, const TensorList& a,
                                 const TensorList& b, double scale_a, double scale_b,
                                 const std::string& divisor_criterion, const TensorList& c, const TensorList& d,
                                 double scale_c, double scale_d, double eps);

// Throws if a selection met a NaN.
void refuse_nan(const char* op, const SelectResult& result);

struct MaskCall {
  uint32_t* bits;
  int64_t* rank;
  int64_t blocks;
};

struct ExpandUnitsCall : MaskCall {
  const uint32_t* unit_bits;
};

ExpandUnitsCall check_expand_units(const Tensor& bits, const Tensor& rank, const Tensor& unit_bits,
                                   const std::vector<int64_t>& numels, const std::vector<int64_t>& units);

struct BoolsCall : MaskCall {
  std::vector<uint8_t*> bools;
  std::vector<int64_t> numels;
};

BoolsCall check_pack_bits(const Tensor& bits, const Tensor& rank, const TensorList& bools);
BoolsCall check_unpack_bits(const TensorList& bools, const Tensor& bits);
MaskCall check_rank(const Tensor& rank, const Tensor& bits);

// What the two optimizers share.
struct StepArguments {
  const TensorList &params, &grads, &masters, &steps;
  const OptionalTensor &bits, &rank;
  const std::vector<int64_t>& first_blocks;
  const Tensor& lr;
  double weight_decay;
  bool maximize, compact, stochastic_rounding;
  int64_t seed;
  const OptionalTensor &grad_scale, &found_inf;
};

struct StepCall {
  std::vector<StepTensor> tensors;  // `step` is left to the backend: it is on the device
  StepOptions options;              // so is inverse_scale
  std::vector<float*> steps;
  const float* grad_scale;  // may be null
  const float* found_inf;   // may be null
};

StepCall check_masked_adamw(const StepArguments& step, const TensorList& exp_avgs, const TensorList& exp_avg_sqs,
                            const TensorList& max_exp_avg_sqs, double beta1, double beta2, double eps);
StepCall check_masked_sgd(const StepArguments& step, const TensorList& momentum_buffers, double momentum,
                          double dampening, bool nesterov);

}  // namespace aimfair::ops
