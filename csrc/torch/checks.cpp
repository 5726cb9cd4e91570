#include "checks.h"

#include "takes.h"

namespace aimfair::ops {
namespace {

int64_t blocks_of(const std::vector<int64_t>& numels) {
  int64_t blocks = 0;
  for (const int64_t numel : numels) blocks += block_count(numel);
  return blocks;
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

}  // namespace aimfair::ops
