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

// rank[b + 1] = the set bits of block b: a warp for each block, a lane for each of its words.
__global__ void __launch_bounds__(kThreads) count_bits(const uint32_t* bits, int64_t blocks, int64_t* rank) {
  static_assert(kWordsPerBlock == kWarp);
  if (blockIdx.x == 0 && threadIdx.x == 0) rank[0] = 0;
  for (int64_t block = blockIdx.x * int64_t{kWarps} + warp_id(); block < blocks; block += gridDim.x * int64_t{kWarps}) {
    const int set = warp_sum(__popc(bits[block * kWordsPerBlock + lane_id()]));
    if (lane_id() == 0) rank[block + 1] = set;
  }
}

}  // namespace

int rank(const uint32_t* bits, int64_t blocks, int64_t* rank, const Allocate& allocate, void* stream) {
  const int64_t groups = std::max<int64_t>(1, (blocks + kWarps - 1) / kWarps);
  const cudaError_t error = launch_persistent(count_bits, groups, kThreads, stream, bits, blocks, rank);
  if (error != cudaSuccess) return error;
  return inclusive_scan(rank + 1, blocks, allocate, stream);
}

}  // namespace aimfair::cuda
