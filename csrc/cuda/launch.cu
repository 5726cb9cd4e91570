#include "cuda/launch.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "cuda/warp.h"

namespace aimfair::cuda {
namespace {

constexpr int kThreads = 256;

// Words of 16 bytes per launch. A kernel may have 32,764 bytes of parameters, but only 4,096 in a graph that is being
// captured: more has been reported to crash drivers, and torch avoids it too.
constexpr int64_t kMany = 1950, kFew = 254;

template <int64_t kWords>
struct Piece {
  uint4 words[kWords];
};

// Writes `words` words of a piece, and zeros up to word `end`.
template <int64_t kWords>
__global__ void __launch_bounds__(kThreads)
    write_piece(const __grid_constant__ Piece<kWords> piece, int64_t words, int64_t end, uint4* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < end) to[i] = i < words ? piece.words[i] : uint4{0, 0, 0, 0};
}

template <int64_t kWords>
cudaError_t write_words(const char* from, int64_t words, int64_t zeros, uint4* to, void* stream) {
  for (int64_t begin = 0; begin < words; begin += kWords) {
    const int64_t n = std::min(kWords, words - begin), end = begin + n == words ? n + zeros : n;
    Piece<kWords> piece;
    memcpy(piece.words, from + begin * Upload::kAlignment, static_cast<size_t>(n * Upload::kAlignment));
    AIMFAIR_TRY(
        launch(write_piece<kWords>, (end + kThreads - 1) / kThreads, kThreads, stream, piece, n, end, to + begin));
  }
  return cudaSuccess;
}

// The prefix sum. The values are cut into runs of equal length, one for each thread block: the first kernel sums every
// run; in the second, a thread block adds the sums of the runs before its own and scans from there.

constexpr int64_t kMaxRuns = 256;

__global__ void __launch_bounds__(kThreads) sum_runs(const int64_t* values, int64_t n, int64_t run, int64_t* sums) {
  const int64_t begin = blockIdx.x * run, end = begin + run < n ? begin + run : n;
  int64_t sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) sum += values[i];
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) scan_runs(int64_t* values, int64_t n, int64_t run, const int64_t* sums) {
  int64_t before = 0;
  for (int64_t i = threadIdx.x; i < blockIdx.x; i += kThreads) before += sums[i];
  before = block_sum<kThreads>(before);
  const int64_t begin = blockIdx.x * run, end = begin + run < n ? begin + run : n;
  for (int64_t tile = begin; tile < end; tile += kThreads) {
    const int64_t i = tile + threadIdx.x, value = i < end ? values[i] : 0;
    int64_t total;
    const int64_t sum = before + block_exclusive_sum<kThreads>(value, &total) + value;
    if (i < end) values[i] = sum;
    before += total;
  }
}

}  // namespace

cudaError_t resident_blocks(const void* kernel, int threads, int64_t* blocks) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int64_t> known;
  int device = 0, processors = 0, per_processor = 0;
  AIMFAIR_TRY(cudaGetDevice(&device));
  const std::lock_guard lock(mutex);
  if (const auto found = known.find({kernel, device}); found != known.end()) {
    *blocks = found->second;
    return cudaSuccess;
  }
  AIMFAIR_TRY(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  AIMFAIR_TRY(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, threads, 0));
  *blocks = known[{kernel, device}] = std::max(int64_t{1}, int64_t{processors} * per_processor);
  return cudaSuccess;
}

int64_t Upload::add_bytes(const void* from, int64_t bytes) {
  const int64_t place = this->bytes();
  table_.resize(static_cast<size_t>(place + rounded_up(bytes)));
  if (from && bytes > 0) memcpy(table_.data() + place, from, static_cast<size_t>(bytes));
  return place;
}

cudaError_t Upload::copy(void* to, void* stream, int64_t zeros) const {
  const int64_t words = bytes() / kAlignment, zero_words = zeros / kAlignment;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  AIMFAIR_TRY(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status));
  const bool few = words <= kFew || status != cudaStreamCaptureStatusNone;
  return few ? write_words<kFew>(table_.data(), words, zero_words, static_cast<uint4*>(to), stream)
             : write_words<kMany>(table_.data(), words, zero_words, static_cast<uint4*>(to), stream);
}

cudaError_t inclusive_scan(int64_t* values, int64_t n, const Allocate& allocate, void* stream) {
  if (n == 0) return cudaSuccess;
  const int64_t tiles = (n + kThreads - 1) / kThreads, tiles_per_run = (tiles + kMaxRuns - 1) / kMaxRuns;
  const int64_t run = tiles_per_run * kThreads, runs = (n + run - 1) / run;
  auto* sums = static_cast<int64_t*>(allocate(runs * static_cast<int64_t>(sizeof(int64_t))));
  if (!sums) return cudaErrorMemoryAllocation;
  AIMFAIR_TRY(launch(sum_runs, runs, kThreads, stream, values, n, run, sums));
  return launch(scan_runs, runs, kThreads, stream, values, n, run, sums);
}

}  // namespace aimfair::cuda
