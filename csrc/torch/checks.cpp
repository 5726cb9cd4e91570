#include "checks.h"

#include <limits>

namespace aimfair::ops {
namespace {

const Tensor* first_of(const TensorList& list) { return list.empty() ? nullptr : &list.front(); }

float* as_floats(void* memory) { return static_cast<float*>(memory); }

// The one value of an optional argument, or null.
const float* take_scalar(Arguments& arguments, const char* name, const OptionalTensor& tensor) {
  return tensor ? as_floats(arguments.take(name, *tensor, Types::float32, Access::read, 1)) : nullptr;
}

// A float32 tensor for each entry of a list that is either empty or complete.
float* take_optional(Arguments& arguments, const char* name, const TensorList& list, size_t i, Access access,
                     int64_t numel) {
  return list.empty() ? nullptr : as_floats(arguments.take(name, list, i, Types::float32, access, numel));
}

void length_or_empty(Arguments& arguments, const char* name, const TensorList& list, size_t length) {
  if (!list.empty()) arguments.length(name, list, length);
}

int64_t blocks_of(const std::vector<int64_t>& numels) {
  int64_t blocks = 0;
  for (const int64_t numel : numels) blocks += block_count(numel);
  return blocks;
}

uint32_t* take_bits(Arguments& arguments, const char* name, const Tensor& bits, Access access, int64_t blocks) {
  return static_cast<uint32_t*>(arguments.take(name, bits, Types::int32, access, blocks * kWordsPerBlock));
}

int64_t* take_rank(Arguments& arguments, const Tensor& rank, Access access, int64_t blocks) {
  return static_cast<int64_t*>(arguments.take("rank", rank, Types::int64, access, blocks + 1));
}

Criterion criterion_of(const Arguments& arguments, const char* name, const std::string& criterion) {
  if (criterion == "value") return Criterion::value;
  if (criterion == "magnitude") return Criterion::magnitude;
  if (criterion == "difference") return Criterion::difference;
  if (criterion == "relative_difference") return Criterion::relative_difference;
  if (criterion == "norm_ratio") return Criterion::norm_ratio;
  arguments.fail(
      name, -1,
      "is '" + criterion + "', expected one of value, magnitude, difference, relative_difference, norm_ratio");
}

// One criterion and its one or two lists.
ScoreTerm check_term(Arguments& arguments, const char* criterion_name, const std::string& criterion, const char* a_name,
                     const TensorList& a, const char* b_name, const TensorList& b, double scale_a, double scale_b,
                     size_t count) {
  const ScoreTerm term{criterion_of(arguments, criterion_name, criterion), static_cast<float>(scale_a),
                       static_cast<float>(scale_b)};
  arguments.length(a_name, a, count);
  arguments.length(b_name, b, has_second_input(term.criterion) ? count : 0);
  return term;
}

void check_score(Arguments& arguments, ScoreCall& call, const std::string& criterion, const TensorList& a,
                 const TensorList& b, double scale_a, double scale_b, const std::string& divisor_criterion,
                 const TensorList& c, const TensorList& d, double scale_c, double scale_d, double eps) {
  call.spec.term = check_term(arguments, "criterion", criterion, "a", a, "b", b, scale_a, scale_b, a.size());
  if (divisor_criterion.empty()) {
    arguments.length("c", c, 0);
    arguments.length("d", d, 0);
  } else {
    call.spec.divisor =
        check_term(arguments, "divisor_criterion", divisor_criterion, "c", c, "d", d, scale_c, scale_d, a.size());
  }
  arguments.require(eps >= 0, "eps", "is negative or NaN");
  call.spec.eps = static_cast<float>(eps);
  call.tensors.resize(a.size());
  for (size_t t = 0; t < a.size(); t++) {
    ScoreTensor& tensor = call.tensors[t];
    tensor.numel = a[t].numel();
    tensor.a = as_floats(arguments.take("a", a, t, Types::float32, Access::read));
    tensor.b = take_optional(arguments, "b", b, t, Access::read, tensor.numel);
    tensor.c = take_optional(arguments, "c", c, t, Access::read, tensor.numel);
    tensor.d = take_optional(arguments, "d", d, t, Access::read, tensor.numel);
  }
}

// The mask over the scored tensors.
void take_mask(Arguments& arguments, SelectCall& call, const Tensor& bits, const Tensor& rank) {
  int64_t blocks = 0;
  for (const ScoreTensor& tensor : call.tensors) blocks += block_count(tensor.numel);
  call.bits = take_bits(arguments, "bits", bits, Access::write, blocks);
  call.rank = take_rank(arguments, rank, Access::write, blocks);
}

void require_key(Arguments& arguments, const char* name, int64_t key) {
  arguments.require(0 <= key && key < int64_t{1} << 32, name,
                    "is " + std::to_string(key) + ", expected 0 to 4294967295");
}

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

AccumulateCall check_accumulate(const TensorList& grads, const TensorList& sums, const TensorList& squares,
                                const TensorList& second_sums, const Tensor& square_norms, const Tensor& nonfinite,
                                double weight, double second_weight, const OptionalTensor& grad_scale,
                                bool zero_grads) {
  Arguments arguments("accumulate_", &square_norms);
  const size_t count = grads.size();
  length_or_empty(arguments, "sums", sums, count);
  length_or_empty(arguments, "squares", squares, count);
  length_or_empty(arguments, "second_sums", second_sums, count);
  AccumulateCall call;
  call.tensors.resize(count);
  for (size_t t = 0; t < count; t++) {
    AccumulateTensor& tensor = call.tensors[t];
    tensor.grad = arguments.take("grads", grads, t, Types::floating, zero_grads ? Access::write : Access::read);
    tensor.dtype = dtype_of(grads[t]);
    tensor.numel = grads[t].numel();
    tensor.sum = take_optional(arguments, "sums", sums, t, Access::write, tensor.numel);
    tensor.square = take_optional(arguments, "squares", squares, t, Access::write, tensor.numel);
    tensor.second_sum = take_optional(arguments, "second_sums", second_sums, t, Access::write, tensor.numel);
  }
  const auto per_tensor = static_cast<int64_t>(count);
  call.square_norms =
      static_cast<double*>(arguments.take("square_norms", square_norms, Types::float64, Access::write, per_tensor));
  call.nonfinite =
      static_cast<int64_t*>(arguments.take("nonfinite", nonfinite, Types::int64, Access::write, per_tensor));
  call.options.grad_scale = take_scalar(arguments, "grad_scale", grad_scale);
  call.options.weight = static_cast<float>(weight);
  call.options.second_weight = static_cast<float>(second_weight);
  call.options.zero_grads = zero_grads;
  arguments.refuse_overlap();
  return call;
}

SelectCall check_select(const Tensor& bits, const Tensor& rank, int64_t k, const std::string& criterion,
                        const TensorList& a, const TensorList& b, double scale_a, double scale_b,
                        const std::string& divisor_criterion, const TensorList& c, const TensorList& d, double scale_c,
                        double scale_d, double eps) {
  Arguments arguments("select_", &bits);
  SelectCall call;
  check_score(arguments, call, criterion, a, b, scale_a, scale_b, divisor_criterion, c, d, scale_c, scale_d, eps);
  int64_t total = 0;
  for (const ScoreTensor& tensor : call.tensors) total += tensor.numel;
  arguments.require(0 <= k && k <= total, "k", "is " + std::to_string(k) + ", expected 0 to " + std::to_string(total));
  take_mask(arguments, call, bits, rank);
  arguments.refuse_overlap();
  return call;
}

CountCall check_count_keys(const Tensor& counts, int64_t first, int64_t bits, const std::string& criterion,
                           const TensorList& a, const TensorList& b, double scale_a, double scale_b,
                           const std::string& divisor_criterion, const TensorList& c, const TensorList& d,
                           double scale_c, double scale_d, double eps) {
  Arguments arguments("count_keys_", &counts);
  CountCall call;
  check_score(arguments, call, criterion, a, b, scale_a, scale_b, divisor_criterion, c, d, scale_c, scale_d, eps);
  arguments.require(0 <= bits && bits <= 32, "bits", "is " + std::to_string(bits) + ", expected 0 to 32");
  require_key(arguments, "first", first);
  arguments.require(first % (int64_t{1} << bits) == 0, "first",
                    "is " + std::to_string(first) + ", expected a multiple of 2^" + std::to_string(bits));
  call.counts = static_cast<int64_t*>(arguments.take("counts", counts, Types::int64, Access::write, kKeyBins + 1));
  arguments.refuse_overlap();
  return call;
}

CountCall check_count_equal(const Tensor& counts, int64_t key, const std::string& criterion, const TensorList& a,
                            const TensorList& b, double scale_a, double scale_b, const std::string& divisor_criterion,
                            const TensorList& c, const TensorList& d, double scale_c, double scale_d, double eps) {
  Arguments arguments("count_equal_", &counts);
  CountCall call;
  check_score(arguments, call, criterion, a, b, scale_a, scale_b, divisor_criterion, c, d, scale_c, scale_d, eps);
  require_key(arguments, "key", key);
  const auto per_tensor = static_cast<int64_t>(a.size());
  call.counts = static_cast<int64_t*>(arguments.take("counts", counts, Types::int64, Access::write, per_tensor));
  arguments.refuse_overlap();
  return call;
}

SelectAboveCall check_select_above(const Tensor& bits, const Tensor& rank, int64_t key, const Tensor& ties,
                                   const std::string& criterion, const TensorList& a, const TensorList& b,
                                   double scale_a, double scale_b, const std::string& divisor_criterion,
                                   const TensorList& c, const TensorList& d, double scale_c, double scale_d,
                                   double eps) {
  Arguments arguments("select_above_", &bits);
  SelectAboveCall call;
  check_score(arguments, call, criterion, a, b, scale_a, scale_b, divisor_criterion, c, d, scale_c, scale_d, eps);
  require_key(arguments, "key", key);
  const auto per_tensor = static_cast<int64_t>(a.size());
  call.ties = static_cast<const int64_t*>(arguments.take("ties", ties, Types::int64, Access::read, per_tensor));
  take_mask(arguments, call, bits, rank);
  arguments.refuse_overlap();
  return call;
}

UnitScoresCall check_unit_scores(const TensorList& out, const std::string& criterion, const TensorList& a,
                                 const TensorList& b, double scale_a, double scale_b,
                                 const std::string& divisor_criterion, const TensorList& c, const TensorList& d,
                                 double scale_c, double scale_d, double eps) {
  Arguments arguments("unit_scores_", first_of(out));
  UnitScoresCall call;
  check_score(arguments, call, criterion, a, b, scale_a, scale_b, divisor_criterion, c, d, scale_c, scale_d, eps);
  arguments.length("out", out, a.size());
  for (size_t t = 0; t < out.size(); t++) {
    call.out.push_back(as_floats(arguments.take("out", out, t, Types::float32, Access::write)));
    call.units.push_back(out[t].numel());
    const int64_t numel = call.tensors[t].numel;
    if (call.units[t] == 0 ? numel != 0 : numel % call.units[t] != 0) {
      arguments.fail("out", static_cast<int64_t>(t),
                     "has " + std::to_string(call.units[t]) + " units, which do not divide " + std::to_string(numel) +
                         " elements");
    }
  }
  arguments.refuse_overlap();
  return call;
}

void refuse_nan(const char* op, const SelectResult& result) {
  if (result.nan_tensor < 0) return;
  Arguments(op, nullptr).fail("a", result.nan_tensor, "has a score that is NaN");
}

ExpandUnitsCall check_expand_units(const Tensor& bits, const Tensor& rank, const Tensor& unit_bits,
                                   const std::vector<int64_t>& numels, const std::vector<int64_t>& units) {
  Arguments arguments("expand_units_", &bits);
  arguments.require(units.size() == numels.size(), "units",
                    "has " + std::to_string(units.size()) + " entries, expected " + std::to_string(numels.size()));
  for (size_t t = 0; t < numels.size(); t++) {
    constexpr int64_t kMost = int64_t{1} << 48;  // more than any memory, and sums of it do not overflow
    if (numels[t] < 0 || numels[t] > kMost) arguments.fail("numels", static_cast<int64_t>(t), "is no size of a tensor");
    if (units[t] <= 0 ? units[t] < 0 || numels[t] != 0 : numels[t] % units[t] != 0) {
      arguments.fail(
          "units", static_cast<int64_t>(t),
          "is " + std::to_string(units[t]) + ", which does not divide " + std::to_string(numels[t]) + " elements");
    }
  }
  ExpandUnitsCall call;
  call.blocks = blocks_of(numels);
  call.unit_bits = take_bits(arguments, "unit_bits", unit_bits, Access::read, blocks_of(units));
  call.bits = take_bits(arguments, "bits", bits, Access::write, call.blocks);
  call.rank = take_rank(arguments, rank, Access::write, call.blocks);
  arguments.refuse_overlap();
  return call;
}

namespace {

BoolsCall check_bools(Arguments& arguments, const Tensor& bits, Access bits_access, const TensorList& bools,
                      Access bools_access) {
  BoolsCall call;
  for (size_t t = 0; t < bools.size(); t++) {
    call.bools.push_back(static_cast<uint8_t*>(arguments.take("bools", bools, t, Types::boolean, bools_access)));
    call.numels.push_back(bools[t].numel());
  }
  call.blocks = blocks_of(call.numels);
  call.bits = take_bits(arguments, "bits", bits, bits_access, call.blocks);
  return call;
}

}  // namespace

BoolsCall check_pack_bits(const Tensor& bits, const Tensor& rank, const TensorList& bools) {
  Arguments arguments("pack_bits_", &bits);
  BoolsCall call = check_bools(arguments, bits, Access::write, bools, Access::read);
  call.rank = take_rank(arguments, rank, Access::write, call.blocks);
  arguments.refuse_overlap();
  return call;
}

BoolsCall check_unpack_bits(const TensorList& bools, const Tensor& bits) {
  Arguments arguments("unpack_bits_", &bits);
  BoolsCall call = check_bools(arguments, bits, Access::read, bools, Access::write);
  arguments.refuse_overlap();
  return call;
}

MaskCall check_rank(const Tensor& rank, const Tensor& bits) {
  Arguments arguments("rank_", &bits);
  MaskCall call;
  call.blocks = bits.numel() / kWordsPerBlock;
  call.bits = take_bits(arguments, "bits", bits, Access::read, call.blocks);
  call.rank = take_rank(arguments, rank, Access::write, call.blocks);
  arguments.refuse_overlap();
  return call;
}

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
