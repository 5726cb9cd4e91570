#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "aimfair/dtype.h"

// Checking the arguments of an operator: everything is refused here, by name, before a kernel touches memory.

namespace aimfair::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using TensorList = std::vector<Tensor>;

// What may be done to the memory of an argument.
enum class Access { read, write };

// The element types an argument may have.
enum class Types {
  float32,
  floating /* float32, bfloat16, float16 */,
  float_or_double,
  float64,
  int32,
  int64,
  boolean,
  bytes
};

class Arguments {
 public:
  // `op` names the operator in errors; all tensors must be on the device of `device_of`, if there is one.
  Arguments(const char* op, const Tensor* device_of);

  // Refuses a list that does not have `length` entries.
  void length(const char* name, const TensorList& list, size_t length);

  // Checks list[i] and returns its memory. numel < 0: any.
  void* take(const char* name, const TensorList& list, size_t i, Types types, Access access, int64_t numel = -1);
  // The same for an argument that is one tensor.
  void* take(const char* name, const Tensor& tensor, Types types, Access access, int64_t numel = -1);

  // Refuses memory that is written and is also part of another argument. Call after the last take.
  void refuse_overlap();

  // Throws std::runtime_error "aimfair::op: name[i] what".
  [[noreturn]] void fail(const char* name, int64_t i, const std::string& what) const;
  void require(bool condition, const char* name, const std::string& what) const;

 private:
  struct Extent {
    uintptr_t begin, end;
    const char* name;
    int64_t i;
    Access access;
  };

  void* take(const char* name, int64_t i, const Tensor& tensor, Types types, Access access, int64_t numel);

  const char* op_;
  bool has_device_;
  bool cuda_ = false;
  int32_t device_index_ = 0;
  std::vector<Extent> extents_;
};

// Of a tensor that `Types::floating` let pass.
DType dtype_of(const Tensor& tensor);

}  // namespace aimfair::ops
