#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "vector_types.h"

// The host side of CUDA for the emulator (emulator.h): device memory is host memory, every call is done when it
// returns, and streams do nothing.

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorCooperativeLaunchTooLarge = 720,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault,
};
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrMultiProcessorCount = 16,
};
enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone,
  cudaStreamCaptureStatusActive,
  cudaStreamCaptureStatusInvalidated,
};
struct CUstream_st;
using cudaStream_t = CUstream_st*;
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 2 };
union cudaLaunchAttributeValue {
  int cooperative;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace aimfair_emulator {
inline cudaError_t last_error = cudaSuccess;
inline cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}
}  // namespace aimfair_emulator

inline const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorCooperativeLaunchTooLarge:
      return "cudaErrorCooperativeLaunchTooLarge";
  }
  return "unrecognized error code";
}
inline const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
inline cudaError_t cudaPeekAtLastError() { return aimfair_emulator::last_error; }
inline cudaError_t cudaGetLastError() {
  const cudaError_t error = aimfair_emulator::last_error;
  aimfair_emulator::last_error = cudaSuccess;
  return error;
}

// Of the heap, so that AddressSanitizer guards it; filled, so that nothing relies on zeros.
template <class T>
cudaError_t cudaMalloc(T** memory, size_t bytes) {
  *memory = static_cast<T*>(bytes ? std::malloc(bytes) : nullptr);
  if (bytes && !*memory) return aimfair_emulator::result(cudaErrorMemoryAllocation);
  if (bytes) std::memset(static_cast<void*>(*memory), 0xa5, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (bytes) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  if (bytes) std::memset(memory, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t = {}) {
  return cudaMemcpy(to, from, bytes, kind);
}
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t = {}) {
  return cudaMemset(memory, value, bytes);
}

inline cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = nullptr;
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
// Nothing is captured, but a test can have every stream say that it is: AIMFAIR_EMULATOR_CAPTURING=1.
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  const char* capturing = std::getenv("AIMFAIR_EMULATOR_CAPTURING");
  *status = capturing && !std::strcmp(capturing, "1") ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

// Two devices with few processors, so that persistent grids loop.
namespace aimfair_emulator {
constexpr int kDevices = 2, kProcessors = 3;
inline thread_local int current_device = 0;
inline bool is_device(int device) { return device >= 0 && device < kDevices; }
}  // namespace aimfair_emulator

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = aimfair_emulator::kDevices;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = aimfair_emulator::current_device;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  if (!aimfair_emulator::is_device(device)) return aimfair_emulator::result(cudaErrorInvalidDevice);
  aimfair_emulator::current_device = device;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (!aimfair_emulator::is_device(device)) return aimfair_emulator::result(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = 48 << 10;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = aimfair_emulator::kProcessors;
      return cudaSuccess;
  }
  return aimfair_emulator::result(cudaErrorInvalidValue);
}
namespace aimfair_emulator {
inline int blocks_per_processor(int threads) { return threads <= 512 ? 2 : 1; }
}  // namespace aimfair_emulator
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int threads, size_t) {
  *blocks = aimfair_emulator::blocks_per_processor(threads);
  return cudaSuccess;
}
