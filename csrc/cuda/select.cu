#include "aimfair/select.h"

#include "aimfair/mask_ops.h"
#include "cuda/selection.h"

namespace aimfair::cuda {

int select(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, int64_t k, bool largest, uint32_t* bits,
           int64_t* rank, const Allocate& allocate, void* stream, SelectResult* result) {
  *result = {};
  Selection s(tensors, count, spec, largest, allocate, stream);
  if (s.blocks() == 0) return cuda::rank(bits, 0, rank, allocate, stream);
  cudaError_t error = s.begin();
  if (error != cudaSuccess) return error;
  // No key is the greatest one, nor 0.
  const Search threshold = k == 0 ? Search{0xffffffffu, 0, 0} : k == s.total() ? Search{0, 0, 0} : Search{0, 32, k};
  error = s.reset({{}, threshold, 0, 0, kNoTensor, 0});
  if (error == cudaSuccess && threshold.bits != 0) error = s.search_all();
  return error == cudaSuccess ? s.write_mask(nullptr, bits, rank, result) : error;
}

}  // namespace aimfair::cuda
