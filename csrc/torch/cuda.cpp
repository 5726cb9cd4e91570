#include <cuda_runtime_api.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <stdexcept>

#include "aimfair/mask.h"
#include "checks.h"
#include "cuda_device.h"

// The operators on CUDA tensors.

namespace aimfair::ops {
namespace {

void check(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("aimfair::") + op + ": CUDA: " + cudaGetErrorString(error));
}

// Scratch of `bytes` bytes in torch's memory, reused safely in stream order.
Tensor scratch(const Tensor& like, size_t bytes) {
  return torch::stable::new_empty(like, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
}

// Host memory to new device memory. Pageable host memory has been read when the call returns.
template <class T>
Tensor upload(const Tensor& like, const std::vector<T>& values, void* stream) {
  const size_t bytes = values.size() * sizeof(T);
  Tensor device = scratch(like, bytes);
  check("upload", cudaMemcpyAsync(device.data_ptr(), values.data(), bytes, cudaMemcpyHostToDevice,
                                  static_cast<cudaStream_t>(stream)));
  return device;
}

void accumulate(const TensorList& grads, const TensorList& sums, const TensorList& squares,
                const TensorList& second_sums, const Tensor& square_norms, const Tensor& nonfinite, double weight,
                double second_weight, const OptionalTensor& grad_scale, bool zero_grads) {
  const AccumulateCall call = check_accumulate(grads, sums, squares, second_sums, square_norms, nonfinite, weight,
                                               second_weight, grad_scale, zero_grads);
  std::vector<int64_t> first_blocks{0};
  for (const AccumulateTensor& tensor : call.tensors) {
    first_blocks.push_back(first_blocks.back() + block_count(tensor.numel));
  }
  const int64_t blocks = first_blocks.back();
  if (blocks == 0) return;
  const DeviceGuard guard(square_norms.get_device_index());
  void* stream = current_stream(square_norms.get_device_index());
  const Tensor tensors = upload(square_norms, call.tensors, stream);
  const Tensor firsts = upload(square_norms, first_blocks, stream);
  const Tensor partials = scratch(square_norms, static_cast<size_t>(blocks) * sizeof(double));
  check("accumulate_",
        static_cast<cudaError_t>(cuda::accumulate(
            static_cast<const AccumulateTensor*>(tensors.data_ptr()), static_cast<const int64_t*>(firsts.data_ptr()),
            static_cast<int64_t>(call.tensors.size()), blocks, call.options, call.grad_scale,
            static_cast<double*>(partials.data_ptr()), call.square_norms, call.nonfinite, stream)));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(aimfair, AIMFAIR_CUDA_KEY, m) { m.impl("accumulate_", TORCH_BOX(&accumulate)); }

}  // namespace aimfair::ops
