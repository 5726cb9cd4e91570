#pragma once

#include "backend.h"

// Plans as tensors: a list that was checked once and is stored where the kernels read it. T is the entry of the list.

namespace aimfair::ops {

template <class Backend, class T>
Tensor stored_plan(const Arguments& arguments, const Tensor& on, const std::vector<T>& tensors) {
  Backend backend(arguments.op(), on);
  Tensor memory = new_bytes(on, Backend::template plan_bytes<T>(size_of(tensors), blocks_of(tensors)));
  backend.store(tensors, memory.data_ptr());
  return memory;
}

// The addresses are not checked: PlanMemory (plan_memory.h) has compared the gradients with those of the plan.
template <class Backend, class T>
void set_grads(const Tensor& plan, int64_t tensors, int64_t blocks, const std::vector<int64_t>& addresses) {
  Arguments arguments("set_grads_", &plan);
  void* memory = arguments.take("plan", plan, kBytes, Access::write, Backend::template plan_bytes<T>(tensors, blocks));
  arguments.require(size_of(addresses) == tensors, "addresses",
                    "has " + std::to_string(addresses.size()) + " entries, expected " + std::to_string(tensors));
  std::vector<void*> grads;
  for (const int64_t address : addresses) grads.push_back(reinterpret_cast<void*>(address));
  Backend backend(arguments.op(), plan);
  backend.template set_grads<T>(grads, memory);
}

}  // namespace aimfair::ops
