#include "arguments.h"

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

const char* expected_name(Types types) {
  switch (types) {
    case Types::float32:
      return "float32";
    case Types::floating:
      return "float32, bfloat16 or float16";
    case Types::float_or_double:
      return "float32 or float64";
    case Types::float64:
      return "float64";
    case Types::int32:
      return "int32";
    case Types::int64:
      return "int64";
    case Types::boolean:
      return "bool";
    case Types::bytes:
      return "uint8";
  }
  return "";
}

bool allowed(Types types, ScalarType type) {
  switch (types) {
    case Types::float32:
      return type == ScalarType::Float;
    case Types::floating:
      return type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half;
    case Types::float_or_double:
      return type == ScalarType::Float || type == ScalarType::Double;
    case Types::float64:
      return type == ScalarType::Double;
    case Types::int32:
      return type == ScalarType::Int;
    case Types::int64:
      return type == ScalarType::Long;
    case Types::boolean:
      return type == ScalarType::Bool;
    case Types::bytes:
      return type == ScalarType::Byte;
  }
  return false;
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

void Arguments::length(const char* name, const TensorList& list, size_t length) {
  if (list.size() != length) {
    fail(name, -1, "has " + std::to_string(list.size()) + " tensors, expected " + std::to_string(length));
  }
}

void* Arguments::take(const char* name, const TensorList& list, size_t i, Types types, Access access, int64_t numel) {
  return take(name, static_cast<int64_t>(i), list[i], types, access, numel);
}

void* Arguments::take(const char* name, const Tensor& tensor, Types types, Access access, int64_t numel) {
  return take(name, -1, tensor, types, access, numel);
}

void* Arguments::take(const char* name, int64_t i, const Tensor& tensor, Types types, Access access, int64_t numel) {
  const ScalarType type = tensor.scalar_type();
  if (!allowed(types, type)) {
    fail(name, i, std::string("is ") + type_name(type) + ", expected " + expected_name(types));
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
  // The extents seen so far that reach furthest: of all, and of those that are written.
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

}  // namespace aimfair::ops
