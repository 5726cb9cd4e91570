#include <cuda_runtime.h>

#include <algorithm>

#include "aimfair/mask.h"
#include "aimfair/mask_ops.h"
#include "cuda/launch.h"
#include "cuda/scan.h"
#include "cuda/warp.h"

namespace aimfair::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

constexpr int kBlocksPerWarp = 4;

// rank[b + 1] = the set bits of block b: a warp for each block, a lane for each of its words, several blocks at once.
__global__ void __launch_bounds__(kThreads) count_bits(const uint32_t* bits, int64_t blocks, int64_t* rank) {
  static_assert(kWordsPerBlock == kWarp);
  if (blockIdx.x == 0 && threadIdx.x == 0) rank[0] = 0;
  const int64_t stride = int64_t{gridDim.x} * kWarps * kBlocksPerWarp;
  for (int64_t begin = (int64_t{blockIdx.x} * kWarps + warp_id()) * kBlocksPerWarp; begin < blocks; begin += stride) {
    uint32_t words[kBlocksPerWarp];
#pragma unroll
    for (int b = 0; b < kBlocksPerWarp; b++) {
      words[b] = begin + b < blocks ? bits[(begin + b) * kWordsPerBlock + lane_id()] : 0;
    }
#pragma unroll
    for (int b = 0; b < kBlocksPerWarp; b++) {
      const int set = warp_sum(__popc(words[b]));
      if (lane_id() == b && begin + b < blocks) rank[begin + b + 1] = set;
    }
  }
}

}  // namespace

int rank(const uint32_t* bits, int64_t blocks, int64_t* rank, const Allocate& allocate, void* stream) {
  constexpr int64_t kPerThreadBlock = kWarps * kBlocksPerWarp;
  const int64_t work = std::max<int64_t>(1, (blocks + kPerThreadBlock - 1) / kPerThreadBlock);
  const cudaError_t error = launch_persistent(count_bits, work, kThreads, stream, bits, blocks, rank);
  if (error != cudaSuccess) return error;
  return inclusive_scan(rank + 1, blocks, allocate, stream);
}

}  // namespace aimfair::cuda
