#include <limits>

#include "checks.h"
#include "takes.h"

// The checks of the masked steps: on lists, of plans, on plans.

namespace aimfair::ops {
namespace {

// One kind of state: its name in the schema and its list.
struct StateList {
  const char* name;
  const TensorList& list;
};

// Elements of state that tensor t needs. The directory is read on the host, so only CPU tensors can be checked.
int64_t state_size(const StepLists& step, const int64_t* rank, int64_t first_block, int64_t numel) {
  if (!step.compact || !rank) return numel;
  return step.params.front().is_cuda() ? -1 : rank[first_block + block_count(numel)] - rank[first_block];
}

// Bits past the end of a tensor would select what is not there. Like state_size, for CPU tensors only.
bool has_bits_past_end(const StepLists& step, const MaskView& mask, const StepTensor& tensor) {
  if (!mask.bits || step.params.front().is_cuda()) return false;
  const uint32_t* words = mask.bits + tensor.first_block * kWordsPerBlock;
  const int64_t end = block_count(tensor.numel) * kWordsPerBlock;
  int64_t word = tensor.numel / 32;
  uint32_t past = word < end && tensor.numel % 32 != 0 ? words[word++] >> (tensor.numel % 32) : 0;
  for (; word < end; word++) past |= words[word];
  return past != 0;
}

// The mask of a step, and in *blocks how many it has: without limit, if there is none.
MaskView take_mask(Arguments& arguments, const OptionalTensor& bits, const OptionalTensor& rank, int64_t* blocks) {
  arguments.require(bits.has_value() == rank.has_value(), "bits", "and rank go together");
  *blocks = bits ? bits->numel() / kWordsPerBlock : std::numeric_limits<int64_t>::max();
  if (!bits) return {};
  return {take_bits(arguments, "bits", *bits, Access::read, *blocks),
          take_rank(arguments, *rank, Access::read, *blocks)};
}

void take_lists(Arguments& arguments, StepCall& call, const StepLists& lists, const std::vector<StateList>& states) {
  const size_t count = lists.params.size();
  arguments.length("grads", lists.grads, count);
  arguments.length("steps", lists.steps, count);
  length_or_empty(arguments, "masters", lists.masters, count);
  for (const StateList& state : states) length_or_empty(arguments, state.name, state.list, count);
  arguments.require(!lists.stochastic_rounding || lists.masters.empty(), "stochastic_rounding",
                    "has no meaning with masters");
  arguments.require(lists.first_blocks.size() == count || (lists.first_blocks.empty() && !lists.bits), "first_blocks",
                    "has " + std::to_string(lists.first_blocks.size()) + " entries, expected " + std::to_string(count));
  int64_t blocks = 0;
  call.options.mask = take_mask(arguments, lists.bits, lists.rank, &blocks);
  call.options.compact = lists.compact && lists.bits.has_value();  // without a mask they are the same
  call.options.stochastic_rounding = lists.stochastic_rounding;

  call.tensors.resize(count);
  int64_t next_block = 0;  // without a mask, blocks are counted as if there were one
  for (size_t t = 0; t < count; t++) {
    StepTensor& tensor = call.tensors[t];
    tensor.param = arguments.take("params", lists.params, t, Types::floating, Access::write);
    tensor.numel = lists.params[t].numel();
    tensor.dtype = dtype_of(lists.params[t]);
    tensor.grad = arguments.take("grads", lists.grads, t, Types::floating, Access::read, tensor.numel);
    if (dtype_of(lists.grads[t]) != tensor.dtype) {
      arguments.fail("grads", static_cast<int64_t>(t), "has another dtype than its parameter");
    }
    if (lists.stochastic_rounding && tensor.dtype == DType::float16) {
      arguments.fail("params", static_cast<int64_t>(t), "is float16: stochastic_rounding is for bfloat16");
    }
    tensor.first_block = lists.first_blocks.empty() ? next_block : lists.first_blocks[t];
    next_block = tensor.first_block + block_count(tensor.numel);
    if (tensor.first_block < 0 || tensor.first_block > blocks - block_count(tensor.numel)) {
      arguments.fail("first_blocks", static_cast<int64_t>(t), "is outside the mask");
    }
    if (has_bits_past_end(lists, call.options.mask, tensor)) {
      arguments.fail("params", static_cast<int64_t>(t), "has set bits past its end in the mask");
    }
    const int64_t size = state_size(lists, call.options.mask.rank, tensor.first_block, tensor.numel);
    for (size_t s = 0; s < states.size(); s++) {
      tensor.state[s] = take_optional(arguments, states[s].name, states[s].list, t, Access::write, size);
    }
    tensor.master = take_optional(arguments, "masters", lists.masters, t, Access::write, size);
    tensor.step = as_floats(arguments.take("steps", lists.steps, t, Types::float32, Access::write, 1));
  }
}

void take_plan(Arguments& arguments, StepCall& call, const PlanArguments& plan) {
  arguments.take("plan", plan.memory, Types::bytes, Access::write, plan.bytes);
  int64_t blocks = 0;
  call.options.mask = take_mask(arguments, plan.bits, plan.rank, &blocks);
  call.options.compact = plan.compact && plan.bits.has_value();
  call.options.stochastic_rounding = plan.stochastic_rounding;
}

void take_settings(Arguments& arguments, StepCall& call, const StepSettings& settings) {
  arguments.require(settings.weight_decay >= 0, "weight_decay", "is negative or NaN");
  call.options.maximize = settings.maximize;
  call.options.seed = static_cast<uint64_t>(settings.seed);
  call.options.lr = arguments.take("lr", settings.lr, Types::float_or_double, Access::read, 1);
  call.options.lr_is_double = settings.lr.scalar_type() == ScalarType::Double;
  call.options.grad_scale = take_scalar(arguments, "grad_scale", settings.grad_scale);
  call.options.found_inf = take_scalar(arguments, "found_inf", settings.found_inf);
}

void require_range(const Arguments& arguments, const AdamWConfig& config) {
  arguments.require(config.beta1 >= 0 && config.beta1 < 1, "beta1", "is outside [0, 1)");
  arguments.require(config.beta2 >= 0 && config.beta2 < 1, "beta2", "is outside [0, 1)");
  arguments.require(config.eps >= 0, "eps", "is negative or NaN");
}

void require_range(const Arguments& arguments, const SgdConfig& config) {
  arguments.require(config.momentum >= 0, "momentum", "is negative or NaN");
  arguments.require(!config.nesterov || (config.momentum > 0 && config.dampening == 0), "nesterov",
                    "needs momentum and no dampening");
}

void take_adamw_lists(Arguments& arguments, StepCall& call, const StepLists& lists, const TensorList& exp_avgs,
                      const TensorList& exp_avg_sqs, const TensorList& max_exp_avg_sqs) {
  arguments.length("exp_avgs", exp_avgs, lists.params.size());
  arguments.length("exp_avg_sqs", exp_avg_sqs, lists.params.size());
  take_lists(arguments, call, lists,
             {{"exp_avgs", exp_avgs}, {"exp_avg_sqs", exp_avg_sqs}, {"max_exp_avg_sqs", max_exp_avg_sqs}});
}

// Everything about a step that has a plan.
template <class Config>
StepCall check_planned(const char* op, const PlanArguments& plan, const StepSettings& settings, const Config& config) {
  Arguments arguments(op, &plan.memory);
  StepCall call;
  require_range(arguments, config);
  take_plan(arguments, call, plan);
  take_settings(arguments, call, settings);
  arguments.refuse_overlap();
  return call;
}

}  // namespace

StepCall check_plan_adamw(const StepLists& lists, const TensorList& exp_avgs, const TensorList& exp_avg_sqs,
                          const TensorList& max_exp_avg_sqs) {
  Arguments arguments("plan_adamw", first_of(lists.params));
  StepCall call;
  take_adamw_lists(arguments, call, lists, exp_avgs, exp_avg_sqs, max_exp_avg_sqs);
  arguments.refuse_overlap();
  return call;
}

StepCall check_plan_sgd(const StepLists& lists, const TensorList& momentum_buffers) {
  Arguments arguments("plan_sgd", first_of(lists.params));
  StepCall call;
  take_lists(arguments, call, lists, {{"momentum_buffers", momentum_buffers}});
  arguments.refuse_overlap();
  return call;
}

StepCall check_planned_adamw(const PlanArguments& plan, const StepSettings& settings, const AdamWConfig& config) {
  return check_planned("planned_adamw_", plan, settings, config);
}

StepCall check_planned_sgd(const PlanArguments& plan, const StepSettings& settings, const SgdConfig& config) {
  return check_planned("planned_sgd_", plan, settings, config);
}

StepCall check_masked_adamw(const StepLists& lists, const TensorList& exp_avgs, const TensorList& exp_avg_sqs,
                            const TensorList& max_exp_avg_sqs, const StepSettings& settings,
                            const AdamWConfig& config) {
  Arguments arguments("masked_adamw_", first_of(lists.params));
  StepCall call;
  require_range(arguments, config);
  take_adamw_lists(arguments, call, lists, exp_avgs, exp_avg_sqs, max_exp_avg_sqs);
  take_settings(arguments, call, settings);
  arguments.refuse_overlap();
  return call;
}

StepCall check_masked_sgd(const StepLists& lists, const TensorList& momentum_buffers, const StepSettings& settings,
                          const SgdConfig& config) {
  Arguments arguments("masked_sgd_", first_of(lists.params));
  StepCall call;
  require_range(arguments, config);
  arguments.length("momentum_buffers", momentum_buffers, config.momentum != 0 ? lists.params.size() : 0);
  take_lists(arguments, call, lists, {{"momentum_buffers", momentum_buffers}});
  take_settings(arguments, call, settings);
  arguments.refuse_overlap();
  return call;
}

}  // namespace aimfair::ops
