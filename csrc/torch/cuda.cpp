#include <cuda_runtime_api.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <stdexcept>

#include "aimfair/mask_ops.h"
#include "checks.h"
#include "cuda_device.h"

// The operators on CUDA tensors.

namespace aimfair::ops {
namespace {

// One call of an operator: on the device of a tensor, its current stream, and with scratch from torch's allocator,
// which may be given back when the call returns, as it is then only used again in the order of the stream.
class Call {
 public:
  Call(const char* op, const Tensor& on)
      : op_(op), on_(on), guard_(on.get_device_index()), stream_(current_stream(on.get_device_index())) {}

  void* stream() const { return stream_; }

  cuda::Allocate allocate() {
    return [this](int64_t bytes) {
      scratch_.push_back(memory(bytes));
      return scratch_.back().data_ptr();
    };
  }

  Tensor memory(int64_t bytes) const {
    return torch::stable::new_empty(on_, {std::max<int64_t>(bytes, 1)}, ScalarType::Byte);
  }

  void check(int error) const {
    if (error == cudaSuccess) return;
    throw std::runtime_error(std::string("aimfair::") + op_ +
                             ": CUDA: " + cudaGetErrorString(static_cast<cudaError_t>(error)));
  }

 private:
  const char* op_;
  const Tensor& on_;
  DeviceGuard guard_;
  void* stream_;
  std::vector<Tensor> scratch_;
};

void accumulate(const TensorList& grads, const TensorList& sums, const TensorList& squares,
                const TensorList& second_sums, const Tensor& square_norms, const Tensor& nonfinite, double weight,
                double second_weight, const OptionalTensor& grad_scale, bool zero_grads) {
  const AccumulateCall checked = check_accumulate(grads, sums, squares, second_sums, square_norms, nonfinite, weight,
                                                  second_weight, grad_scale, zero_grads);
  Call call("accumulate_", square_norms);
  call.check(cuda::accumulate(checked.tensors.data(), static_cast<int64_t>(checked.tensors.size()), checked.options,
                              checked.square_norms, checked.nonfinite, call.allocate(), call.stream()));
}

void select(const Tensor& bits, const Tensor& rank, int64_t k, bool largest, const std::string& criterion,
            const TensorList& a, const TensorList& b, double scale_a, double scale_b,
            const std::string& divisor_criterion, const TensorList& c, const TensorList& d, double scale_c,
            double scale_d, double eps) {
  const SelectCall checked =
      check_select(bits, rank, k, criterion, a, b, scale_a, scale_b, divisor_criterion, c, d, scale_c, scale_d, eps);
  Call call("select_", bits);
  SelectResult result;
  call.check(cuda::select(checked.tensors.data(), static_cast<int64_t>(checked.tensors.size()), checked.spec, k,
                          largest, checked.bits, checked.rank, call.allocate(), call.stream(), &result));
  refuse_nan("select_", result);
}

void count_keys(const Tensor& counts, int64_t first, int64_t bits, bool largest, const std::string& criterion,
                const TensorList& a, const TensorList& b, double scale_a, double scale_b,
                const std::string& divisor_criterion, const TensorList& c, const TensorList& d, double scale_c,
                double scale_d, double eps) {
  const CountCall checked = check_count_keys(counts, first, bits, criterion, a, b, scale_a, scale_b, divisor_criterion,
                                             c, d, scale_c, scale_d, eps);
  Call call("count_keys_", counts);
  call.check(cuda::count_keys(checked.tensors.data(), static_cast<int64_t>(checked.tensors.size()), checked.spec,
                              static_cast<uint32_t>(first), static_cast<int>(bits), largest, checked.counts,
                              call.allocate(), call.stream()));
}

void count_equal(const Tensor& counts, int64_t key, bool largest, const std::string& criterion, const TensorList& a,
                 const TensorList& b, double scale_a, double scale_b, const std::string& divisor_criterion,
                 const TensorList& c, const TensorList& d, double scale_c, double scale_d, double eps) {
  const CountCall checked =
      check_count_equal(counts, key, criterion, a, b, scale_a, scale_b, divisor_criterion, c, d, scale_c, scale_d, eps);
  Call call("count_equal_", counts);
  call.check(cuda::count_equal(checked.tensors.data(), static_cast<int64_t>(checked.tensors.size()), checked.spec,
                               static_cast<uint32_t>(key), largest, checked.counts, call.allocate(), call.stream()));
}

void select_above(const Tensor& bits, const Tensor& rank, int64_t key, const Tensor& ties, bool largest,
                  const std::string& criterion, const TensorList& a, const TensorList& b, double scale_a,
                  double scale_b, const std::string& divisor_criterion, const TensorList& c, const TensorList& d,
                  double scale_c, double scale_d, double eps) {
  const SelectAboveCall checked = check_select_above(bits, rank, key, ties, criterion, a, b, scale_a, scale_b,
                                                     divisor_criterion, c, d, scale_c, scale_d, eps);
  Call call("select_above_", bits);
  SelectResult result;
  call.check(cuda::select_above(checked.tensors.data(), static_cast<int64_t>(checked.tensors.size()), checked.spec,
                                static_cast<uint32_t>(key), checked.ties, largest, checked.bits, checked.rank,
                                call.allocate(), call.stream(), &result));
  refuse_nan("select_above_", result);
}

void unit_scores(const TensorList& out, const std::string& criterion, const TensorList& a, const TensorList& b,
                 double scale_a, double scale_b, const std::string& divisor_criterion, const TensorList& c,
                 const TensorList& d, double scale_c, double scale_d, double eps) {
  const UnitScoresCall checked =
      check_unit_scores(out, criterion, a, b, scale_a, scale_b, divisor_criterion, c, d, scale_c, scale_d, eps);
  if (out.empty()) return;
  Call call("unit_scores_", out.front());
  SelectResult result;
  call.check(cuda::unit_scores(checked.tensors.data(), static_cast<int64_t>(checked.tensors.size()), checked.spec,
                               checked.units.data(), checked.out.data(), call.allocate(), call.stream(), &result));
  refuse_nan("unit_scores_", result);
}

void expand_units(const Tensor& bits, const Tensor& rank, const Tensor& unit_bits, const std::vector<int64_t>& numels,
                  const std::vector<int64_t>& units) {
  const ExpandUnitsCall checked = check_expand_units(bits, rank, unit_bits, numels, units);
  Call call("expand_units_", bits);
  call.check(cuda::expand_units(checked.unit_bits, numels.data(), units.data(), static_cast<int64_t>(numels.size()),
                                checked.bits, call.allocate(), call.stream()));
  call.check(cuda::rank(checked.bits, checked.blocks, checked.rank, call.allocate(), call.stream()));
}

void pack_bits(const Tensor& bits, const Tensor& rank, const TensorList& bools) {
  const BoolsCall checked = check_pack_bits(bits, rank, bools);
  Call call("pack_bits_", bits);
  call.check(cuda::pack_bits(checked.bools.data(), checked.numels.data(), static_cast<int64_t>(checked.numels.size()),
                             checked.bits, call.allocate(), call.stream()));
  call.check(cuda::rank(checked.bits, checked.blocks, checked.rank, call.allocate(), call.stream()));
}

void unpack_bits(const TensorList& bools, const Tensor& bits) {
  const BoolsCall checked = check_unpack_bits(bools, bits);
  Call call("unpack_bits_", bits);
  call.check(cuda::unpack_bits(checked.bits, checked.numels.data(), static_cast<int64_t>(checked.numels.size()),
                               checked.bools.data(), call.allocate(), call.stream()));
}

void rank(const Tensor& rank, const Tensor& bits) {
  const MaskCall checked = check_rank(rank, bits);
  Call call("rank_", bits);
  call.check(cuda::rank(checked.bits, checked.blocks, checked.rank, call.allocate(), call.stream()));
}

// A plan of checked tensors.
Tensor make_plan(Call& call, const StepCall& checked, cuda::StepPlan* plan) {
  const auto count = static_cast<int64_t>(checked.tensors.size());
  Tensor memory = call.memory(cuda::step_plan_bytes(count));
  call.check(cuda::make_step_plan(checked.tensors.data(), count, memory.data_ptr(), call.stream(), plan));
  return memory;
}

void masked_adamw(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
                  const TensorList& exp_avg_sqs, const TensorList& max_exp_avg_sqs, const TensorList& masters,
                  const TensorList& steps, const OptionalTensor& bits, const OptionalTensor& rank,
                  const std::vector<int64_t>& first_blocks, const Tensor& lr, double beta1, double beta2, double eps,
                  double weight_decay, bool maximize, bool compact, bool stochastic_rounding, int64_t seed,
                  const OptionalTensor& grad_scale, const OptionalTensor& found_inf) {
  const AdamWConfig config{0.0, beta1, beta2, eps, weight_decay};
  const StepCall checked = check_masked_adamw(
      {params, grads, masters, steps, bits, rank, first_blocks, compact, stochastic_rounding}, exp_avgs, exp_avg_sqs,
      max_exp_avg_sqs, {lr, weight_decay, maximize, seed, grad_scale, found_inf}, config);
  if (params.empty()) return;
  Call call("masked_adamw_", params.front());
  cuda::StepPlan plan;
  const Tensor memory = make_plan(call, checked, &plan);
  call.check(cuda::masked_adamw(plan, config, !max_exp_avg_sqs.empty(), checked.options, call.stream()));
}

void masked_sgd(const TensorList& params, const TensorList& grads, const TensorList& momentum_buffers,
                const TensorList& masters, const TensorList& steps, const OptionalTensor& bits,
                const OptionalTensor& rank, const std::vector<int64_t>& first_blocks, const Tensor& lr, double momentum,
                double dampening, double weight_decay, bool nesterov, bool maximize, bool compact,
                bool stochastic_rounding, int64_t seed, const OptionalTensor& grad_scale,
                const OptionalTensor& found_inf) {
  const SgdConfig config{0.0, momentum, dampening, weight_decay, nesterov};
  const StepCall checked =
      check_masked_sgd({params, grads, masters, steps, bits, rank, first_blocks, compact, stochastic_rounding},
                       momentum_buffers, {lr, weight_decay, maximize, seed, grad_scale, found_inf}, config);
  if (params.empty()) return;
  Call call("masked_sgd_", params.front());
  cuda::StepPlan plan;
  const Tensor memory = make_plan(call, checked, &plan);
  call.check(cuda::masked_sgd(plan, config, checked.options, call.stream()));
}

Tensor plan_of(const char* op, const TensorList& params, const StepCall& checked) {
  Call call(op, params.at(0));
  cuda::StepPlan plan;
  return make_plan(call, checked, &plan);
}

Tensor plan_adamw(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
                  const TensorList& exp_avg_sqs, const TensorList& max_exp_avg_sqs, const TensorList& masters,
                  const TensorList& steps, const OptionalTensor& bits, const OptionalTensor& rank,
                  const std::vector<int64_t>& first_blocks, bool compact, bool stochastic_rounding) {
  return plan_of(
      "plan_adamw", params,
      check_plan_adamw({params, grads, masters, steps, bits, rank, first_blocks, compact, stochastic_rounding},
                       exp_avgs, exp_avg_sqs, max_exp_avg_sqs));
}

Tensor plan_sgd(const TensorList& params, const TensorList& grads, const TensorList& momentum_buffers,
                const TensorList& masters, const TensorList& steps, const OptionalTensor& bits,
                const OptionalTensor& rank, const std::vector<int64_t>& first_blocks, bool compact,
                bool stochastic_rounding) {
  return plan_of("plan_sgd", params,
                 check_plan_sgd({params, grads, masters, steps, bits, rank, first_blocks, compact, stochastic_rounding},
                                momentum_buffers));
}

void planned_adamw(const Tensor& plan, int64_t tensors, int64_t blocks, bool amsgrad, const OptionalTensor& bits,
                   const OptionalTensor& rank, bool compact, bool stochastic_rounding, const Tensor& lr, double beta1,
                   double beta2, double eps, double weight_decay, bool maximize, int64_t seed,
                   const OptionalTensor& grad_scale, const OptionalTensor& found_inf) {
  const AdamWConfig config{0.0, beta1, beta2, eps, weight_decay};
  const StepCall checked = check_planned_adamw(
      {plan, tensors, blocks, cuda::step_plan_bytes(tensors), bits, rank, compact, stochastic_rounding},
      {lr, weight_decay, maximize, seed, grad_scale, found_inf}, config);
  Call call("planned_adamw_", plan);
  call.check(cuda::masked_adamw({plan.data_ptr(), tensors, blocks}, config, amsgrad, checked.options, call.stream()));
}

void planned_sgd(const Tensor& plan, int64_t tensors, int64_t blocks, const OptionalTensor& bits,
                 const OptionalTensor& rank, bool compact, bool stochastic_rounding, const Tensor& lr, double momentum,
                 double dampening, double weight_decay, bool nesterov, bool maximize, int64_t seed,
                 const OptionalTensor& grad_scale, const OptionalTensor& found_inf) {
  const SgdConfig config{0.0, momentum, dampening, weight_decay, nesterov};
  const StepCall checked = check_planned_sgd(
      {plan, tensors, blocks, cuda::step_plan_bytes(tensors), bits, rank, compact, stochastic_rounding},
      {lr, weight_decay, maximize, seed, grad_scale, found_inf}, config);
  Call call("planned_sgd_", plan);
  call.check(cuda::masked_sgd({plan.data_ptr(), tensors, blocks}, config, checked.options, call.stream()));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(aimfair, AIMFAIR_CUDA_KEY, m) {
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
