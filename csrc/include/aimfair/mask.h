#pragma once

#include <cstdint>

#include "aimfair/cuda.h"
#include "aimfair/mask.h"
#include "aimfair/numeric.h"

// A mask over the elements of a list of tensors: one bit per element, and a rank directory.
//
// The mask is cut into blocks of 1024 elements and every tensor starts a new block. Element i of a tensor whose first
// block is b is bit (i % 32) of bits[b * 32 + i / 32]. Bits past the end of a tensor are zero.
// rank[b] is the number of set bits before block b, so the index of an element among the selected ones is
// rank[block] + the number of set bits before it in the block.

namespace aimfair {

constexpr int64_t kBlock = 1024;                 // elements
constexpr int64_t kWordsPerBlock = kBlock / 32;  // 32-bit words

AIMFAIR_HOST_DEVICE int64_t block_count(int64_t numel) { return numel / kBlock + (numel % kBlock != 0); }

struct MaskView {
  const uint32_t* bits = nullptr;  // null: every element is selected
  const int64_t* rank = nullptr;   // blocks + 1 entries
};

// Building and reading masks; `numels` are the sizes of the tensors of a mask.
namespace cpu {

// Fills the rank directory of `blocks` blocks: blocks + 1 entries.
void rank(const uint32_t* bits, int64_t blocks, int64_t* rank, int threads = 0);

// Converts from and to one byte (0 or 1) per element.
void pack_bits(const uint8_t* const* bools, const int64_t* numels, int64_t count, uint32_t* bits, int threads = 0);
void unpack_bits(const uint32_t* bits, const int64_t* numels, int64_t count, uint8_t* const* bools, int threads = 0);

// Expands a mask over units (rows or whole tensors): unit u of tensor t covers numels[t] / units[t] elements.
void expand_units(const uint32_t* unit_bits, const int64_t* numels, const int64_t* units, int64_t count, uint32_t* bits,
                  int threads = 0);

}  // namespace cpu

// The same on the device (see cuda.h).
namespace cuda {

int rank(const uint32_t* bits, int64_t blocks, int64_t* rank, const Allocate& allocate, void* stream);
int pack_bits(const uint8_t* const* bools, const int64_t* numels, int64_t count, uint32_t* bits,
              const Allocate& allocate, void* stream);
int unpack_bits(const uint32_t* bits, const int64_t* numels, int64_t count, uint8_t* const* bools,
                const Allocate& allocate, void* stream);
int expand_units(const uint32_t* unit_bits, const int64_t* numels, const int64_t* units, int64_t count, uint32_t* bits,
                 const Allocate& allocate, void* stream);

}  // namespace cuda

}  // namespace aimfair
