#include "aimfair/step.h"

#include <limits>

#include "arguments.h"
#include "backend.h"
#include "plan.h"

// The masked steps, each in one operator, or in two: plan_* checks the lists once and stores them, planned_*_ steps on
// such a plan.

namespace aimfair::ops {
namespace {

// The lists that a step works on, and the mask; what a plan is made of.
struct StepLists {
  const TensorList &params, &grads, &masters, &steps;
  const OptionalTensor &bits, &rank;
  const std::vector<int64_t>& first_blocks;
  bool compact, stochastic_rounding;
};

// One kind of state: its name in the schema and its list.
struct StateList {
  const char* name;
  const TensorList& list;
};

// The tensors of state of one type of moments.
const Types& types_of(Moments moments) {
  return moments == Moments::float32 ? kFloat32 : moments == Moments::bfloat16 ? kBfloat16 : kBytes;
}

// A stored plan and what it was made for.
struct StoredPlan {
  const Tensor& memory;
  int64_t bytes;  // of memory, as the backend expects
  const OptionalTensor &bits, &rank;
  bool compact, stochastic_rounding;
  int64_t moment_bits;  // 32, 16 or 8
};

// What may differ from step to step.
struct StepSettings {
  const Tensor& lr;
  double weight_decay;
  bool maximize;
  int64_t seed;
  const OptionalTensor &grad_scale, &found_inf;
};

// Values of state that a tensor needs; -1 if unknown. The rank directory is read on the host, so only CPU tensors can
// be checked.
int64_t state_size(const StepLists& step, const int64_t* rank, int64_t first_block, int64_t numel) {
  if (!step.compact || !rank) return numel;
  return step.params.front().is_cuda() ? -1 : rank[first_block + block_count(numel)] - rank[first_block];
}

// Bits past the end of a tensor would select elements that do not exist. Like state_size, for CPU tensors only.
bool has_bits_past_end(const StepLists& step, const MaskView& mask, const StepTensor& tensor) {
  if (!mask.bits || step.params.front().is_cuda()) return false;
  const uint32_t* words = mask.bits + tensor.first_block * kWordsPerBlock;
  const int64_t end = block_count(tensor.numel) * kWordsPerBlock;
  int64_t word = tensor.numel / 32;
  uint32_t past = word < end && tensor.numel % 32 != 0 ? words[word++] >> (tensor.numel % 32) : 0;
  for (; word < end; word++) past |= words[word];
  return past != 0;
}

// The checked arguments of a step.
struct Step {
  Arguments arguments;
  std::vector<StepTensor> tensors;  // empty with a stored plan
  StepOptions options;

  Step(const char* op, const Tensor* on) : arguments(op, on) {}

  void take_lists(const StepLists& lists, const std::vector<StateList>& states);
  void take_plan(const StoredPlan& plan);
  void take_settings(const StepSettings& settings);

 private:
  // Returns the number of blocks of the mask: without limit, if there is no mask.
  int64_t take_mask(const OptionalTensor& bits, const OptionalTensor& rank, bool compact);
  void take_param(size_t t, const StepLists& lists);
  // The type of the moments: that of the first one.
  void take_moments(const std::vector<StateList>& states);
  void* take_state(const StateList& state, size_t t, int64_t size);
};

int64_t Step::take_mask(const OptionalTensor& bits, const OptionalTensor& rank, bool compact) {
  arguments.require(bits.has_value() == rank.has_value(), "bits", "and rank go together");
  options.compact = compact && bits.has_value();  // without a mask both forms of state are the same
  if (!bits) return std::numeric_limits<int64_t>::max();
  const int64_t blocks = bits->numel() / kWordsPerBlock;
  options.mask = {arguments.take_bits("bits", *bits, Access::read, blocks),
                  arguments.take_rank(*rank, Access::read, blocks)};
  return blocks;
}

void Step::take_param(size_t t, const StepLists& lists) {
  StepTensor& tensor = tensors[t];
  tensor.param = arguments.take("params", lists.params, t, kFloating, Access::write);
  tensor.numel = lists.params[t].numel();
  tensor.dtype = dtype_of(lists.params[t]);
  tensor.grad = arguments.take("grads", lists.grads, t, kFloating, Access::read, tensor.numel);
  if (dtype_of(lists.grads[t]) != tensor.dtype) {
    arguments.fail("grads", static_cast<int64_t>(t), "has another dtype than its parameter");
  }
  if (lists.stochastic_rounding && tensor.dtype == DType::float16) {
    arguments.fail("params", static_cast<int64_t>(t), "is float16: stochastic_rounding is for bfloat16");
  }
}

void Step::take_moments(const std::vector<StateList>& states) {
  if (states.empty() || states.front().list.empty()) return;
  const ScalarType type = states.front().list.front().scalar_type();
  options.moments = type == ScalarType::Byte       ? Moments::bits8
                    : type == ScalarType::BFloat16 ? Moments::bfloat16
                                                   : Moments::float32;
  if (options.moments == Moments::bits8 && states.size() == kMaxStates) {
    arguments.require(states.back().list.empty(), states.back().name, "cannot be kept in 8 bits");
  }
}

void* Step::take_state(const StateList& state, size_t t, int64_t size) {
  if (state.list.empty()) return nullptr;
  const bool coded = options.moments == Moments::bits8;
  if (coded && size >= 0) size += kBaseBytes * block_count(tensors[t].numel);
  void* memory = arguments.take(state.name, state.list, t, types_of(options.moments), Access::write, size);
  if (coded && reinterpret_cast<uintptr_t>(memory) % kBaseBytes != 0) {
    arguments.fail(state.name, static_cast<int64_t>(t), "is not aligned to two bytes");
  }
  return memory;
}

void Step::take_lists(const StepLists& lists, const std::vector<StateList>& states) {
  const size_t count = lists.params.size();
  arguments.length("grads", lists.grads, count);
  arguments.length("steps", lists.steps, count);
  arguments.length_or_empty("masters", lists.masters, count);
  for (const StateList& state : states) arguments.length_or_empty(state.name, state.list, count);
  arguments.require(!lists.stochastic_rounding || lists.masters.empty(), "stochastic_rounding",
                    "has no meaning with masters");
  arguments.require(lists.first_blocks.size() == count || (lists.first_blocks.empty() && !lists.bits), "first_blocks",
                    "has " + std::to_string(lists.first_blocks.size()) + " entries, expected " + std::to_string(count));
  const int64_t blocks = take_mask(lists.bits, lists.rank, lists.compact);
  options.stochastic_rounding = lists.stochastic_rounding;
  take_moments(states);
  tensors.resize(count);
  int64_t next_block = 0;  // without a mask, blocks are counted as if there were one
  for (size_t t = 0; t < count; t++) {
    StepTensor& tensor = tensors[t];
    take_param(t, lists);
    tensor.first_block = lists.first_blocks.empty() ? next_block : lists.first_blocks[t];
    next_block = tensor.first_block + block_count(tensor.numel);
    if (tensor.first_block < 0 || tensor.first_block > blocks - block_count(tensor.numel)) {
      arguments.fail("first_blocks", static_cast<int64_t>(t), "is outside the mask");
    }
    if (has_bits_past_end(lists, options.mask, tensor)) {
      arguments.fail("params", static_cast<int64_t>(t), "has set bits past its end in the mask");
    }
    const int64_t size = state_size(lists, options.mask.rank, tensor.first_block, tensor.numel);
    for (size_t s = 0; s < states.size(); s++) {
      tensor.state[s] = take_state(states[s], t, size);
    }
    tensor.master = arguments.take_floats("masters", lists.masters, t, Access::write, size);
    tensor.step = arguments.take_floats("steps", lists.steps, t, Access::write, 1);
  }
}

void Step::take_plan(const StoredPlan& plan) {
  arguments.take("plan", plan.memory, kBytes, Access::write, plan.bytes);
  take_mask(plan.bits, plan.rank, plan.compact);
  options.stochastic_rounding = plan.stochastic_rounding;
  arguments.require(plan.moment_bits == 32 || plan.moment_bits == 16 || plan.moment_bits == 8, "moment_bits",
                    "is " + std::to_string(plan.moment_bits) + ", expected 32, 16 or 8");
  options.moments = plan.moment_bits == 32   ? Moments::float32
                    : plan.moment_bits == 16 ? Moments::bfloat16
                                             : Moments::bits8;
}

void Step::take_settings(const StepSettings& settings) {
  arguments.require(settings.weight_decay >= 0, "weight_decay", "is negative or NaN");
  options.maximize = settings.maximize;
  options.seed = static_cast<uint64_t>(settings.seed);
  options.lr = arguments.take("lr", settings.lr, kFloatOrDouble, Access::read, 1);
  options.lr_is_double = settings.lr.scalar_type() == ScalarType::Double;
  options.grad_scale = arguments.take_scalar("grad_scale", settings.grad_scale);
  options.found_inf = arguments.take_scalar("found_inf", settings.found_inf);
  arguments.refuse_overlap();
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

void take_adamw_lists(Step& step, const StepLists& lists, const TensorList& exp_avgs, const TensorList& exp_avg_sqs,
                      const TensorList& max_exp_avg_sqs) {
  step.arguments.length("exp_avgs", exp_avgs, lists.params.size());
  step.arguments.length("exp_avg_sqs", exp_avg_sqs, lists.params.size());
  step.take_lists(lists, {{"exp_avgs", exp_avgs}, {"exp_avg_sqs", exp_avg_sqs}, {"max_exp_avg_sqs", max_exp_avg_sqs}});
}

template <class Backend>
void masked_adamw(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
                  const TensorList& exp_avg_sqs, const TensorList& max_exp_avg_sqs, const TensorList& masters,
                  const TensorList& steps, const OptionalTensor& bits, const OptionalTensor& rank,
                  const std::vector<int64_t>& first_blocks, const Tensor& lr, double beta1, double beta2, double eps,
                  double weight_decay, bool maximize, bool compact, bool stochastic_rounding, int64_t seed,
                  const OptionalTensor& grad_scale, const OptionalTensor& found_inf) {
  const AdamWConfig config{0.0, beta1, beta2, eps, weight_decay};
  Step step("masked_adamw_", first_of(params));
  require_range(step.arguments, config);
  take_adamw_lists(step, {params, grads, masters, steps, bits, rank, first_blocks, compact, stochastic_rounding},
                   exp_avgs, exp_avg_sqs, max_exp_avg_sqs);
  step.take_settings({lr, weight_decay, maximize, seed, grad_scale, found_inf});
  if (params.empty()) return;
  Backend backend(step.arguments.op(), params.front());
  backend.step(Backend::masked_adamw, backend.plan(step.tensors), config, !max_exp_avg_sqs.empty(), step.options);
}

template <class Backend>
void masked_sgd(const TensorList& params, const TensorList& grads, const TensorList& momentum_buffers,
                const TensorList& masters, const TensorList& steps, const OptionalTensor& bits,
                const OptionalTensor& rank, const std::vector<int64_t>& first_blocks, const Tensor& lr, double momentum,
                double dampening, double weight_decay, bool nesterov, bool maximize, bool compact,
                bool stochastic_rounding, int64_t seed, const OptionalTensor& grad_scale,
                const OptionalTensor& found_inf) {
  const SgdConfig config{0.0, momentum, dampening, weight_decay, nesterov};
  Step step("masked_sgd_", first_of(params));
  require_range(step.arguments, config);
  step.arguments.length("momentum_buffers", momentum_buffers, config.momentum != 0 ? params.size() : 0);
  step.take_lists({params, grads, masters, steps, bits, rank, first_blocks, compact, stochastic_rounding},
                  {{"momentum_buffers", momentum_buffers}});
  step.take_settings({lr, weight_decay, maximize, seed, grad_scale, found_inf});
  if (params.empty()) return;
  Backend backend(step.arguments.op(), params.front());
  backend.step(Backend::masked_sgd, backend.plan(step.tensors), config, step.options);
}

template <class Backend>
Tensor plan_adamw(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
                  const TensorList& exp_avg_sqs, const TensorList& max_exp_avg_sqs, const TensorList& masters,
                  const TensorList& steps, const OptionalTensor& bits, const OptionalTensor& rank,
                  const std::vector<int64_t>& first_blocks, bool compact, bool stochastic_rounding) {
  Step step("plan_adamw", first_of(params));
  take_adamw_lists(step, {params, grads, masters, steps, bits, rank, first_blocks, compact, stochastic_rounding},
                   exp_avgs, exp_avg_sqs, max_exp_avg_sqs);
  step.arguments.refuse_overlap();
  return stored_plan<Backend>(step.arguments, params.at(0), step.tensors);
}

template <class Backend>
Tensor plan_sgd(const TensorList& params, const TensorList& grads, const TensorList& momentum_buffers,
                const TensorList& masters, const TensorList& steps, const OptionalTensor& bits,
                const OptionalTensor& rank, const std::vector<int64_t>& first_blocks, bool compact,
                bool stochastic_rounding) {
  Step step("plan_sgd", first_of(params));
  step.take_lists({params, grads, masters, steps, bits, rank, first_blocks, compact, stochastic_rounding},
                  {{"momentum_buffers", momentum_buffers}});
  step.arguments.refuse_overlap();
  return stored_plan<Backend>(step.arguments, params.at(0), step.tensors);
}

template <class Backend>
void planned_adamw(const Tensor& plan, int64_t tensors, int64_t blocks, bool amsgrad, const OptionalTensor& bits,
                   const OptionalTensor& rank, bool compact, bool stochastic_rounding, int64_t moment_bits,
                   const Tensor& lr, double beta1, double beta2, double eps, double weight_decay, bool maximize,
                   int64_t seed, const OptionalTensor& grad_scale, const OptionalTensor& found_inf) {
  const AdamWConfig config{0.0, beta1, beta2, eps, weight_decay};
  Step step("planned_adamw_", &plan);
  require_range(step.arguments, config);
  step.take_plan({plan, Backend::template plan_bytes<StepTensor>(tensors, blocks), bits, rank, compact,
                  stochastic_rounding, moment_bits});
  step.take_settings({lr, weight_decay, maximize, seed, grad_scale, found_inf});
  Backend backend(step.arguments.op(), plan);
  backend.step(Backend::masked_adamw, Backend::template plan_in<StepTensor>(plan.data_ptr(), tensors, blocks), config,
               amsgrad, step.options);
}

template <class Backend>
void planned_sgd(const Tensor& plan, int64_t tensors, int64_t blocks, const OptionalTensor& bits,
                 const OptionalTensor& rank, bool compact, bool stochastic_rounding, int64_t moment_bits,
                 const Tensor& lr, double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
                 int64_t seed, const OptionalTensor& grad_scale, const OptionalTensor& found_inf) {
  const SgdConfig config{0.0, momentum, dampening, weight_decay, nesterov};
  Step step("planned_sgd_", &plan);
  require_range(step.arguments, config);
  step.take_plan({plan, Backend::template plan_bytes<StepTensor>(tensors, blocks), bits, rank, compact,
                  stochastic_rounding, moment_bits});
  step.take_settings({lr, weight_decay, maximize, seed, grad_scale, found_inf});
  Backend backend(step.arguments.op(), plan);
  backend.step(Backend::masked_sgd, Backend::template plan_in<StepTensor>(plan.data_ptr(), tensors, blocks), config,
               step.options);
}

template <class Backend>
void add_step(Library& library) {
  library.impl("masked_adamw_", TORCH_BOX(&masked_adamw<Backend>));
  library.impl("masked_sgd_", TORCH_BOX(&masked_sgd<Backend>));
  library.impl("plan_adamw", TORCH_BOX(&plan_adamw<Backend>));
  library.impl("plan_sgd", TORCH_BOX(&plan_sgd<Backend>));
  library.impl("set_grads_", TORCH_BOX((&set_grads<Backend, StepTensor>)));
  library.impl("planned_adamw_", TORCH_BOX(&planned_adamw<Backend>));
  library.impl("planned_sgd_", TORCH_BOX(&planned_sgd<Backend>));
}

AIMFAIR_REGISTER(add_step)

}  // namespace
}  // namespace aimfair::ops
