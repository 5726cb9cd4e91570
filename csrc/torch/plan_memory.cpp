#include "plan_memory.h"

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
  PyTypeObject* tensor = nullptr;
  const DLPackExchangeAPI* dlpack = nullptr;
};

// Guarded by the GIL, which the import may give away: then another thread finds the same.
const Torch& torch() {
  static Torch found;
  if (!found.tensor) {
    const Owned module = owned(PyImport_ImportModule("torch"));
    Owned tensor = owned(PyObject_GetAttrString(module.get(), "Tensor"));
    const Owned capsule = owned(PyObject_GetAttrString(tensor.get(), "__dlpack_c_exchange_api__"));
    const auto* api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.get(), "dlpack_exchange_api"));
    if (!api) throw PythonError{};
    if (api->major != 1 || !api->tensor_from_object) {
      throw std::runtime_error("aimfair: this torch has another version of DLPack than 1");
    }
    found = {reinterpret_cast<PyTypeObject*>(tensor.release()), api};
  }
  return found;
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

Py_ssize_t length_of(PyObject* list) {
  const Py_ssize_t length = PyList_Size(list);
  if (length < 0) throw PythonError{};
  return length;
}

// Calls use(place of the tensor) for each entry of a list, until it returns false; false if one did or is no tensor.
template <class Use>
bool for_each_place(const Torch& torch, PyObject* list, const Use& use) {
  const Py_ssize_t length = length_of(list);
  for (Py_ssize_t i = 0; i < length; i++) {
    Place place;
    if (!find(torch, PyList_GetItem(list, i), &place) || !use(place)) return false;
  }
  return true;
}

template <class Use>
bool for_each_place_of(const Torch& torch, PyObject* lists, const Use& use) {
  for (Py_ssize_t i = 0; i < length_of(lists); i++) {
    PyObject* list = PyList_GetItem(lists, i);
    if (!PyList_Check(list) || !for_each_place(torch, list, use)) return false;
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

PlanMemory::PlanMemory(PyObject* lists, PyObject* grads, bool writes_grads) : writes_grads_(writes_grads) {
  const auto into = [](std::vector<Place>& places) {
    return [&places](const Place& place) {
      places.push_back(place);
      return true;
    };
  };
  if (!for_each_place_of(torch(), lists, into(places_)) || !for_each_place(torch(), grads, into(grads_))) {
    PyErr_SetString(PyExc_TypeError, "a plan is made of lists of strided tensors");
    throw PythonError{};
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

bool PlanMemory::holds(PyObject* lists) const {
  auto at = places_.begin();
  return for_each_place_of(torch(), lists, [&](const Place& place) { return at != places_.end() && *at++ == place; }) &&
         at == places_.end();
}

std::optional<std::vector<uintptr_t>> PlanMemory::moved_grads(PyObject* grads) {
  if (static_cast<size_t>(length_of(grads)) != grads_.size()) return std::nullopt;
  std::vector<Place> found;
  found.reserve(grads_.size());
  bool moved = false;
  const bool usable = for_each_place(torch(), grads, [&](const Place& place) {
    const Place& before = grads_[found.size()];
    found.push_back(place);
    if (place == before) return true;
    moved = true;
    return place.differs_only_in_address(before) && !is_written(place);
  });
  if (!usable || (moved && writes_grads_ && overlap(by_address(found)))) return std::nullopt;
  std::vector<uintptr_t> addresses;
  if (moved) {
    grads_ = found;
    for (const Place& grad : grads_) addresses.push_back(grad.address);
  }
  return addresses;
}

// -- the class in Python ----------------------------------------------------------------------------------------------

namespace {

struct Instance {
  PyObject base;
  PlanMemory* memory;
};

PlanMemory& memory_of(PyObject* self) { return *reinterpret_cast<Instance*>(self)->memory; }

PyObject* make(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
  return guarded([&] {
    const char* names[] = {"lists", "grads", "writes_grads", nullptr};
    PyObject *lists, *grads;
    int writes_grads = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!O!|p:PlanMemory", const_cast<char**>(names), &PyList_Type,
                                     &lists, &PyList_Type, &grads, &writes_grads)) {
      throw PythonError{};
    }
    auto memory = std::make_unique<PlanMemory>(lists, grads, writes_grads != 0);
    const auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
    Owned self = owned(allocate(type, 0));
    reinterpret_cast<Instance*>(self.get())->memory = memory.release();
    return self;
  });
}

void destroy(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  delete reinterpret_cast<Instance*>(self)->memory;
  reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
  Py_DecRef(reinterpret_cast<PyObject*>(type));
}

PyObject* holds(PyObject* self, PyObject* lists) {
  return guarded([&] { return owned(PyBool_FromLong(memory_of(self).holds(lists))); });
}

PyObject* moved_grads(PyObject* self, PyObject* grads) {
  return guarded([&] {
    const auto addresses = memory_of(self).moved_grads(grads);
    if (!addresses) return none();
    Owned list = owned(PyList_New(static_cast<Py_ssize_t>(addresses->size())));
    for (size_t i = 0; i < addresses->size(); i++) {
      check(
          PyList_SetItem(list.get(), static_cast<Py_ssize_t>(i), owned(PyLong_FromSize_t((*addresses)[i])).release()));
    }
    return list;
  });
}

}  // namespace

void add_plan_memory(PyObject* module) {
  static PyMethodDef methods[] = {
      {"holds", holds, METH_O, nullptr},
      {"moved_grads", moved_grads, METH_O, nullptr},
      {nullptr, nullptr, 0, nullptr},
  };
  PyType_Slot slots[] = {
      {Py_tp_new, reinterpret_cast<void*>(make)},
      {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
      {Py_tp_methods, methods},
      {0, nullptr},
  };
  PyType_Spec spec = {"aimfair._C.PlanMemory", sizeof(Instance), 0, Py_TPFLAGS_DEFAULT, slots};
  const Owned type = owned(PyType_FromSpec(&spec));
  check(PyModule_AddObjectRef(module, "PlanMemory", type.get()));
}

}  // namespace aimfair::python
