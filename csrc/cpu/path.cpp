#include <atomic>

#include "aimfair/cpu.h"
#include "cpu/kernels.h"

namespace aimfair::cpu {
namespace {

const Kernels& kernels_of(Path path) {
#if defined(AIMFAIR_X86)
  if (path == Path::avx512) return avx512::kernels;
  if (path == Path::avx2) return avx2::kernels;
#elif defined(AIMFAIR_ARM64)
  if (path == Path::neon) return neon::kernels;
#endif
  (void)path;
  return scalar::kernels;
}

Path best_path() {
  for (Path path : {Path::avx512, Path::avx2, Path::neon}) {
    if (path_usable(path)) return path;
  }
  return Path::scalar;
}

std::atomic<Path>& current() {
  static std::atomic<Path> path{best_path()};
  return path;
}

}  // namespace

const char* path_name(Path path) {
  switch (path) {
    case Path::avx512:
      return "avx512";
    case Path::avx2:
      return "avx2";
    case Path::neon:
      return "neon";
    case Path::scalar:
      break;
  }
  return "scalar";
}

bool path_usable(Path path) {
#if defined(AIMFAIR_X86)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("f16c");
  if (path == Path::avx2) return avx2;
  if (path == Path::avx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#elif defined(AIMFAIR_ARM64)
  if (path == Path::neon) return true;  // part of AArch64
#endif
  return path == Path::scalar;
}

Path path() { return current().load(std::memory_order_relaxed); }

bool set_path(Path path) {
  if (!path_usable(path)) return false;
  current().store(path, std::memory_order_relaxed);
  return true;
}

const Kernels& kernels() { return kernels_of(path()); }

}  // namespace aimfair::cpu
