#pragma once

#include <cuda_runtime_api.h>

#ifndef AIMFAIR_EMULATED
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#endif

#include <stdexcept>
#include <type_traits>

#include "../cuda/device.h"
#include "aimfair/aimfair.h"
#include "arguments.h"

// The CUDA backend. With emulated CUDA (tests/cuda_emulator) the kernels run on CPU tensors, for which torch needs no
// guard and has no stream.

namespace aimfair::ops {

#ifdef AIMFAIR_EMULATED

struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};

inline int32_t device_of(const Tensor&) { return 0; }

inline void* current_stream(int32_t) { return nullptr; }

#else

using torch::stable::accelerator::DeviceGuard;

inline int32_t device_of(const Tensor& tensor) { return tensor.get_device_index(); }

// aoti_torch_get_current_cuda_stream, looked up in torch's CUDA library if that is loaded. It cannot be linked, because
// the module must also load with a CPU-only torch, nor be a weak symbol, because Python loads torch's libraries
// privately.
using GetCurrentStream = AOTITorchError (*)(int32_t device_index, void** stream);

inline GetCurrentStream find_get_current_stream() {
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
  return reinterpret_cast<GetCurrentStream>(symbol);
}

inline void* current_stream(int32_t device_index) {
  static const GetCurrentStream get_current_stream = find_get_current_stream();
  if (!get_current_stream) throw std::runtime_error("aimfair: this torch was built without CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get_current_stream(device_index, &stream));
  return stream;
}

#endif

// The plans of lists of T.
template <class T>
struct Plans;

template <>
struct Plans<StepTensor> {
  using Plan = cuda::StepPlan;
  static int64_t bytes(int64_t count, int64_t) { return cuda::step_plan_bytes(count); }
  static constexpr auto make = &cuda::make_step_plan;
  static constexpr auto set_grads = &cuda::set_step_grads;
};

template <>
struct Plans<AccumulateTensor> {
  using Plan = cuda::AccumulatePlan;
  static constexpr auto bytes = &cuda::accumulate_plan_bytes;
  static constexpr auto make = &cuda::make_accumulate_plan;
  static constexpr auto set_grads = &cuda::set_accumulate_grads;
};

class Cuda {
 public:
  static constexpr auto accumulate = &cuda::accumulate;
  static constexpr auto select = &cuda::select;
  static constexpr auto select_segments = &cuda::select_segments;
  static constexpr auto count_keys = &cuda::count_keys;
  static constexpr auto count_equal = &cuda::count_equal;
  static constexpr auto select_above = &cuda::select_above;
  static constexpr auto unit_scores = &cuda::unit_scores;
  static constexpr auto rank = &cuda::rank;
  static constexpr auto pack_bits = &cuda::pack_bits;
  static constexpr auto unpack_bits = &cuda::unpack_bits;
  static constexpr auto expand_units = &cuda::expand_units;
  static constexpr auto masked_adamw = &cuda::masked_adamw;
  static constexpr auto masked_sgd = &cuda::masked_sgd;

  Cuda(const char* op, const Tensor& on)
      : op_(op), on_(on), guard_(device_of(on)), device_(device_of(on)), stream_(current_stream(device_of(on))) {
    check(device_.error());
  }

  // Returns the launcher's SelectResult, if it has one: such a launcher waits for the device.
  template <class Launcher, class... Given>
  auto run(const Launcher& launcher, const Given&... given) {
    const cuda::Allocate allocate = [this](int64_t bytes) { return scratch(bytes); };
    if constexpr (std::is_invocable_v<Launcher, Given..., cuda::Allocate, void*, SelectResult*>) {
      refuse_capture();
      SelectResult result;
      check(launcher(given..., allocate, stream_, &result));
      return result;
    } else {
      check(launcher(given..., allocate, stream_));
    }
  }

  template <class T>
  static int64_t plan_bytes(int64_t tensors, int64_t blocks) {
    return Plans<T>::bytes(tensors, blocks);
  }

  template <class T>
  auto plan(const std::vector<T>& tensors) {
    return store(tensors, scratch(plan_bytes<T>(size_of(tensors), blocks_of(tensors))));
  }

  template <class T>
  auto store(const std::vector<T>& tensors, void* memory) const {
    typename Plans<T>::Plan plan;
    check(Plans<T>::make(tensors.data(), size_of(tensors), memory, stream_, &plan));
    return plan;
  }

  template <class T>
  void set_grads(const std::vector<void*>& grads, void* memory) const {
    check(Plans<T>::set_grads(grads.data(), size_of(grads), memory, stream_));
  }

  template <class T>
  static typename Plans<T>::Plan plan_in(void* memory, int64_t tensors, int64_t blocks) {
    return {memory, tensors, blocks};
  }

  template <class Launcher, class Plan, class... Given>
  void step(const Launcher& launcher, const Plan& plan, const Given&... given) const {
    check(launcher(plan, given..., stream_));
  }

 private:
  // Memory of torch's allocator. It may be freed when the call returns, since the stream orders its later uses after
  // the call.
  void* scratch(int64_t bytes) {
    scratch_.push_back(new_bytes(on_, bytes));
    return scratch_.back().data_ptr();
  }

  // Before anything is queued: it would end the capture.
  void refuse_capture() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream_), &status));
    if (status == cudaStreamCaptureStatusNone) return;
    fail("the host reads its result, which a CUDA graph cannot hold; call it outside of the capture");
  }

  void check(int error) const {
    if (error != cudaSuccess) fail(std::string("CUDA: ") + cudaGetErrorString(static_cast<cudaError_t>(error)));
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(std::string("aimfair::") + op_ + ": " + what);
  }

  const char* op_;
  const Tensor& on_;
  DeviceGuard guard_;
  cuda::CurrentDevice device_;
  void* stream_;
  std::vector<Tensor> scratch_;
};

}  // namespace aimfair::ops
