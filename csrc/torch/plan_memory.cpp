#include "plan_memory.h"

#include <pybind11/gil_safe_call_once.h>

#include <algorithm>
#include <stdexcept>

namespace aimfair::python {
namespace {

// DLPack 1.x, https://dmlc.github.io/dlpack: the part of its C exchange interface that is used here. torch's own header
// is not part of its stable interface.
struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  const int64_t *shape, *strides;  // in elements
  uint64_t byte_offset;
};

struct DLPackExchangeAPI {
  uint32_t major, minor;
  void* previous;
  void *allocate, *managed_from_object, *managed_to_object;
  int (*tensor_from_object)(void* object, DLTensor* tensor);  // borrowed: valid while the object is
  void* current_work_stream;
};

struct Torch {
  PyTypeObject* tensor;
  const DLPackExchangeAPI* dlpack;
};

const Torch& torch() {
  PYBIND11_CONSTINIT static pybind11::gil_safe_call_once_and_store<Torch> found;
  return found
      .call_once_and_store_result([] {
        const pybind11::object tensor = pybind11::module_::import("torch").attr("Tensor");
        const pybind11::object capsule = tensor.attr("__dlpack_c_exchange_api__");
        const auto* api =
            static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
        if (!api) throw pybind11::error_already_set();
        if (api->major != 1 || !api->tensor_from_object) {
          throw std::runtime_error("aimfair: this torch has another version of DLPack than 1");
        }
        return Torch{reinterpret_cast<PyTypeObject*>(tensor.ptr()), api};
      })
      .get_stored();
}

bool is_contiguous(const DLTensor& tensor) {
  int64_t expected = 1;
  for (int d = tensor.ndim - 1; d >= 0; d--) {
    if (tensor.shape[d] != 1 && tensor.strides[d] != expected) return false;
    expected *= tensor.shape[d];
  }
  return true;
}

// False if the object is no strided tensor.
bool find(const Torch& torch, PyObject* object, Place* place) {
  if (!PyType_IsSubtype(Py_TYPE(object), torch.tensor)) return false;
  DLTensor tensor;
  if (torch.dlpack->tensor_from_object(object, &tensor) != 0) {
    PyErr_Clear();
    return false;
  }
  int64_t numel = 1;
  for (int d = 0; d < tensor.ndim; d++) numel *= tensor.shape[d];
  place->address = reinterpret_cast<uintptr_t>(tensor.data) + tensor.byte_offset;
  place->bytes = numel * tensor.bits * tensor.lanes / 8;
  place->dtype = tensor.code | uint32_t{tensor.bits} << 8 | uint32_t{tensor.lanes} << 16;
  place->device[0] = tensor.device_type;
  place->device[1] = tensor.device_id;
  place->contiguous = numel == 0 || is_contiguous(tensor);
  return true;
}

// Calls use(place of the tensor) for each entry of a list, until it returns false; false if one did or is no tensor.
template <class Use>
bool for_each_place(const Torch& torch, PyObject* list, const Use& use) {
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
    Place place;
    if (!find(torch, PyList_GET_ITEM(list, i), &place) || !use(place)) return false;
  }
  return true;
}

template <class Use>
bool for_each_place_of(const Torch& torch, const pybind11::list& lists, const Use& use) {
  for (const pybind11::handle list : lists) {
    if (!PyList_Check(list.ptr()) || !for_each_place(torch, list.ptr(), use)) return false;
  }
  return true;
}

std::vector<Place> by_address(std::vector<Place> places) {
  std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) { return a.address < b.address; });
  return places;
}

// Whether two of the places, which are sorted, share memory.
bool overlap(const std::vector<Place>& places) {
  uintptr_t end = 0;
  for (const Place& place : places) {
    if (place.bytes == 0) continue;
    if (place.address < end) return true;
    end = place.end();
  }
  return false;
}

}  // namespace

PlanMemory::PlanMemory(const pybind11::list& lists, const pybind11::list& grads, bool writes_grads)
    : writes_grads_(writes_grads) {
  const auto into = [](std::vector<Place>& places) {
    return [&places](const Place& place) {
      places.push_back(place);
      return true;
    };
  };
  if (!for_each_place_of(torch(), lists, into(places_)) || !for_each_place(torch(), grads.ptr(), into(grads_))) {
    throw pybind11::type_error("a plan is made of lists of strided tensors");
  }
  written_ = by_address(places_);
}

bool PlanMemory::is_written(const Place& place) const {
  auto after = std::lower_bound(written_.begin(), written_.end(), place.end(),
                                [](const Place& other, uintptr_t address) { return other.address < address; });
  while (after != written_.begin()) {  // what is written does not overlap: the first one that is not empty decides
    const Place& before = *--after;
    if (before.bytes > 0) return place.bytes > 0 && before.end() > place.address;
  }
  return false;
}

bool PlanMemory::holds(const pybind11::list& lists) const {
  auto at = places_.begin();
  return for_each_place_of(torch(), lists, [&](const Place& place) { return at != places_.end() && *at++ == place; }) &&
         at == places_.end();
}

pybind11::object PlanMemory::moved_grads(const pybind11::list& grads) {
  if (static_cast<size_t>(PyList_GET_SIZE(grads.ptr())) != grads_.size()) return pybind11::none();
  std::vector<Place> found;
  found.reserve(grads_.size());
  bool moved = false;
  const bool usable = for_each_place(torch(), grads.ptr(), [&](const Place& place) {
    const Place& before = grads_[found.size()];
    found.push_back(place);
    if (place == before) return true;
    moved = true;
    return place.differs_only_in_address(before) && !is_written(place);
  });
  if (!usable || (moved && writes_grads_ && overlap(by_address(found)))) return pybind11::none();
  pybind11::list addresses;
  if (moved) {
    grads_ = found;
    for (const Place& grad : grads_) addresses.append(grad.address);
  }
  return addresses;
}

}  // namespace aimfair::python
