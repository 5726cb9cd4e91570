#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstring>

#include "aimfair/mask_ops.h"
#include "checks.h"

// The operators on CPU tensors.

namespace aimfair::ops {
namespace {

int torch_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

void accumulate(const TensorList& grads, const TensorList& sums, const TensorList& squares,
                const TensorList& second_sums, const Tensor& square_norms, const Tensor& nonfinite, double weight,
                double second_weight, const OptionalTensor& grad_scale, bool zero_grads) {
  const AccumulateCall call = check_accumulate(grads, sums, squares, second_sums, square_norms, nonfinite, weight,
                                               second_weight, grad_scale, zero_grads);
  cpu::accumulate(call.tensors.data(), static_cast<int64_t>(call.tensors.size()), call.options, call.square_norms,
                  call.nonfinite, torch_threads());
}

void select(const Tensor& bits, const Tensor& rank, int64_t k, bool largest, const std::string& criterion,
            const TensorList& a, const TensorList& b, double scale_a, double scale_b,
            const std::string& divisor_criterion, const TensorList& c, const TensorList& d, double scale_c,
            double scale_d, double eps) {
  const SelectCall call =
      check_select(bits, rank, k, criterion, a, b, scale_a, scale_b, divisor_criterion, c, d, scale_c, scale_d, eps);
  refuse_nan("select_", cpu::select(call.tensors.data(), static_cast<int64_t>(call.tensors.size()), call.spec, k,
                                    largest, call.bits, call.rank, torch_threads()));
}

void count_keys(const Tensor& counts, int64_t first, int64_t bits, bool largest, const std::string& criterion,
                const TensorList& a, const TensorList& b, double scale_a, double scale_b,
                const std::string& divisor_criterion, const TensorList& c, const TensorList& d, double scale_c,
                double scale_d, double eps) {
  const CountCall call = check_count_keys(counts, first, bits, criterion, a, b, scale_a, scale_b, divisor_criterion, c,
                                          d, scale_c, scale_d, eps);
  cpu::count_keys(call.tensors.data(), static_cast<int64_t>(call.tensors.size()), call.spec,
                  static_cast<uint32_t>(first), static_cast<int>(bits), largest, call.counts, torch_threads());
}

void count_equal(const Tensor& counts, int64_t key, bool largest, const std::string& criterion, const TensorList& a,
                 const TensorList& b, double scale_a, double scale_b, const std::string& divisor_criterion,
                 const TensorList& c, const TensorList& d, double scale_c, double scale_d, double eps) {
  const CountCall call =
      check_count_equal(counts, key, criterion, a, b, scale_a, scale_b, divisor_criterion, c, d, scale_c, scale_d, eps);
  cpu::count_equal(call.tensors.data(), static_cast<int64_t>(call.tensors.size()), call.spec,
                   static_cast<uint32_t>(key), largest, call.counts, torch_threads());
}

void select_above(const Tensor& bits, const Tensor& rank, int64_t key, const Tensor& ties, bool largest,
                  const std::string& criterion, const TensorList& a, const TensorList& b, double scale_a,
                  double scale_b, const std::string& divisor_criterion, const TensorList& c, const TensorList& d,
                  double scale_c, double scale_d, double eps) {
  const SelectAboveCall call = check_select_above(bits, rank, key, ties, criterion, a, b, scale_a, scale_b,
                                                  divisor_criterion, c, d, scale_c, scale_d, eps);
  refuse_nan("select_above_",
             cpu::select_above(call.tensors.data(), static_cast<int64_t>(call.tensors.size()), call.spec,
                               static_cast<uint32_t>(key), call.ties, largest, call.bits, call.rank, torch_threads()));
}

void unit_scores(const TensorList& out, const std::string& criterion, const TensorList& a, const TensorList& b,
                 double scale_a, double scale_b, const std::string& divisor_criterion, const TensorList& c,
                 const TensorList& d, double scale_c, double scale_d, double eps) {
  const UnitScoresCall call =
      check_unit_scores(out, criterion, a, b, scale_a, scale_b, divisor_criterion, c, d, scale_c, scale_d, eps);
  refuse_nan("unit_scores_", cpu::unit_scores(call.tensors.data(), static_cast<int64_t>(call.tensors.size()), call.spec,
                                              call.units.data(), call.out.data(), torch_threads()));
}

void expand_units(const Tensor& bits, const Tensor& rank, const Tensor& unit_bits, const std::vector<int64_t>& numels,
                  const std::vector<int64_t>& units) {
  const ExpandUnitsCall call = check_expand_units(bits, rank, unit_bits, numels, units);
  cpu::expand_units(call.unit_bits, numels.data(), units.data(), static_cast<int64_t>(numels.size()), call.bits,
                    torch_threads());
  cpu::rank(call.bits, call.blocks, call.rank, torch_threads());
}

void pack_bits(const Tensor& bits, const Tensor& rank, const TensorList& bools) {
  const BoolsCall call = check_pack_bits(bits, rank, bools);
  cpu::pack_bits(call.bools.data(), call.numels.data(), static_cast<int64_t>(call.numels.size()), call.bits,
                 torch_threads());
  cpu::rank(call.bits, call.blocks, call.rank, torch_threads());
}

void unpack_bits(const TensorList& bools, const Tensor& bits) {
  const BoolsCall call = check_unpack_bits(bools, bits);
  cpu::unpack_bits(call.bits, call.numels.data(), static_cast<int64_t>(call.numels.size()), call.bools.data(),
                   torch_threads());
}

void rank(const Tensor& rank, const Tensor& bits) {
  const MaskCall call = check_rank(rank, bits);
  cpu::rank(call.bits, call.blocks, call.rank, torch_threads());
}

void masked_adamw(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
                  const TensorList& exp_avg_sqs, const TensorList& max_exp_avg_sqs, const TensorList& masters,
                  const TensorList& steps, const OptionalTensor& bits, const OptionalTensor& rank,
                  const std::vector<int64_t>& first_blocks, const Tensor& lr, double beta1, double beta2, double eps,
                  double weight_decay, bool maximize, bool compact, bool stochastic_rounding, int64_t seed,
                  const OptionalTensor& grad_scale, const OptionalTensor& found_inf) {
  const AdamWConfig config{0.0, beta1, beta2, eps, weight_decay};
  const StepCall call = check_masked_adamw(
      {params, grads, masters, steps, bits, rank, first_blocks, compact, stochastic_rounding}, exp_avgs, exp_avg_sqs,
      max_exp_avg_sqs, {lr, weight_decay, maximize, seed, grad_scale, found_inf}, config);
  cpu::masked_adamw(call.tensors.data(), static_cast<int64_t>(call.tensors.size()), config, !max_exp_avg_sqs.empty(),
                    call.options, torch_threads());
}

void masked_sgd(const TensorList& params, const TensorList& grads, const TensorList& momentum_buffers,
                const TensorList& masters, const TensorList& steps, const OptionalTensor& bits,
                const OptionalTensor& rank, const std::vector<int64_t>& first_blocks, const Tensor& lr, double momentum,
                double dampening, double weight_decay, bool nesterov, bool maximize, bool compact,
                bool stochastic_rounding, int64_t seed, const OptionalTensor& grad_scale,
                const OptionalTensor& found_inf) {
  const SgdConfig config{0.0, momentum, dampening, weight_decay, nesterov};
  const StepCall call =
      check_masked_sgd({params, grads, masters, steps, bits, rank, first_blocks, compact, stochastic_rounding},
                       momentum_buffers, {lr, weight_decay, maximize, seed, grad_scale, found_inf}, config);
  cpu::masked_sgd(call.tensors.data(), static_cast<int64_t>(call.tensors.size()), config, call.options,
                  torch_threads());
}

// On the CPU a plan is the list itself.
int64_t plan_bytes(int64_t tensors) { return tensors * static_cast<int64_t>(sizeof(StepTensor)); }

Tensor plan_of(const TensorList& params, const StepCall& call) {
  const int64_t bytes = plan_bytes(static_cast<int64_t>(call.tensors.size()));
  Tensor plan = torch::stable::new_empty(params.at(0), {bytes}, ScalarType::Byte);
  memcpy(plan.data_ptr(), call.tensors.data(), static_cast<size_t>(bytes));
  return plan;
}

Tensor plan_adamw(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
                  const TensorList& exp_avg_sqs, const TensorList& max_exp_avg_sqs, const TensorList& masters,
                  const TensorList& steps, const OptionalTensor& bits, const OptionalTensor& rank,
                  const std::vector<int64_t>& first_blocks, bool compact, bool stochastic_rounding) {
  return plan_of(
      params, check_plan_adamw({params, grads, masters, steps, bits, rank, first_blocks, compact, stochastic_rounding},
                               exp_avgs, exp_avg_sqs, max_exp_avg_sqs));
}

Tensor plan_sgd(const TensorList& params, const TensorList& grads, const TensorList& momentum_buffers,
                const TensorList& masters, const TensorList& steps, const OptionalTensor& bits,
                const OptionalTensor& rank, const std::vector<int64_t>& first_blocks, bool compact,
                bool stochastic_rounding) {
  return plan_of(params,
                 check_plan_sgd({params, grads, masters, steps, bits, rank, first_blocks, compact, stochastic_rounding},
                                momentum_buffers));
}

void planned_adamw(const Tensor& plan, int64_t tensors, int64_t blocks, bool amsgrad, const OptionalTensor& bits,
                   const OptionalTensor& rank, bool compact, bool stochastic_rounding, const Tensor& lr, double beta1,
                   double beta2, double eps, double weight_decay, bool maximize, int64_t seed,
                   const OptionalTensor& grad_scale, const OptionalTensor& found_inf) {
  const AdamWConfig config{0.0, beta1, beta2, eps, weight_decay};
  const StepCall call =
      check_planned_adamw({plan, tensors, blocks, plan_bytes(tensors), bits, rank, compact, stochastic_rounding},
                          {lr, weight_decay, maximize, seed, grad_scale, found_inf}, config);
  cpu::masked_adamw(static_cast<const StepTensor*>(plan.data_ptr()), tensors, config, amsgrad, call.options,
                    torch_threads());
}

void planned_sgd(const Tensor& plan, int64_t tensors, int64_t blocks, const OptionalTensor& bits,
                 const OptionalTensor& rank, bool compact, bool stochastic_rounding, const Tensor& lr, double momentum,
                 double dampening, double weight_decay, bool nesterov, bool maximize, int64_t seed,
                 const OptionalTensor& grad_scale, const OptionalTensor& found_inf) {
  const SgdConfig config{0.0, momentum, dampening, weight_decay, nesterov};
  const StepCall call =
      check_planned_sgd({plan, tensors, blocks, plan_bytes(tensors), bits, rank, compact, stochastic_rounding},
                        {lr, weight_decay, maximize, seed, grad_scale, found_inf}, config);
  cpu::masked_sgd(static_cast<const StepTensor*>(plan.data_ptr()), tensors, config, call.options, torch_threads());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(aimfair, CPU, m) {
  m.impl("accumulate_", TORCH_BOX(&accumulate));
  m.impl("select_", TORCH_BOX(&select));
  m.impl("count_keys_", TORCH_BOX(&count_keys));
  m.impl("count_equal_", TORCH_BOX(&count_equal));
  m.impl("select_above_", TORCH_BOX(&select_above));
  m.impl("unit_scores_", TORCH_BOX(&unit_scores));
  m.impl("expand_units_", TORCH_BOX(&expand_units));
  m.impl("pack_bits_", TORCH_BOX(&pack_bits));
  m.impl("unpack_bits_", TORCH_BOX(&unpack_bits));
  m.impl("rank_", TORCH_BOX(&rank));
  m.impl("masked_adamw_", TORCH_BOX(&masked_adamw));
  m.impl("masked_sgd_", TORCH_BOX(&masked_sgd));
  m.impl("plan_adamw", TORCH_BOX(&plan_adamw));
  m.impl("plan_sgd", TORCH_BOX(&plan_sgd));
  m.impl("planned_adamw_", TORCH_BOX(&planned_adamw));
  m.impl("planned_sgd_", TORCH_BOX(&planned_sgd));
}

}  // namespace aimfair::ops
