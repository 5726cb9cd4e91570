#pragma once

#include <cstdint>

#include "aimfair/cuda.h"
#include "aimfair/mask.h"

// Building and reading masks. `numels` lists the sizes of the tensors of a mask; see mask.h for the layout.

namespace aimfair {
namespace cpu {

// Fills the rank directory of `blocks` blocks: blocks + 1 entries.
void rank(const uint32_t* bits, int64_t blocks, int64_t* rank, int threads = 0);

// From and to one byte (0 or 1) per element.
void pack_bits(const uint8_t* const* bools, const int64_t* numels, int64_t count, uint32_t* bits, int threads = 0);
void unpack_bits(const uint32_t* bits, const int64_t* numels, int64_t count, uint8_t* const* bools, int threads = 0);

// From a mask over units (rows or whole tensors): unit u of tensor t covers numels[t] / units[t] elements.
void expand_units(const uint32_t* unit_bits, const int64_t* numels, const int64_t* units, int64_t count, uint32_t* bits,
                  int threads = 0);

}  // namespace cpu

// The same on the device; see cuda.h.
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
