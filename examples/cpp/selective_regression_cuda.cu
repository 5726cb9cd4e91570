// selective_regression.cpp on a GPU: raw device pointers, a stream of our own, and a training step in a CUDA graph.
// Exit status: 0 all is well, 1 something is wrong, 2 there is no CUDA device.

#include <aimfair/aimfair.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

namespace {

constexpr int64_t kFeatures = 3000, kSamples = 256, kSelected = kFeatures / 10;
constexpr int kBatches = 32, kSteps = 200, kThreads = 256;

// For what the CUDA runtime returns, and for the launchers of aimfair, which return the same errors.
void check(int error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(static_cast<cudaError_t>(error)));
  std::exit(1);
}

// n values of device memory, at first zero.
template <class T>
class DeviceArray {
 public:
  DeviceArray(int64_t n, cudaStream_t stream) : n_(n), stream_(stream) {
    check(cudaMallocAsync(reinterpret_cast<void**>(&data_), bytes(), stream), "cudaMallocAsync");
    zero();
  }
  ~DeviceArray() { cudaFreeAsync(data_, stream_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* get() const { return data_; }
  void zero() { check(cudaMemsetAsync(data_, 0, bytes(), stream_), "cudaMemsetAsync"); }
  void upload(const std::vector<T>& values) {
    check(cudaMemcpyAsync(data_, values.data(), bytes(), cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }
  std::vector<T> download() const {
    std::vector<T> values(n_);
    check(cudaMemcpyAsync(values.data(), data_, bytes(), cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    return values;
  }

 private:
  size_t bytes() const { return static_cast<size_t>(n_) * sizeof(T); }

  int64_t n_;
  cudaStream_t stream_;
  T* data_ = nullptr;
};

// Memory for one call of a launcher: it goes back to the pool when the call has returned, in the order of the stream.
class Scratch {
 public:
  explicit Scratch(cudaStream_t stream) : stream_(stream) {}
  ~Scratch() {
    for (void* memory : memory_) cudaFreeAsync(memory, stream_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  aimfair::cuda::Allocate allocate() {
    return [this](int64_t bytes) -> void* {
      void* memory = nullptr;
      if (cudaMallocAsync(&memory, static_cast<size_t>(bytes), stream_) != cudaSuccess) return nullptr;
      memory_.push_back(memory);
      return memory;
    };
  }

 private:
  cudaStream_t stream_;
  std::vector<void*> memory_;
};

// errors[i] = inputs[i] . weights - targets[i], a thread block for each sample. Sums in an order that never changes.
__global__ void residuals(const float* inputs, const float* targets, const float* weights, float* errors) {
  __shared__ float sums[kThreads];
  const float* x = inputs + blockIdx.x * kFeatures;
  float sum = 0;
  for (int64_t j = threadIdx.x; j < kFeatures; j += kThreads) sum += weights[j] * x[j];
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) errors[blockIdx.x] = sums[0] - targets[blockIdx.x];
}

// Of the mean squared error with respect to the weights, a thread for each.
__global__ void gradients(const float* inputs, const float* errors, float* gradient) {
  const int64_t j = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (j >= kFeatures) return;
  float sum = 0;
  for (int64_t i = 0; i < kSamples; i++) sum += 2 * errors[i] * inputs[i * kFeatures + j] / kSamples;
  gradient[j] = sum;
}

// A batch in device memory; the targets depend on every tenth feature alone.
struct Batch {
  DeviceArray<float> inputs, targets, errors;

  explicit Batch(cudaStream_t stream)
      : inputs(kSamples * kFeatures, stream), targets(kSamples, stream), errors(kSamples, stream) {}

  void draw(std::mt19937& random) {
    std::normal_distribution<float> normal;
    std::vector<float> x(kSamples * kFeatures), y(kSamples);
    for (int64_t i = 0; i < kSamples; i++) {
      for (int64_t j = 0; j < kFeatures; j++) {
        x[i * kFeatures + j] = normal(random);
        if (j % 10 == 0) y[i] += x[i * kFeatures + j];
      }
    }
    inputs.upload(x);
    targets.upload(y);
  }

  void backward(const float* weights, float* gradient, cudaStream_t stream) {
    residuals<<<kSamples, kThreads, 0, stream>>>(inputs.get(), targets.get(), weights, errors.get());
    gradients<<<(kFeatures + kThreads - 1) / kThreads, kThreads, 0, stream>>>(inputs.get(), errors.get(), gradient);
    check(cudaGetLastError(), "backward");
  }

  // Mean squared error at the last backward pass.
  float loss() const {
    float sum = 0;
    for (const float error : errors.download()) sum += error * error / kSamples;
    return sum;
  }
};

bool same_bits(const std::vector<float>& x, const std::vector<float>& y) {
  return std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
}

// True if everything is as it must be.
bool run(cudaStream_t stream) {
  std::mt19937 random(0);
  Batch batch(stream);
  DeviceArray<float> weights(kFeatures, stream), gradient(kFeatures, stream);

  // 1. Sensitivity: the sum of the gradient over the batches. The list of tensors is put into device memory once, as a
  // plan.
  DeviceArray<float> sum(kFeatures, stream);
  DeviceArray<double> square_norm(1, stream);
  DeviceArray<int64_t> nonfinite(1, stream);
  const int64_t blocks = aimfair::block_count(kFeatures);
  aimfair::AccumulateTensor added;
  added.grad = gradient.get();
  added.numel = kFeatures;
  added.sum = sum.get();
  DeviceArray<char> sum_memory(aimfair::cuda::accumulate_plan_bytes(1, blocks), stream);
  aimfair::cuda::AccumulatePlan sum_plan;
  check(aimfair::cuda::make_accumulate_plan(&added, 1, sum_memory.get(), stream, &sum_plan), "make_accumulate_plan");
  for (int i = 0; i < kBatches; i++) {
    batch.draw(random);
    batch.backward(weights.get(), gradient.get(), stream);
    check(aimfair::cuda::accumulate(sum_plan, {}, square_norm.get(), nonfinite.get(), stream), "accumulate");
  }

  // 2. Mask: the tenth of the weights with the largest mean gradient.
  DeviceArray<uint32_t> bits(blocks * aimfair::kWordsPerBlock, stream);
  DeviceArray<int64_t> rank(blocks + 1, stream);
  aimfair::ScoreTensor scores;
  scores.numel = kFeatures;
  scores.a = sum.get();
  aimfair::Score score;
  score.term = {aimfair::Criterion::magnitude, 1.0f / kBatches, 1.0f};
  aimfair::SelectResult found;
  {
    Scratch scratch(stream);
    check(aimfair::cuda::select(&scores, 1, score, kSelected, true, bits.get(), rank.get(), scratch.allocate(), stream,
                                &found),
          "select");
  }
  const std::vector<uint32_t> mask = bits.download();
  const int64_t selected = rank.download().back();
  int64_t right = 0;
  for (int64_t j = 0; j < kFeatures; j += 10) right += mask[j / 32] >> (j % 32) & 1;

  // 3. Masked AdamW with compact state: two floats for each selected weight, on a plan too.
  DeviceArray<float> exp_avg(kSelected, stream), exp_avg_sq(kSelected, stream), steps(1, stream);
  aimfair::StepTensor tensor;
  tensor.param = weights.get();
  tensor.grad = gradient.get();
  tensor.numel = kFeatures;
  tensor.step = steps.get();
  tensor.state[0] = exp_avg.get();
  tensor.state[1] = exp_avg_sq.get();
  DeviceArray<char> plan_memory(aimfair::cuda::step_plan_bytes(1), stream);
  aimfair::cuda::StepPlan plan;
  check(aimfair::cuda::make_step_plan(&tensor, 1, plan_memory.get(), stream, &plan), "make_step_plan");
  aimfair::StepOptions options;
  options.mask = {bits.get(), rank.get()};
  options.compact = true;
  aimfair::AdamWConfig config;
  config.lr = 0.02;
  config.weight_decay = 0;
  batch.draw(random);

  const auto step = [&] {
    batch.backward(weights.get(), gradient.get(), stream);
    check(aimfair::cuda::masked_adamw(plan, config, false, options, stream), "masked_adamw");
  };
  batch.backward(weights.get(), gradient.get(), stream);
  const float before = batch.loss();
  for (int i = 0; i < kSteps; i++) step();
  const std::vector<float> trained = weights.download();
  batch.backward(weights.get(), gradient.get(), stream);
  const float after = batch.loss();

  // 4. The same from the beginning, with the step captured in a CUDA graph and replayed.
  for (DeviceArray<float>* array : {&weights, &exp_avg, &exp_avg_sq, &steps}) array->zero();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  step();
  check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  check(cudaGraphInstantiate(&replay, graph, 0), "cudaGraphInstantiate");
  for (int i = 0; i < kSteps; i++) check(cudaGraphLaunch(replay, stream), "cudaGraphLaunch");
  const bool graph_equal = same_bits(weights.download(), trained);
  const float counted = steps.download()[0];
  check(cudaGraphExecDestroy(replay), "cudaGraphExecDestroy");
  check(cudaGraphDestroy(graph), "cudaGraphDestroy");

  // A weight that is not selected kept every bit of its zero.
  int64_t moved = 0;
  for (int64_t j = 0; j < kFeatures; j++) {
    uint32_t word;
    std::memcpy(&word, &trained[j], sizeof word);
    moved += word != 0 && !(mask[j / 32] >> (j % 32) & 1);
  }
  std::printf("selected %lld of %lld weights, %lld of them the right ones\n", static_cast<long long>(selected),
              static_cast<long long>(kFeatures), static_cast<long long>(right));
  std::printf("loss %.2f -> %.4f, %lld unselected weights moved\n", before, after, static_cast<long long>(moved));
  std::printf("replays of a CUDA graph: %s\n", graph_equal ? "the same bits" : "OTHER BITS");
  return selected == kSelected && right > kSelected * 2 / 3 && found.nan_tensor == -1 && nonfinite.download()[0] == 0 &&
         square_norm.download()[0] > 0 && moved == 0 && after < 0.01f * before && graph_equal && counted == kSteps;
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("no CUDA device");
    return 2;
  }
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  std::printf("aimfair %s on %s\n", AIMFAIR_VERSION, device.name);
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  const bool right = run(stream);
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  check(cudaStreamDestroy(stream), "cudaStreamDestroy");
  return right ? 0 : 1;
}
