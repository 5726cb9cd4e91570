#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "python_abi.h"

namespace aimfair::python {

// Where tensors lie in memory, and what is there; all that a plan depends on.
struct Place {
  uintptr_t address = 0;
  int64_t bytes = 0;
  uint32_t dtype = 0;      // code, bits and lanes of DLPack
  int32_t device[2] = {};  // type and index
  bool contiguous = false;

  uintptr_t end() const { return address + static_cast<uintptr_t>(bytes); }

  bool operator==(const Place&) const = default;
  bool differs_only_in_address(const Place& other) const {
    Place there = *this;
    there.address = other.address;
    return there == other;
  }
};

// The tensors that a plan was made of, to be compared with those of a later call. They are read through DLPack's C
// exchange interface, in some 20 ns each; a list argument of an operator costs ten times that.
class PlanMemory {
 public:
  // Lists of torch.Tensor: those that a call reads and writes, and the gradients, which it may write too. `lists` is a
  // list of lists.
  PlanMemory(PyObject* lists, PyObject* grads, bool writes_grads);

  // Whether these are still the tensors of the plan, at the same addresses.
  bool holds(PyObject* lists) const;

  // Nothing if a new plan is needed: something other than the addresses of gradients differs from the last call, or a
  // gradient overlaps what is written. Otherwise the new addresses of all gradients; empty if none has moved.
  std::optional<std::vector<uintptr_t>> moved_grads(PyObject* grads);

 private:
  bool is_written(const Place& place) const;

  std::vector<Place> places_, grads_;
  std::vector<Place> written_;  // places_ by address
  bool writes_grads_;
};

// Adds the class PlanMemory to the module aimfair._C.
void add_plan_memory(PyObject* module);

}  // namespace aimfair::python
