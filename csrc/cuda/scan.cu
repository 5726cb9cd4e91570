#include "cuda/scan.h"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/warp.h"

// The values are cut into runs of equal length, one for each thread block. The first kernel sums every run; in the
// second, a thread block adds the sums of the runs before its own and scans on from there.

namespace aimfair::cuda {
namespace {

constexpr int kThreads = 256;
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

cudaError_t inclusive_scan(int64_t* values, int64_t n, const Allocate& allocate, void* stream) {
  if (n == 0) return cudaSuccess;
  const int64_t tiles = (n + kThreads - 1) / kThreads, tiles_per_run = (tiles + kMaxRuns - 1) / kMaxRuns;
  const int64_t run = tiles_per_run * kThreads, runs = (n + run - 1) / run;
  auto* sums = static_cast<int64_t*>(allocate(runs * static_cast<int64_t>(sizeof(int64_t))));
  if (!sums) return cudaErrorMemoryAllocation;
  const cudaError_t error = launch(sum_runs, runs, kThreads, stream, values, n, run, sums);
  if (error != cudaSuccess) return error;
  return launch(scan_runs, runs, kThreads, stream, values, n, run, sums);
}

}  // namespace aimfair::cuda
