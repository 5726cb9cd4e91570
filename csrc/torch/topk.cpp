#include "aimfair/topk.h"

#include <unordered_map>

#include "arguments.h"
#include "backend.h"

namespace aimfair::ops {
namespace {

// The arguments that say what is scored. They come last in the schemas of all operators of this family.
struct ScoreArguments {
  const std::string& criterion;
  const TensorList &a, &b;
  double scale_a, scale_b;
  const std::string& divisor_criterion;
  const TensorList &c, &d;
  double scale_c, scale_d;
  double eps;
};

// WithScore<&op>::call takes the flat arguments of a schema and calls op(ScoreArguments, the operator's own arguments).
template <auto kOperator>
struct WithScore;

template <class... Own, void (*kOperator)(const ScoreArguments&, Own...)>
struct WithScore<kOperator> {
  static void call(Own... own, const std::string& criterion, const TensorList& a, const TensorList& b, double scale_a,
                   double scale_b, const std::string& divisor_criterion, const TensorList& c, const TensorList& d,
                   double scale_c, double scale_d, double eps) {
    kOperator({criterion, a, b, scale_a, scale_b, divisor_criterion, c, d, scale_c, scale_d, eps}, own...);
  }
};

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

// Checked scores.
struct Scores {
  Score score;
  std::vector<ScoreTensor> tensors;

  Scores(Arguments& arguments, const ScoreArguments& given) : tensors(given.a.size()) {
    const size_t count = tensors.size();
    score.term = {criterion_of(arguments, "criterion", given.criterion), static_cast<float>(given.scale_a),
                  static_cast<float>(given.scale_b)};
    arguments.length("b", given.b, has_second_input(score.term.criterion) ? count : 0);
    const bool divided = !given.divisor_criterion.empty();
    if (divided) {
      score.divisor = {criterion_of(arguments, "divisor_criterion", given.divisor_criterion),
                       static_cast<float>(given.scale_c), static_cast<float>(given.scale_d)};
    }
    arguments.length("c", given.c, divided ? count : 0);
    arguments.length("d", given.d, has_second_input(score.divisor.criterion) ? count : 0);
    arguments.require(given.eps >= 0, "eps", "is negative or NaN");
    score.eps = static_cast<float>(given.eps);
    for (size_t t = 0; t < count; t++) {
      const int64_t numel = given.a[t].numel();
      tensors[t] = {numel, arguments.take_floats("a", given.a, t, Access::read, -1),
                    arguments.take_floats("b", given.b, t, Access::read, numel),
                    arguments.take_floats("c", given.c, t, Access::read, numel),
                    arguments.take_floats("d", given.d, t, Access::read, numel)};
    }
  }

  int64_t count() const { return size_of(tensors); }

  int64_t total() const {
    int64_t total = 0;
    for (const ScoreTensor& tensor : tensors) total += tensor.numel;
    return total;
  }

  int64_t blocks() const {
    int64_t blocks = 0;
    for (const ScoreTensor& tensor : tensors) blocks += block_count(tensor.numel);
    return blocks;
  }
};

uint32_t checked_key(const Arguments& arguments, const char* name, int64_t key) {
  arguments.require(0 <= key && key < int64_t{1} << 32, name,
                    "is " + std::to_string(key) + ", expected 0 to 4294967295");
  return static_cast<uint32_t>(key);
}

void refuse_nan(const Arguments& arguments, const SelectResult& result) {
  if (result.nan_tensor >= 0) arguments.fail("a", result.nan_tensor, "has a score that is NaN");
}

template <class Backend>
void select(const ScoreArguments& given, const Tensor& bits, const Tensor& rank, int64_t k, bool largest) {
  Arguments arguments("select_", &bits);
  const Scores scores(arguments, given);
  const int64_t total = scores.total();
  arguments.require(0 <= k && k <= total, "k", "is " + std::to_string(k) + ", expected 0 to " + std::to_string(total));
  auto* mask = arguments.take_bits("bits", bits, Access::write, scores.blocks());
  auto* directory = arguments.take_rank(rank, Access::write, scores.blocks());
  arguments.refuse_overlap();
  Backend backend(arguments.op(), bits);
  refuse_nan(arguments, backend.run(Backend::select, scores.tensors.data(), scores.count(), scores.score, k, largest,
                                    mask, directory));
}

void check_units(const Arguments& arguments, const char* name, int64_t t, int64_t units, int64_t numel) {
  if (units <= 0 ? units < 0 || numel != 0 : numel % units != 0) {
    arguments.fail(name, t,
                   "is " + std::to_string(units) + ", which does not divide " + std::to_string(numel) + " elements");
  }
}

// Refuses units that do not divide their tensor, groups that are none, and a k of more elements than a segment has.
void check_segments(const Arguments& arguments, const Scores& scores, const std::vector<int64_t>& units,
                    const std::vector<int64_t>& ks, const std::vector<int64_t>& groups) {
  const size_t count = scores.tensors.size();
  const auto length = [&](const char* name, const std::vector<int64_t>& list) {
    arguments.require(list.size() == count, name,
                      "has " + std::to_string(list.size()) + " entries, expected " + std::to_string(count));
  };
  length("units", units);
  length("ks", ks);
  if (!groups.empty()) length("groups", groups);
  struct Group {
    size_t first;
    int64_t elements, tensors;
  };
  std::unordered_map<int64_t, Group> known;
  for (size_t t = 0; t < groups.size(); t++) {
    Group& group = known.try_emplace(groups[t], Group{t, 0, 0}).first->second;
    group.elements += scores.tensors[t].numel;
    group.tensors++;
  }
  for (size_t t = 0; t < count; t++) {
    const auto entry = static_cast<int64_t>(t);
    const int64_t numel = scores.tensors[t].numel;
    check_units(arguments, "units", entry, units[t], numel);
    int64_t elements = units[t] > 0 ? numel / units[t] : 0;
    if (!groups.empty() && known.at(groups[t]).tensors > 1) {
      const Group& group = known.at(groups[t]);
      if (units[t] > 1) {
        arguments.fail("units", entry,
                       "is " + std::to_string(units[t]) + ", expected 1 in group " + std::to_string(groups[t]) +
                           " of several tensors");
      }
      if (ks[t] != ks[group.first]) {
        arguments.fail("ks", entry,
                       "is " + std::to_string(ks[t]) + ", expected " + std::to_string(ks[group.first]) + " as for " +
                           std::to_string(group.first) + ", which is in the same group");
      }
      elements = group.elements;
    }
    if (ks[t] < 0 || ks[t] > elements) {
      arguments.fail("ks", entry,
                     "is " + std::to_string(ks[t]) + ", expected 0 to " + std::to_string(elements) +
                         ", the elements of a segment");
    }
  }
}

template <class Backend>
void select_segments(const ScoreArguments& given, const Tensor& bits, const Tensor& rank,
                     const std::vector<int64_t>& units, const std::vector<int64_t>& ks,
                     const std::vector<int64_t>& groups, bool largest) {
  Arguments arguments("select_segments_", &bits);
  const Scores scores(arguments, given);
  check_segments(arguments, scores, units, ks, groups);
  auto* mask = arguments.take_bits("bits", bits, Access::write, scores.blocks());
  auto* directory = arguments.take_rank(rank, Access::write, scores.blocks());
  arguments.refuse_overlap();
  const Segments segments = {units.data(), ks.data(), groups.empty() ? nullptr : groups.data()};
  Backend backend(arguments.op(), bits);
  refuse_nan(arguments, backend.run(Backend::select_segments, scores.tensors.data(), scores.count(), scores.score,
                                    segments, largest, mask, directory));
}

template <class Backend>
void count_keys(const ScoreArguments& given, const Tensor& counts, int64_t first, int64_t bits, bool largest) {
  Arguments arguments("count_keys_", &counts);
  const Scores scores(arguments, given);
  arguments.require(0 <= bits && bits <= 32, "bits", "is " + std::to_string(bits) + ", expected 0 to 32");
  const uint32_t key = checked_key(arguments, "first", first);
  arguments.require(first % (int64_t{1} << bits) == 0, "first",
                    "is " + std::to_string(first) + ", expected a multiple of 2^" + std::to_string(bits));
  auto* bins = arguments.take_counts("counts", counts, Access::write, kKeyBins + 1);
  arguments.refuse_overlap();
  Backend backend(arguments.op(), counts);
  backend.run(Backend::count_keys, scores.tensors.data(), scores.count(), scores.score, key, static_cast<int>(bits),
              largest, bins);
}

template <class Backend>
void count_equal(const ScoreArguments& given, const Tensor& counts, int64_t key, bool largest) {
  Arguments arguments("count_equal_", &counts);
  const Scores scores(arguments, given);
  const uint32_t wanted = checked_key(arguments, "key", key);
  auto* per_tensor = arguments.take_counts("counts", counts, Access::write, scores.tensors.size());
  arguments.refuse_overlap();
  Backend backend(arguments.op(), counts);
  backend.run(Backend::count_equal, scores.tensors.data(), scores.count(), scores.score, wanted, largest, per_tensor);
}

template <class Backend>
void select_above(const ScoreArguments& given, const Tensor& bits, const Tensor& rank, int64_t key, const Tensor& ties,
                  bool largest) {
  Arguments arguments("select_above_", &bits);
  const Scores scores(arguments, given);
  const uint32_t threshold = checked_key(arguments, "key", key);
  const auto* per_tensor = arguments.take_counts("ties", ties, Access::read, scores.tensors.size());
  auto* mask = arguments.take_bits("bits", bits, Access::write, scores.blocks());
  auto* directory = arguments.take_rank(rank, Access::write, scores.blocks());
  arguments.refuse_overlap();
  Backend backend(arguments.op(), bits);
  refuse_nan(arguments, backend.run(Backend::select_above, scores.tensors.data(), scores.count(), scores.score,
                                    threshold, per_tensor, largest, mask, directory));
}

template <class Backend>
void unit_scores(const ScoreArguments& given, const TensorList& out) {
  Arguments arguments("unit_scores_", first_of(out));
  const Scores scores(arguments, given);
  arguments.length("out", out, scores.tensors.size());
  std::vector<float*> means;
  std::vector<int64_t> units;
  for (size_t t = 0; t < out.size(); t++) {
    means.push_back(arguments.take_floats("out", out, t, Access::write, -1));
    units.push_back(out[t].numel());
    const int64_t numel = scores.tensors[t].numel;
    if (units[t] == 0 ? numel != 0 : numel % units[t] != 0) {
      arguments.fail(
          "out", static_cast<int64_t>(t),
          "has " + std::to_string(units[t]) + " units, which do not divide " + std::to_string(numel) + " elements");
    }
  }
  arguments.refuse_overlap();
  if (out.empty()) return;
  Backend backend(arguments.op(), out.front());
  refuse_nan(arguments, backend.run(Backend::unit_scores, scores.tensors.data(), scores.count(), scores.score,
                                    units.data(), means.data()));
}

template <class Backend>
void add_topk(Library& library) {
  library.impl("select_", TORCH_BOX(&WithScore<&select<Backend>>::call));
  library.impl("select_segments_", TORCH_BOX(&WithScore<&select_segments<Backend>>::call));
  library.impl("count_keys_", TORCH_BOX(&WithScore<&count_keys<Backend>>::call));
  library.impl("count_equal_", TORCH_BOX(&WithScore<&count_equal<Backend>>::call));
  library.impl("select_above_", TORCH_BOX(&WithScore<&select_above<Backend>>::call));
  library.impl("unit_scores_", TORCH_BOX(&WithScore<&unit_scores<Backend>>::call));
}

AIMFAIR_REGISTER(add_topk)

}  // namespace
}  // namespace aimfair::ops
