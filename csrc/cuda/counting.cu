#include "aimfair/mask_ops.h"
#include "aimfair/select.h"
#include "cuda/launch.h"
#include "cuda/selection.h"

// The parts of a selection over the scores of several processes, each of which sees its own only.

namespace aimfair::cuda {
namespace {

constexpr int kThreads = 256;

// counts[t] += the sum of what was counted in the blocks of tensor t; `until` is the running sum over all blocks.
__global__ void __launch_bounds__(kThreads)
    add_per_tensor(const int64_t* until, const int64_t* first_blocks, int64_t count, int64_t* counts) {
  const int64_t t = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (t >= count) return;
  const int64_t begin = first_blocks[t], end = first_blocks[t + 1];
  if (begin < end) counts[t] += until[end - 1] - (begin == 0 ? 0 : until[begin - 1]);
}

}  // namespace

int count_keys(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, uint32_t first, int bits, bool largest,
               int64_t* counts, const Allocate& allocate, void* stream) {
  Selection s(tensors, count, spec, largest, allocate, stream);
  if (s.blocks() == 0) return cudaSuccess;
  cudaError_t error = s.begin();
  if (error == cudaSuccess) error = s.reset({{}, {first, bits, 0}, 0, 0, kNoTensor, 0});
  if (error == cudaSuccess) error = s.count_keys(counts);
  return error;
}

int count_equal(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, uint32_t key, bool largest,
                int64_t* counts, const Allocate& allocate, void* stream) {
  Selection s(tensors, count, spec, largest, allocate, stream);
  if (s.blocks() == 0) return cudaSuccess;
  auto* equal = s.allocate<int64_t>(s.blocks());
  if (!equal) return cudaErrorMemoryAllocation;
  cudaError_t error = s.begin();
  if (error == cudaSuccess) error = s.reset({{}, {key, 0, 0}, 0, 0, kNoTensor, 0});
  if (error == cudaSuccess) error = s.compare(nullptr, equal);
  if (error != cudaSuccess) return error;
  return launch(add_per_tensor, (count + kThreads - 1) / kThreads, kThreads, stream, equal, s.inputs().first_blocks,
                count, counts);
}

int select_above(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, uint32_t key, const int64_t* ties,
                 bool largest, uint32_t* bits, int64_t* rank, const Allocate& allocate, void* stream,
                 SelectResult* result) {
  *result = {};
  Selection s(tensors, count, spec, largest, allocate, stream);
  if (s.blocks() == 0) return cuda::rank(bits, 0, rank, allocate, stream);
  cudaError_t error = s.begin();
  if (error == cudaSuccess) error = s.begin_mask();
  if (error == cudaSuccess) error = s.reset({{}, {key, 0, 0}, 0, 0, kNoTensor, 0});
  return error == cudaSuccess ? s.write_mask(ties, bits, rank, result) : error;
}

}  // namespace aimfair::cuda
