#pragma once

#include <math.h>

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstdint>
#include <memory>  // before __noinline__ is a macro: it uses the attribute of that name
#include <tuple>
#include <type_traits>
#include <utility>

#include "../emulator.h"
#include "cuda_runtime_api.h"

// The subset of CUDA that the kernels use, for the emulator (emulator.h). What is not here is not to be used, or is to
// be added, as CUDA defines it.

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
// One block runs at a time, so a static variable is shared by the threads of one block. The section is filled with 0xA5
// before every block, and kept while a block of a cooperative launch waits for others. GCC wants all variables of a
// section in functions with internal linkage.
#define __shared__ static __attribute__((section("aimfair_shared")))

inline dim3 threadIdx(0, 0, 0), blockIdx(0, 0, 0), blockDim, gridDim;
constexpr int warpSize = 32;

// -- launching --------------------------------------------------------------------------------------------------------

namespace aimfair_emulator {

// Bytes of a kernel's parameters, laid out one after another.
template <class... Parameters>
constexpr size_t parameter_bytes() {
  size_t bytes = 0;
  ((bytes = (bytes + alignof(Parameters) - 1) / alignof(Parameters) * alignof(Parameters) + sizeof(Parameters)), ...);
  return bytes;
}

}  // namespace aimfair_emulator

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  using namespace aimfair_emulator;
  static_assert(parameter_bytes<Parameters...>() <= 32764, "CUDA takes 32764 bytes of kernel parameters at most");
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "CUDA copies kernel parameters as bytes");
  const dim3 &grid = config->gridDim, &block = config->blockDim;
  const bool one_dimensional = grid.y == 1 && grid.z == 1 && block.y == 1 && block.z == 1;
  bool cooperative = false, known = true;
  for (unsigned i = 0; i < config->numAttrs; i++) {
    known &= config->attrs[i].id == cudaLaunchAttributeCooperative;
    cooperative |= known && config->attrs[i].val.cooperative != 0;
  }
  if (!one_dimensional || config->dynamicSmemBytes != 0 || !known) return result(cudaErrorInvalidValue);  // not here
  if (grid.x < 1 || grid.x > 0x7fffffffu || block.x < 1 || block.x > 1024) return result(cudaErrorInvalidConfiguration);
  if (cooperative && static_cast<int>(grid.x) > kProcessors * blocks_per_processor(static_cast<int>(block.x))) {
    return result(cudaErrorCooperativeLaunchTooLarge);
  }
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  } call{kernel, {std::forward<Arguments>(arguments)...}};
  const auto body = [](void* context) {
    const Call& call = *static_cast<const Call*>(context);
    std::apply(call.kernel, call.arguments);
  };
  launch(grid.x, block.x, cooperative, body, &call);
  return cudaSuccess;
}

// -- barriers and warp collectives ------------------------------------------------------------------------------------

#define AIMFAIR_WHERE aimfair_emulator::Where where = aimfair_emulator::Where::current()

inline void __syncthreads(AIMFAIR_WHERE) { aimfair_emulator::wait_for_block("__syncthreads", false, where); }
inline int __syncthreads_count(int predicate, AIMFAIR_WHERE) {
  return static_cast<int>(aimfair_emulator::wait_for_block("__syncthreads_count", predicate != 0, where));
}
inline int __syncthreads_or(int predicate, AIMFAIR_WHERE) {
  return aimfair_emulator::wait_for_block("__syncthreads_or", predicate != 0, where) != 0;
}
inline int __syncthreads_and(int predicate, AIMFAIR_WHERE) {
  return aimfair_emulator::wait_for_block("__syncthreads_and", predicate != 0, where) == blockDim.x;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, AIMFAIR_WHERE) {
  aimfair_emulator::wait_for_lanes("__syncwarp", aimfair_emulator::Combine::nothing, mask, 0, 0, where);
}

namespace aimfair_emulator {

inline unsigned ballot(const char* function, unsigned mask, int predicate, const Where& where) {
  return static_cast<unsigned>(wait_for_lanes(function, Combine::ballot, mask, predicate != 0, 0, where));
}

template <class T>
concept Shuffled = std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8);

// A lane past either end of the warp is the lane's own.
template <Shuffled T>
T shuffle(const char* function, unsigned mask, T value, int source, int width, const Where& where) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  if (width != 32) fail("shuffles of another width than 32 are not supported", where);
  const unsigned lane = source < 0 || source > 31 ? threadIdx.x % 32 : static_cast<unsigned>(source);
  return std::bit_cast<T>(
      static_cast<Bits>(wait_for_lanes(function, Combine::shuffle, mask, std::bit_cast<Bits>(value), lane, where)));
}

template <class T>
concept Reduced = std::same_as<T, int> || std::same_as<T, unsigned>;

template <Reduced T>
T reduce(const char* function, Combine combine, unsigned mask, T value, const Where& where) {
  return static_cast<T>(wait_for_lanes(function, combine, mask, static_cast<uint64_t>(int64_t{value}), 0, where));
}

inline int lane() { return static_cast<int>(threadIdx.x % 32); }

}  // namespace aimfair_emulator

inline unsigned __ballot_sync(unsigned mask, int predicate, AIMFAIR_WHERE) {
  return aimfair_emulator::ballot("__ballot_sync", mask, predicate, where);
}
inline int __any_sync(unsigned mask, int predicate, AIMFAIR_WHERE) {
  return aimfair_emulator::ballot("__any_sync", mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, AIMFAIR_WHERE) {
  return aimfair_emulator::ballot("__all_sync", mask, predicate, where) == mask;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, AIMFAIR_WHERE) {
  return aimfair_emulator::shuffle("__shfl_sync", mask, value, source & 31, width, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, AIMFAIR_WHERE) {
  const int source = delta > 31 ? -1 : aimfair_emulator::lane() - static_cast<int>(delta);
  return aimfair_emulator::shuffle("__shfl_up_sync", mask, value, source, width, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, AIMFAIR_WHERE) {
  const int source = delta > 31 ? -1 : aimfair_emulator::lane() + static_cast<int>(delta);
  return aimfair_emulator::shuffle("__shfl_down_sync", mask, value, source, width, where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, AIMFAIR_WHERE) {
  return aimfair_emulator::shuffle("__shfl_xor_sync", mask, value, aimfair_emulator::lane() ^ lane_mask, width, where);
}
template <class T>
T __reduce_add_sync(unsigned mask, T value, AIMFAIR_WHERE) {
  return aimfair_emulator::reduce("__reduce_add_sync", aimfair_emulator::Combine::sum, mask, value, where);
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, AIMFAIR_WHERE) {
  return aimfair_emulator::reduce("__reduce_min_sync", aimfair_emulator::Combine::least, mask, value, where);
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, AIMFAIR_WHERE) {
  return aimfair_emulator::reduce("__reduce_max_sync", aimfair_emulator::Combine::greatest, mask, value, where);
}

// Only while it waits for another block: at once, the next one goes on.
inline void __nanosleep(unsigned, AIMFAIR_WHERE) { aimfair_emulator::wait_for_other_blocks("__nanosleep", where); }

#undef AIMFAIR_WHERE

// -- memory -----------------------------------------------------------------------------------------------------------

inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldca(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
void __stwb(T* address, std::type_identity_t<T> value) {
  *address = value;
}
template <class T>
void __stcs(T* address, std::type_identity_t<T> value) {
  *address = value;
}
template <class T>
void __stcg(T* address, std::type_identity_t<T> value) {
  *address = value;
}

// Atomics: threads give way to each other only where they wait, so nothing comes in between.
namespace aimfair_emulator {

template <class T, class... Choices>
concept OneOf = (std::same_as<T, Choices> || ...);
template <class T>
concept Added = OneOf<T, int, unsigned, unsigned long long>;
template <class T>
concept Ordered = OneOf<T, int, unsigned, long long, unsigned long long>;
template <class T>
concept Exchanged = OneOf<T, int, unsigned, unsigned long long, float>;
template <class T>
using Same = std::type_identity_t<T>;

}  // namespace aimfair_emulator

template <aimfair_emulator::Added T>
T atomicAdd(T* address, aimfair_emulator::Same<T> value) {
  const T sum = static_cast<T>(static_cast<unsigned long long>(*address) + static_cast<unsigned long long>(value));
  return std::exchange(*address, sum);
}
template <aimfair_emulator::Ordered T>
T atomicMin(T* address, aimfair_emulator::Same<T> value) {
  return std::exchange(*address, std::min(*address, value));
}
template <aimfair_emulator::Ordered T>
T atomicMax(T* address, aimfair_emulator::Same<T> value) {
  return std::exchange(*address, std::max(*address, value));
}
template <aimfair_emulator::Added T>
T atomicOr(T* address, aimfair_emulator::Same<T> value) {
  return std::exchange(*address, *address | value);
}
template <aimfair_emulator::Added T>
T atomicAnd(T* address, aimfair_emulator::Same<T> value) {
  return std::exchange(*address, *address & value);
}
template <aimfair_emulator::Exchanged T>
T atomicExch(T* address, aimfair_emulator::Same<T> value) {
  return std::exchange(*address, value);
}
template <aimfair_emulator::Added T>
T atomicCAS(T* address, aimfair_emulator::Same<T> expected, aimfair_emulator::Same<T> value) {
  return std::exchange(*address, *address == expected ? value : *address);
}
inline unsigned atomicInc(unsigned* address, unsigned last) {
  return std::exchange(*address, *address >= last ? 0 : *address + 1);
}

// -- arithmetic -------------------------------------------------------------------------------------------------------

// CUDA has mixed types too; here both must be the same. Of a NaN and a number, the number.
template <class T>
constexpr T min(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return fmin(a, b);
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return fmax(a, b);
  return a < b ? b : a;
}

inline int __popc(unsigned value) { return std::popcount(value); }
inline int __popcll(unsigned long long value) { return std::popcount(value); }
inline int __clz(int value) { return std::countl_zero(static_cast<unsigned>(value)); }
inline int __clzll(long long value) { return std::countl_zero(static_cast<unsigned long long>(value)); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline unsigned __brev(unsigned value) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; bit++) reversed |= (value >> bit & 1) << (31 - bit);
  return reversed;
}
// The high or low half of (high:low) shifted by shift % 32.
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (shift & 31));
}

inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline float __double2float_rn(double value) { return static_cast<float>(value); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return sqrt(a); }
