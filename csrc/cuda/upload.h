#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>
#include <vector>

// Tables in device memory, such as the list of tensors that a kernel works on.

namespace aimfair::cuda {

// Puts arrays together in host memory and copies them to the device at once. The copy travels as kernel parameters: it
// needs no pinned memory, waits for nothing, and is part of a CUDA graph that is being captured.
class Upload {
 public:
  // Adds n values and returns the place of the first one, in bytes from the beginning of the table.
  template <class T>
  int64_t add(const T* values, int64_t n) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= kAlignment);
    return add_bytes(values, n * static_cast<int64_t>(sizeof(T)));
  }
  template <class T>
  int64_t add(const std::vector<T>& values) {
    return add(values.data(), static_cast<int64_t>(values.size()));
  }
  // The same for n values of zero bits.
  template <class T>
  int64_t add_zeros(int64_t n) {
    return add_bytes(nullptr, n * static_cast<int64_t>(sizeof(T)));
  }

  int64_t bytes() const { return static_cast<int64_t>(table_.size()); }

  // Queues the copy to `to`, aligned to kAlignment, with room for bytes().
  cudaError_t copy(void* to, void* stream) const;

  static constexpr int64_t kAlignment = 16;

 private:
  int64_t add_bytes(const void* from, int64_t bytes);

  std::vector<char> table_;
};

// The array that Upload::add placed at `place`.
template <class T>
T* array_at(void* table, int64_t place) {
  return reinterpret_cast<T*>(static_cast<char*>(table) + place);
}

// For each tensor the number of its first unit of work, and at the end the number of units.
template <class Units>
std::vector<int64_t> first_units(int64_t tensors, const Units& units) {
  std::vector<int64_t> firsts(static_cast<size_t>(tensors) + 1);
  for (int64_t t = 0; t < tensors; t++) firsts[static_cast<size_t>(t) + 1] = firsts[static_cast<size_t>(t)] + units(t);
  return firsts;
}

}  // namespace aimfair::cuda
