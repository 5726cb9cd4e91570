#include <algorithm>
#include <cmath>

#include "aimfair/random.h"
#include "cuda/topk_select.h"

// The bracket around the k-th best key: two keys of a sample.

namespace aimfair::cuda {
namespace {

constexpr int kThreads = kSearchThreads;
constexpr int64_t kMaxSample = int64_t{1} << 19;  // keys
constexpr int kSampleLanes = 4;                   // keys taken from one sector of memory
constexpr int kSector = 8;                        // elements
constexpr int kKeysPerThread = 2;                 // few wait in sequence, and few thread blocks have bins to add up

// The tensor that owns an element. Every thread searches independently.
__device__ int64_t owner_of_element(const int64_t* first_elements, int64_t count, int64_t element) {
  int64_t low = 0, high = count;  // first_elements[low] <= element < first_elements[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (first_elements[middle] <= element ? low : high) = middle;
  }
  return low;
}

// Key i of the sample. They are at evenly spaced places with a jitter that depends only on the place, a few from each
// sector.
__device__ __forceinline__ uint32_t sampled_key(const ScoreInputs& inputs, const int64_t* first_elements,
                                                int64_t stride, int64_t i) {
  const int64_t sector = i / kSampleLanes;
  const uint64_t random = splitmix64(static_cast<uint64_t>(sector));
  const int64_t element = sector * stride + static_cast<int64_t>((random & 0xffffffffu) * stride >> 32);
  const int64_t t = owner_of_element(first_elements, inputs.count, element);
  const ScoreTensor tensor = inputs.tensors[t];
  const int64_t at = (element - first_elements[t]) / kSector * kSector;
  const int64_t left = tensor.numel - at;
  // The first lane is random, so that no place in a sector is preferred. A short last sector of a tensor gives some
  // keys twice: the sample need not be exact.
  const auto lane = static_cast<int64_t>(random >> 32) + i % kSampleLanes * (kSector / kSampleLanes);
  return unsigned_key(score_at(tensor, inputs.spec, at + lane % kSector % (left < kSector ? left : kSector)),
                      inputs.largest);
}

// Takes the sample, with the first round of both searches, which begin with all keys; then searches on.
__global__ void __launch_bounds__(kThreads)
    bracket_threshold(ScoreInputs inputs, const int64_t* first_elements, int64_t n, int64_t stride, uint32_t* keys,
                      SelectState* state, Count* histograms) {
  __shared__ unsigned bins[2 * kBins];
  zero_bins(bins);
  __syncthreads();
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += int64_t{gridDim.x} * kThreads) {
    const uint32_t key = sampled_key(inputs, first_elements, stride, i);
    keys[i] = key;
    atomicAdd(&bins[bin_of(key, {0, 32, 0})], 1u);
  }
  __syncthreads();
  add_bins(bins, histograms);
  meet(&state->meeting, [&] {
#pragma unroll
    for (Search& search : state->bracket) {
      if (search.bits != 0) narrow(&search, histograms);
    }
    zero_bins(histograms);
  });
  search_keys<2>(keys, n, state->bracket, histograms, bins, &state->meeting);
}

}  // namespace

int64_t sample_size(int64_t total) { return std::min(kMaxSample, total / 32) / kSampleLanes * kSampleLanes; }

// Six standard deviations of a sample quantile to either side, or as much as there is room for among the candidates:
// the k-th best key very likely lies between.
void enter_bracket(int64_t k, int64_t total, int64_t capacity, Search (&bracket)[2]) {
  const auto size = static_cast<double>(sample_size(total));
  const double share = static_cast<double>(k) / static_cast<double>(total);
  const double room = 0.45 * static_cast<double>(capacity) / static_cast<double>(total) * size;
  const double width = std::min(6.0 * std::sqrt(share * (1 - share) * size) + 2, room);
  const double last = std::ceil(share * size + width), first = std::floor(share * size - width);  // from the best
  bracket[0] = last > size ? Search{0, 0, 0} : Search{0, 32, static_cast<int64_t>(last)};
  bracket[1] = first < 1 ? Search{0xffffffffu, 0, 0} : Search{0, 32, static_cast<int64_t>(first)};
}

cudaError_t sample(const Selection& s, uint32_t* keys) {
  const int64_t n = sample_size(s.total()), stride = s.total() / (n / kSampleLanes);
  const int64_t work = (n + kThreads * kKeysPerThread - 1) / (kThreads * kKeysPerThread);
  int64_t blocks = 0;
  AIMFAIR_TRY(persistent_blocks(bracket_threshold, work, kThreads, &blocks));
  return launch_cooperative(bracket_threshold, blocks, kThreads, s.stream(), s.inputs(), s.first_elements(), n, stride,
                            keys, s.state(), s.histograms());
}

}  // namespace aimfair::cuda
