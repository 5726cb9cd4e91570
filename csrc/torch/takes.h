#pragma once

#include "aimfair/mask.h"
#include "arguments.h"
#include "checks.h"

// What the checks of several operators take from their arguments.

namespace aimfair::ops {

inline const Tensor* first_of(const TensorList& list) { return list.empty() ? nullptr : &list.front(); }

inline float* as_floats(void* memory) { return static_cast<float*>(memory); }

// The one value of an optional argument, or null.
inline const float* take_scalar(Arguments& arguments, const char* name, const OptionalTensor& tensor) {
  return tensor ? as_floats(arguments.take(name, *tensor, Types::float32, Access::read, 1)) : nullptr;
}

// A float32 tensor for each entry of a list that is either empty or complete.
inline float* take_optional(Arguments& arguments, const char* name, const TensorList& list, size_t i, Access access,
                            int64_t numel) {
  return list.empty() ? nullptr : as_floats(arguments.take(name, list, i, Types::float32, access, numel));
}

inline void length_or_empty(Arguments& arguments, const char* name, const TensorList& list, size_t length) {
  if (!list.empty()) arguments.length(name, list, length);
}

inline uint32_t* take_bits(Arguments& arguments, const char* name, const Tensor& bits, Access access, int64_t blocks) {
  return static_cast<uint32_t*>(arguments.take(name, bits, Types::int32, access, blocks * kWordsPerBlock));
}

inline int64_t* take_rank(Arguments& arguments, const Tensor& rank, Access access, int64_t blocks) {
  return static_cast<int64_t*>(arguments.take("rank", rank, Types::int64, access, blocks + 1));
}

}  // namespace aimfair::ops
