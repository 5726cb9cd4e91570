// Selective tuning without torch: linear regression of which only the most sensitive tenth of the weights is tuned.
// The gradient is written out by hand; aimfair gathers its statistics, selects the mask and takes the masked steps.

#include <aimfair/aimfair.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

namespace {

constexpr int64_t kFeatures = 3000, kSamples = 256, kSelected = kFeatures / 10;
constexpr int kBatches = 32;

struct Data {
  std::vector<float> inputs;   // kSamples x kFeatures
  std::vector<float> targets;  // kSamples
};

// The targets depend on every tenth feature alone.
Data make_data(std::mt19937& random) {
  std::normal_distribution<float> normal;
  Data data{std::vector<float>(kSamples * kFeatures), std::vector<float>(kSamples)};
  for (int64_t i = 0; i < kSamples; i++) {
    for (int64_t j = 0; j < kFeatures; j++) {
      const float x = data.inputs[i * kFeatures + j] = normal(random);
      if (j % 10 == 0) data.targets[i] += x;
    }
  }
  return data;
}

// Mean squared error, and its gradient with respect to the weights.
float loss_and_gradient(const Data& data, const std::vector<float>& weights, std::vector<float>& gradient) {
  float loss = 0;
  std::fill(gradient.begin(), gradient.end(), 0.0f);
  for (int64_t i = 0; i < kSamples; i++) {
    const float* x = &data.inputs[i * kFeatures];
    float error = -data.targets[i];
    for (int64_t j = 0; j < kFeatures; j++) error += weights[j] * x[j];
    loss += error * error / kSamples;
    for (int64_t j = 0; j < kFeatures; j++) gradient[j] += 2 * error * x[j] / kSamples;
  }
  return loss;
}

}  // namespace

int main() {
  std::printf("aimfair %s, CPU path %s\n", AIMFAIR_VERSION, aimfair::cpu::path_name(aimfair::cpu::path()));
  std::mt19937 random(0);
  std::vector<float> weights(kFeatures), gradient(kFeatures);

  // 1. Sensitivity: the sum of the gradient over the batches.
  std::vector<float> sum(kFeatures);
  double square_norm = 0;
  int64_t nonfinite = 0;
  for (int batch = 0; batch < kBatches; batch++) {
    loss_and_gradient(make_data(random), weights, gradient);
    aimfair::AccumulateTensor tensor;
    tensor.grad = gradient.data();
    tensor.numel = kFeatures;
    tensor.sum = sum.data();
    aimfair::cpu::accumulate(&tensor, 1, {}, &square_norm, &nonfinite);
  }

  // 2. Mask: the tenth of the weights with the largest mean gradient.
  const int64_t blocks = aimfair::block_count(kFeatures);
  std::vector<uint32_t> bits(blocks * aimfair::kWordsPerBlock);
  std::vector<int64_t> rank(blocks + 1);
  aimfair::ScoreTensor scores;
  scores.numel = kFeatures;
  scores.a = sum.data();
  aimfair::Score score;
  score.term = {aimfair::Criterion::magnitude, 1.0f / kBatches, 1.0f};
  aimfair::cpu::select(&scores, 1, score, kSelected, true, bits.data(), rank.data());
  int64_t right = 0;
  for (int64_t j = 0; j < kFeatures; j += 10) right += bits[j / 32] >> (j % 32) & 1;

  // 3. Masked AdamW with compact state: two floats for each selected weight.
  const Data data = make_data(random);
  std::vector<float> exp_avg(kSelected), exp_avg_sq(kSelected);
  aimfair::StepOptions options;
  options.mask = {bits.data(), rank.data()};
  options.compact = true;
  aimfair::AdamWConfig config;
  config.lr = 0.02;
  config.weight_decay = 0;
  const float before = loss_and_gradient(data, weights, gradient);
  float steps = 0;
  for (int i = 0; i < 200; i++) {
    loss_and_gradient(data, weights, gradient);
    aimfair::StepTensor tensor;
    tensor.param = weights.data();
    tensor.grad = gradient.data();
    tensor.numel = kFeatures;
    tensor.step = &steps;
    tensor.state[0] = exp_avg.data();
    tensor.state[1] = exp_avg_sq.data();
    aimfair::cpu::masked_adamw(&tensor, 1, config, false, options);
  }
  const float after = loss_and_gradient(data, weights, gradient);

  // A weight that is not selected kept every bit of its zero.
  int64_t moved = 0;
  for (int64_t j = 0; j < kFeatures; j++) {
    uint32_t word;
    std::memcpy(&word, &weights[j], sizeof word);
    moved += word != 0 && !(bits[j / 32] >> (j % 32) & 1);
  }
  std::printf("selected %lld of %lld weights, %lld of them the right ones\n", static_cast<long long>(rank[blocks]),
              static_cast<long long>(kFeatures), static_cast<long long>(right));
  std::printf("loss %.2f -> %.4f, %lld unselected weights moved\n", before, after, static_cast<long long>(moved));
  return moved == 0 && after < 0.01f * before ? 0 : 1;
}
