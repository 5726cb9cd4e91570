#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "aimfair/mask.h"
#include "aimfair/numeric.h"

// Argument checks: an operator refuses everything by name here, before a kernel touches memory.

namespace aimfair::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using TensorList = std::vector<Tensor>;
using OptionalTensor = std::optional<Tensor>;

// What the operator does to the memory of an argument.
enum class Access { read, write };

// The element types an argument may have, and what an error says was expected.
struct Types {
  const char* expected;
  std::vector<ScalarType> allowed;
};
inline const Types kFloat32{"float32", {ScalarType::Float}};
inline const Types kFloating{"float32, bfloat16 or float16",
                             {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}};
inline const Types kBfloat16{"bfloat16", {ScalarType::BFloat16}};
inline const Types kFloatOrDouble{"float32 or float64", {ScalarType::Float, ScalarType::Double}};
inline const Types kFloat64{"float64", {ScalarType::Double}};
inline const Types kInt32{"int32", {ScalarType::Int}};
inline const Types kInt64{"int64", {ScalarType::Long}};
inline const Types kBool{"bool", {ScalarType::Bool}};
inline const Types kBytes{"uint8", {ScalarType::Byte}};

// The arguments of one operator call. Every failed check throws std::runtime_error "aimfair::op: name[i] what".
class Arguments {
 public:
  // All tensors must be on the device of `device_of`, if it is not null.
  Arguments(const char* op, const Tensor* device_of);

  const char* op() const { return op_; }

  // Refuses a list that does not have `length` entries.
  void length(const char* name, const TensorList& list, size_t length) const;
  void length_or_empty(const char* name, const TensorList& list, size_t length) const;

  // Checks list[i], or an argument that is one tensor, and returns its memory. numel < 0: any number of elements.
  void* take(const char* name, const TensorList& list, size_t i, const Types& types, Access access, int64_t numel = -1);
  void* take(const char* name, const Tensor& tensor, const Types& types, Access access, int64_t numel = -1);

  // float32 values of list[i]; null if the list is empty.
  float* take_floats(const char* name, const TensorList& list, size_t i, Access access, int64_t numel);
  // The one value of an optional argument, or null.
  const float* take_scalar(const char* name, const OptionalTensor& tensor);
  // One int64 for each of `count` tensors.
  int64_t* take_counts(const char* name, const Tensor& counts, Access access, size_t count);
  // The bits of a mask of `blocks` blocks, and its rank directory.
  uint32_t* take_bits(const char* name, const Tensor& bits, Access access, int64_t blocks);
  int64_t* take_rank(const Tensor& rank, Access access, int64_t blocks);

  // Refuses memory that is written and is also part of another argument. Call after the last take.
  void refuse_overlap();

  // i < 0: the argument itself, not an entry of it.
  [[noreturn]] void fail(const char* name, int64_t i, const std::string& what) const;
  void require(bool condition, const char* name, const std::string& what) const;

 private:
  struct Extent {
    uintptr_t begin, end;
    const char* name;
    int64_t i;
    Access access;
  };

  void* take(const char* name, int64_t i, const Tensor& tensor, const Types& types, Access access, int64_t numel);

  const char* op_;
  bool has_device_;
  bool cuda_ = false;
  int32_t device_index_ = 0;
  std::vector<Extent> extents_;
};

// Of a tensor that kFloating allowed.
DType dtype_of(const Tensor& tensor);

// An uninitialized tensor of at least `bytes` bytes on the device of `on`.
Tensor new_bytes(const Tensor& on, int64_t bytes);

inline const Tensor* first_of(const TensorList& list) { return list.empty() ? nullptr : &list.front(); }

template <class T>
int64_t size_of(const std::vector<T>& list) {
  return static_cast<int64_t>(list.size());
}

}  // namespace aimfair::ops
