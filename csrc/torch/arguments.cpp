#include "arguments.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <stdexcept>

namespace aimfair::ops {
namespace {

const char* type_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Byte:
      return "uint8";
    default:
      return "another dtype";
  }
}

std::string entry(const char* name, int64_t i) {
  return i < 0 ? std::string(name) : std::string(name) + "[" + std::to_string(i) + "]";
}

}  // namespace

Arguments::Arguments(const char* op, const Tensor* device_of) : op_(op), has_device_(device_of != nullptr) {
  if (!device_of) return;
  cuda_ = device_of->is_cuda();
  device_index_ = device_of->get_device_index();
}

void Arguments::fail(const char* name, int64_t i, const std::string& what) const {
  throw std::runtime_error(std::string("aimfair::") + op_ + ": " + entry(name, i) + " " + what);
}

void Arguments::require(bool condition, const char* name, const std::string& what) const {
  if (!condition) fail(name, -1, what);
}

void Arguments::length(const char* name, const TensorList& list, size_t length) const {
  if (list.size() != length) {
    fail(name, -1, "has " + std::to_string(list.size()) + " tensors, expected " + std::to_string(length));
  }
}

void Arguments::length_or_empty(const char* name, const TensorList& list, size_t length) const {
  if (!list.empty()) this->length(name, list, length);
}

void* Arguments::take(const char* name, const TensorList& list, size_t i, const Types& types, Access access,
                      int64_t numel) {
  return take(name, static_cast<int64_t>(i), list[i], types, access, numel);
}

void* Arguments::take(const char* name, const Tensor& tensor, const Types& types, Access access, int64_t numel) {
  return take(name, -1, tensor, types, access, numel);
}

float* Arguments::take_floats(const char* name, const TensorList& list, size_t i, Access access, int64_t numel) {
  return list.empty() ? nullptr : static_cast<float*>(take(name, list, i, kFloat32, access, numel));
}

const float* Arguments::take_scalar(const char* name, const OptionalTensor& tensor) {
  return tensor ? static_cast<const float*>(take(name, *tensor, kFloat32, Access::read, 1)) : nullptr;
}

int64_t* Arguments::take_counts(const char* name, const Tensor& counts, Access access, size_t count) {
  return static_cast<int64_t*>(take(name, counts, kInt64, access, static_cast<int64_t>(count)));
}

uint32_t* Arguments::take_bits(const char* name, const Tensor& bits, Access access, int64_t blocks) {
  return static_cast<uint32_t*>(take(name, bits, kInt32, access, blocks * kWordsPerBlock));
}

int64_t* Arguments::take_rank(const Tensor& rank, Access access, int64_t blocks) {
  return take_counts("rank", rank, access, static_cast<size_t>(blocks + 1));
}

void* Arguments::take(const char* name, int64_t i, const Tensor& tensor, const Types& types, Access access,
                      int64_t numel) {
  const ScalarType type = tensor.scalar_type();
  if (std::find(types.allowed.begin(), types.allowed.end(), type) == types.allowed.end()) {
    fail(name, i, std::string("is ") + type_name(type) + ", expected " + types.expected);
  }
  if (has_device_ && (tensor.is_cuda() != cuda_ || tensor.get_device_index() != device_index_)) {
    fail(name, i, "is on another device than the first tensor");
  }
  if (!tensor.is_contiguous()) fail(name, i, "is not contiguous");
  const int64_t size = tensor.numel();
  if (numel >= 0 && size != numel) {
    fail(name, i, "has " + std::to_string(size) + " elements, expected " + std::to_string(numel));
  }
  void* memory = tensor.data_ptr();
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  if (size > 0)
    extents_.push_back({begin, begin + static_cast<uintptr_t>(size) * tensor.element_size(), name, i, access});
  return memory;
}

void Arguments::refuse_overlap() {
  std::sort(extents_.begin(), extents_.end(), [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  // Of the extents seen so far, the one that reaches furthest: of all, and of those that are written.
  const Extent *furthest = nullptr, *furthest_written = nullptr;
  for (const Extent& extent : extents_) {
    const Extent* other = extent.access == Access::write ? furthest : furthest_written;
    if (other && extent.begin < other->end) {
      fail(extent.name, extent.i, "overlaps the memory of " + entry(other->name, other->i));
    }
    if (!furthest || extent.end > furthest->end) furthest = &extent;
    if (extent.access == Access::write && (!furthest_written || extent.end > furthest_written->end)) {
      furthest_written = &extent;
    }
  }
}

DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Half:
      return DType::float16;
    default:
      return DType::float32;
  }
}

Tensor new_bytes(const Tensor& on, int64_t bytes) {
  return torch::stable::new_empty(on, {std::max<int64_t>(bytes, 1)}, ScalarType::Byte);
}

}  // namespace aimfair::ops
