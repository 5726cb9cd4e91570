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
  AccumulateOptions options;
  double* square_norms;
  int64_t* nonfinite;
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

struct CountCall : ScoreCall {
  int64_t* counts;
};

CountCall check_count_keys(const Tensor& counts, int64_t first, int64_t bits, const std::string& criterion,
                           const TensorList& a, const TensorList& b, double scale_a, double scale_b,
                           const std::string& divisor_criterion, const TensorList& c, const TensorList& d,
                           double scale_c, double scale_d, double eps);
CountCall check_count_equal(const Tensor& counts, int64_t key, const std::string& criterion, const TensorList& a,
                            const TensorList& b, double scale_a, double scale_b, const std::string& divisor_criterion,
                            const TensorList& c, const TensorList& d, double scale_c, double scale_d, double eps);

struct SelectAboveCall : SelectCall {
  const int64_t* ties;
};

SelectAboveCall check_select_above(const Tensor& bits, const Tensor& rank, int64_t key, const Tensor& ties,
                                   const std::string& criterion, const TensorList& a, const TensorList& b,
                                   double scale_a, double scale_b, const std::string& divisor_criterion,
                                   const TensorList& c, const TensorList& d, double scale_c, double scale_d,
                                   double eps);

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

// What the two optimizers share: the lists that a plan is made of,
struct StepLists {
  const TensorList &params, &grads, &masters, &steps;
  const OptionalTensor &bits, &rank;
  const std::vector<int64_t>& first_blocks;
  bool compact, stochastic_rounding;
};

// and what may differ from step to step.
struct StepSettings {
  const Tensor& lr;
  double weight_decay;
  bool maximize;
  int64_t seed;
  const OptionalTensor &grad_scale, &found_inf;
};

// A plan, as the operators hand it on: its memory and what it was made for.
struct PlanArguments {
  const Tensor& memory;
  int64_t tensors, blocks;
  int64_t bytes;  // of memory, as the backend wants it
  const OptionalTensor &bits, &rank;
  bool compact, stochastic_rounding;
};

struct StepCall {
  std::vector<StepTensor> tensors;  // empty where there is a plan
  StepOptions options;
};

StepCall check_plan_adamw(const StepLists& lists, const TensorList& exp_avgs, const TensorList& exp_avg_sqs,
                          const TensorList& max_exp_avg_sqs);
StepCall check_plan_sgd(const StepLists& lists, const TensorList& momentum_buffers);

StepCall check_planned_adamw(const PlanArguments& plan, const StepSettings& settings, const AdamWConfig& config);
StepCall check_planned_sgd(const PlanArguments& plan, const StepSettings& settings, const SgdConfig& config);

StepCall check_masked_adamw(const StepLists& lists, const TensorList& exp_avgs, const TensorList& exp_avg_sqs,
                            const TensorList& max_exp_avg_sqs, const StepSettings& settings, const AdamWConfig& config);
StepCall check_masked_sgd(const StepLists& lists, const TensorList& momentum_buffers, const StepSettings& settings,
                          const SgdConfig& config);

}  // namespace aimfair::ops
