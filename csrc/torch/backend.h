#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstring>

#include "aimfair/aimfair.h"
#include "arguments.h"

// The backends. Every operator is a function template over one: it checks its arguments and then constructs a
// Backend(op, on) for the call, where `on` is a tensor on the device of the call. A Backend has
//
//   run(Backend::launcher, arguments...)  calls a launcher of aimfair::cpu or aimfair::cuda with these arguments and
//                                         its own: threads, or allocator and stream
//   plan(tensors)                         the plan of one call, for a list of StepTensor or AccumulateTensor = T
//   plan_bytes<T>(count, blocks)          bytes of memory that a plan needs
//   store(tensors, memory)                stores a plan there
//   set_grads<T>(grads, memory)           replaces the addresses of the gradients in the plan stored there
//   plan_in<T>(memory, count, blocks)     the plan stored there
//   step(Backend::launcher, plan, ...)    calls a launcher that takes a plan

namespace aimfair::ops {

using Library = torch::stable::detail::StableLibrary;

// Blocks of 1024 elements of a list.
template <class T>
int64_t blocks_of(const std::vector<T>& tensors) {
  int64_t blocks = 0;
  for (const T& tensor : tensors) blocks += block_count(tensor.numel);
  return blocks;
}

struct Cpu {
  static constexpr auto accumulate = &cpu::accumulate;
  static constexpr auto select = &cpu::select;
  static constexpr auto select_segments = &cpu::select_segments;
  static constexpr auto count_keys = &cpu::count_keys;
  static constexpr auto count_equal = &cpu::count_equal;
  static constexpr auto select_above = &cpu::select_above;
  static constexpr auto unit_scores = &cpu::unit_scores;
  static constexpr auto rank = &cpu::rank;
  static constexpr auto pack_bits = &cpu::pack_bits;
  static constexpr auto unpack_bits = &cpu::unpack_bits;
  static constexpr auto expand_units = &cpu::expand_units;
  static constexpr auto masked_adamw = &cpu::masked_adamw;
  static constexpr auto masked_sgd = &cpu::masked_sgd;

  Cpu(const char*, const Tensor&) {}

  template <class Launcher, class... Given>
  auto run(const Launcher& launcher, const Given&... given) {
    return launcher(given..., static_cast<int>(torch::stable::get_num_threads()));
  }

  // On the CPU a plan is the list itself.
  template <class T>
  struct Plan {
    const T* tensors;
    int64_t count;
  };

  template <class T>
  static int64_t plan_bytes(int64_t tensors, int64_t) {
    return tensors * static_cast<int64_t>(sizeof(T));
  }

  template <class T>
  static Plan<T> plan(const std::vector<T>& tensors) {
    return {tensors.data(), size_of(tensors)};
  }

  template <class T>
  static void store(const std::vector<T>& tensors, void* memory) {
    memcpy(memory, tensors.data(), tensors.size() * sizeof(T));
  }

  template <class T>
  static void set_grads(const std::vector<void*>& grads, void* memory) {
    auto* tensors = static_cast<T*>(memory);
    for (size_t t = 0; t < grads.size(); t++) tensors[t].grad = grads[t];
  }

  template <class T>
  static Plan<T> plan_in(void* memory, int64_t tensors, int64_t) {
    return {static_cast<const T*>(memory), tensors};
  }

  template <class Launcher, class T, class... Given>
  void step(const Launcher& launcher, const Plan<T>& plan, const Given&... given) {
    run(launcher, plan.tensors, plan.count, given...);
  }
};

}  // namespace aimfair::ops

#if defined(AIMFAIR_EMULATED) || defined(AIMFAIR_WITH_CUDA)
#include "cuda.h"
#endif

// Registers the operators of a family with add<Backend>(library), for every backend of this build. With emulated CUDA
// (tests/cuda_emulator) the CUDA operators take CPU tensors.
#if defined(AIMFAIR_EMULATED)
#define AIMFAIR_REGISTER(add) \
  STABLE_TORCH_LIBRARY_IMPL(aimfair, CPU, library) { add<Cuda>(library); }
#elif defined(AIMFAIR_WITH_CUDA)
#define AIMFAIR_REGISTER(add)                                             \
  STABLE_TORCH_LIBRARY_IMPL(aimfair, CPU, library) { add<Cpu>(library); } \
  STABLE_TORCH_LIBRARY_IMPL(aimfair, CUDA, library) { add<Cuda>(library); }
#else
#define AIMFAIR_REGISTER(add) \
  STABLE_TORCH_LIBRARY_IMPL(aimfair, CPU, library) { add<Cpu>(library); }
#endif
