#pragma once

#include <cstdint>

#include "aimfair/macros.h"
#include "aimfair/mask.h"

// The order in which the scores of a unit are added, in double, on every device. Lanes begin at 0.
//
// - A block of up to 1024 scores: score i is added to lane i % 16, then the lanes are added as a tree.
// - A span of up to 16 blocks: the sums of the blocks as a tree of 16 lanes.
// - The unit: the sum of span i is added to lane i % 256, then the lanes are added as a tree.

namespace aimfair {

constexpr int kBlockLanes = 16;
constexpr int kBlocksPerSpan = 16;
constexpr int64_t kSpan = kBlocksPerSpan * kBlock;  // elements
constexpr int kSpanLanes = 256;

AIMFAIR_HOST_DEVICE int64_t span_count(int64_t length) { return length / kSpan + (length % kSpan != 0); }

// Adds the second half of the lanes to the first, and so on down to one; overwrites them. Lanes that are 0 change no
// sum, so a tree of more lanes gives the same.
template <int kLanes>
AIMFAIR_HOST_DEVICE double tree_sum(double* lanes) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

}  // namespace aimfair
