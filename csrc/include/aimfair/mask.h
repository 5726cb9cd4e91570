#pragma once

#include <cstdint>

#include "aimfair/macros.h"

// A mask over the elements of a list of tensors: one bit per element, and a rank directory.
//
// The mask is cut into blocks of 1024 elements and every tensor begins a new block. Element i of a tensor whose first
// block is b is bit (i % 32) of bits[b * 32 + i / 32]. Bits past the end of a tensor are zero.
// rank[b] is the number of set bits before block b, so an element's place among the selected ones is
// rank[block] + the set bits before it in the block.

namespace aimfair {

constexpr int64_t kBlock = 1024;                 // elements
constexpr int64_t kWordsPerBlock = kBlock / 32;  // 32-bit words

AIMFAIR_HOST_DEVICE int64_t block_count(int64_t numel) { return numel / kBlock + (numel % kBlock != 0); }

struct MaskView {
  const uint32_t* bits = nullptr;  // null: every element is selected
  const int64_t* rank = nullptr;   // blocks + 1 entries
};

}  // namespace aimfair
