#pragma once

#include <cuda_runtime_api.h>

namespace aimfair::cuda {

// Makes a device current in the CUDA runtime of this library, and on leaving the one that was. The runtime is linked
// statically: each thread's current device in it is another variable than the one that torch, which has a runtime of
// its own, has set.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    error_ = cudaGetDevice(&before_);
    if (error_ != cudaSuccess || device == before_) return;
    error_ = cudaSetDevice(device);
    changed_ = error_ == cudaSuccess;
  }
  ~CurrentDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

  // A cudaError_t. After an error the current device is the one that was.
  int error() const { return error_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t error_;
};

}  // namespace aimfair::cuda
