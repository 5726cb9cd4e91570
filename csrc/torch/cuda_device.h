#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/library.h>

#ifndef AIMFAIR_EMULATED
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>
#endif

// The device of the CUDA operators: dispatch key, guard and current stream. With emulated CUDA (tests/cuda_emulator)
// the kernels run on CPU tensors, where there is nothing to guard and no stream.

namespace aimfair::ops {

#ifdef AIMFAIR_EMULATED

#define AIMFAIR_CUDA_KEY CPU

struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};

inline void* current_stream(int32_t) { return nullptr; }

#else

#define AIMFAIR_CUDA_KEY CUDA

using torch::stable::accelerator::DeviceGuard;

// aoti_torch_get_current_cuda_stream, looked up in torch's CUDA library if that is loaded: the module must load with a
// CPU-only torch too, which lacks it, and a weak symbol would not be found, since Python loads torch privately.
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

}  // namespace aimfair::ops
