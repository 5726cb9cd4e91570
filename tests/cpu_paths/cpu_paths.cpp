// Prints a line for each CPU path of this processor: its name, then a hash of what every operator makes of the same
// inputs. The hashes are those of every path, on every processor: tests/repository/test_cpu_paths.py compares them.

#include <aimfair/aimfair.h>
#include <aimfair/random.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

using namespace aimfair;

namespace {

// FNV-1a.
class Hash {
 public:
  template <class T>
  void add(const std::vector<T>& values) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
    for (size_t i = 0; i < values.size() * sizeof(T); i++) value_ = (value_ ^ bytes[i]) * 0x100000001b3ull;
  }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325ull;
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() { return splitmix64(state_++); }
  // From -2 to 2, of any magnitude down to 2^-20.
  float value() {
    const uint64_t random = bits();
    const float size = static_cast<float>(random >> 40) / static_cast<float>(1 << 23);
    const float scaled = size / static_cast<float>(uint64_t{1} << (random & 15) << (random >> 4 & 3));
    return random >> 8 & 1 ? scaled : -scaled;
  }
  std::vector<float> values(int64_t n) {
    std::vector<float> values;
    for (int64_t i = 0; i < n; i++) values.push_back(value());
    return values;
  }

 private:
  uint64_t state_;
};

constexpr DType kTypes[] = {DType::float32, DType::bfloat16, DType::float16};
constexpr int64_t kSizes[] = {1, 15, 16, 17, 1000, 1024, 1025, 20000};

int64_t size_of(DType type) { return type == DType::float32 ? 4 : 2; }

// The values in another type; every 97th of them is infinite or NaN, or too small for a normal float16.
std::vector<char> stored(std::vector<float> values, DType type, bool special) {
  std::vector<char> memory(values.size() * static_cast<size_t>(size_of(type)));
  const float specials[] = {std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN(),
                            3e-7f,
                            -0.0f,
                            65520.0f};
  for (size_t i = 0; i < values.size(); i++) {
    if (special && i % 97 == 5) values[i] = specials[i / 97 % 6];
    if (type == DType::float32) {
      memcpy(&memory[4 * i], &values[i], 4);
    } else {
      const uint16_t half = type == DType::bfloat16 ? float_to_bfloat16(values[i]) : float_to_float16(values[i]);
      memcpy(&memory[2 * i], &half, 2);
    }
  }
  return memory;
}

uint64_t accumulated() {
  Hash hash;
  for (const DType type : kTypes) {
    for (const int64_t n : kSizes) {
      Random random(static_cast<uint64_t>(n));
      auto grad = stored(random.values(n), type, true);
      auto sum = random.values(n), square = random.values(n), second = random.values(n);
      const float scale = 3.0f;
      const AccumulateTensor tensor{grad.data(), type, n, sum.data(), square.data(), second.data()};
      std::vector<double> norm{0.5};
      std::vector<int64_t> nonfinite{1};
      cpu::accumulate(&tensor, 1, {0.75f, -0.25f, false, &scale}, norm.data(), nonfinite.data());
      hash.add(sum), hash.add(square), hash.add(second), hash.add(norm), hash.add(nonfinite);
    }
  }
  return hash.value();
}

uint64_t selected() {
  Hash hash;
  for (const Criterion criterion : {Criterion::value, Criterion::magnitude, Criterion::difference,
                                    Criterion::relative_difference, Criterion::norm_ratio}) {
    std::vector<std::vector<float>> inputs;
    std::vector<ScoreTensor> tensors;
    int64_t total = 0, blocks = 0;
    for (const int64_t n : {int64_t{300000}, int64_t{17}, int64_t{5000}}) {
      Random random(static_cast<uint64_t>(n));
      for (int i = 0; i < 2; i++) {
        inputs.push_back(random.values(n));
        if (criterion == Criterion::norm_ratio) {
          for (float& value : inputs.back()) value = absolute(value);
        }
      }
      tensors.push_back({n, inputs[inputs.size() - 2].data(), inputs.back().data()});
      total += n;
      blocks += block_count(n);
    }
    Score score;
    score.term = {criterion, 0.5f, 2.0f};
    for (const int64_t k : {int64_t{1}, total / 100, total / 3}) {
      std::vector<uint32_t> bits(static_cast<size_t>(blocks * kWordsPerBlock));
      std::vector<int64_t> rank(static_cast<size_t>(blocks) + 1);
      cpu::select(tensors.data(), static_cast<int64_t>(tensors.size()), score, k, k % 2 == 0, bits.data(), rank.data());
      hash.add(bits), hash.add(rank);
    }
    std::vector<float> means(100);
    const int64_t units = 100;
    float* out = means.data();
    cpu::unit_scores(&tensors.front(), 1, score, &units, &out);
    hash.add(means);
  }
  return hash.value();
}

struct StepCase {
  DType type;
  int64_t n;
  int density;  // one element in so many
  bool compact, master, stochastic;
  Moments moments = Moments::float32;
};

// Three steps; `take(tensor, options)` is one.
template <class Take>
void add_steps(Hash& hash, const StepCase& given, int states, const Take& take) {
  Random random(static_cast<uint64_t>(given.n + given.density));
  auto param = stored(random.values(given.n), given.type, false);
  std::vector<uint32_t> bits(static_cast<size_t>(block_count(given.n) * kWordsPerBlock));
  for (int64_t i = 0; i < given.n; i++) {
    if (random.bits() % static_cast<uint64_t>(given.density) == 0) bits[static_cast<size_t>(i / 32)] |= 1u << i % 32;
  }
  std::vector<int64_t> rank(static_cast<size_t>(block_count(given.n)) + 1);
  cpu::rank(bits.data(), block_count(given.n), rank.data());
  const int64_t kept = given.compact ? rank.back() : given.n;
  const size_t room = static_cast<size_t>(kept + block_count(given.n));  // also for the bases of bits8
  std::vector<std::vector<float>> state(static_cast<size_t>(states), std::vector<float>(room));
  auto master = random.values(kept);
  float step = 0.0f;
  StepTensor tensor;
  tensor.param = param.data();
  tensor.dtype = given.type;
  tensor.numel = given.n;
  tensor.step = &step;
  for (size_t s = 0; s < state.size(); s++) tensor.state[s] = state[s].data();
  if (given.master) tensor.master = master.data();
  StepOptions options;
  options.mask = {bits.data(), rank.data()};
  options.moments = given.moments;
  options.compact = given.compact;
  options.stochastic_rounding = given.stochastic;
  options.seed = 7;
  for (int i = 0; i < 3; i++) {
    const auto grad = stored(random.values(given.n), given.type, false);
    tensor.grad = grad.data();
    take(tensor, options);
  }
  hash.add(param), hash.add(master);
  for (const auto& values : state) hash.add(values);
}

template <class Add>
uint64_t stepped(const Add& add) {
  Hash hash;
  for (const DType type : kTypes) {
    for (const int64_t n : kSizes) {
      for (const int density : {1, 2, 10, 100}) {
        for (const bool compact : {false, true}) {
          add(hash, StepCase{type, n, density, compact, false, false});
          if (type != DType::float32) add(hash, StepCase{type, n, density, compact, true, false});
          if (type == DType::bfloat16) add(hash, StepCase{type, n, density, compact, false, true});
          for (const Moments moments : {Moments::bfloat16, Moments::bits8}) {
            add(hash, StepCase{type, n, density, compact, type == DType::float16, type == DType::bfloat16, moments});
          }
        }
      }
    }
  }
  return hash.value();
}

void print(cpu::Path path) {
  if (!cpu::set_path(path)) return;
  const uint64_t adamw = stepped([](Hash& hash, const StepCase& given) {
    for (const bool amsgrad : {false, true}) {
      if (amsgrad && given.moments == Moments::bits8) continue;
      add_steps(hash, given, amsgrad ? 3 : 2, [&](const StepTensor& tensor, const StepOptions& options) {
        cpu::masked_adamw(&tensor, 1, AdamWConfig{}, amsgrad, options);
      });
    }
  });
  const uint64_t sgd = stepped([](Hash& hash, const StepCase& given) {
    for (const double momentum : {0.0, 0.9}) {
      add_steps(hash, given, momentum != 0 ? 1 : 0, [&](const StepTensor& tensor, const StepOptions& options) {
        cpu::masked_sgd(&tensor, 1, SgdConfig{0.1, momentum, 0.0, 0.01, momentum != 0}, options);
      });
    }
  });
  std::printf("%s accumulate %016" PRIx64 " select %016" PRIx64 " adamw %016" PRIx64 " sgd %016" PRIx64 "\n",
              cpu::path_name(path), accumulated(), selected(), adamw, sgd);
}

}  // namespace

int main() {
  for (const auto path : {cpu::Path::scalar, cpu::Path::avx2, cpu::Path::avx512, cpu::Path::neon}) print(path);
}
