#pragma once

#include <cstdint>

#include "aimfair/numeric.h"

// Counter-based random bits for stochastic rounding: a pure function of (seed, step, mask block, element in block),
// so that results do not depend on threads, launch shape or device.

namespace aimfair {

// Finalizer of the splitmix64 generator (Steele, Lea, Flood 2014).
AIMFAIR_HOST_DEVICE uint64_t splitmix64(uint64_t z) {
  z += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// Key of one step; block_key combines it with a block.
AIMFAIR_HOST_DEVICE uint64_t step_key(uint64_t seed, uint64_t step) {
  return splitmix64(seed + 0x9e3779b97f4a7c15ull * step);
}

AIMFAIR_HOST_DEVICE uint64_t block_key(uint64_t step_key, uint64_t block) { return splitmix64(step_key ^ block); }

// 16 random bits for element `index` (0..1023) of a block; U is uint32_t or a vector of them.
// The mixing constants are the published low-bias 32-bit ones by Chris Wellons.
template <class U>
AIMFAIR_HOST_DEVICE U random16(uint64_t block_key, U index) {
  U x = index + U(static_cast<uint32_t>(block_key));
  x = x ^ (x >> 16);
  x = x * U(0x7feb352du);
  x = x ^ (x >> 15);
  x = x * U(0x846ca68bu);
  x = x ^ (x >> 16);
  return (x ^ U(static_cast<uint32_t>(block_key >> 32))) >> 16;
}

}  // namespace aimfair
