#pragma once

#include <cstdint>
#include <source_location>

// Runs CUDA kernels on the CPU, for tests: the blocks of a grid one after another, the threads of a block as fibers
// that give way to each other only where they wait. The blocks of a cooperative launch take turns where a thread
// sleeps. What a kernel may do is stricter than on a GPU; what breaks the rules ends the program with a message.
//
//   A barrier waits for every thread of the block, and all must arrive at the same line of source. A thread that has
//   ended never arrives.
//   A warp collective waits for the lanes of its mask, and all must arrive with the same function and mask. Lanes that
//   have ended never arrive. A lane may not name a mask without itself, nor read from a lane outside the mask.
//
//   Only blocks of a cooperative launch may wait for each other, and not forever.
//
// The environment variable AIMFAIR_EMULATOR_ORDER, read at every launch, is the order of blocks and threads:
//   forward (default)   ascending; a thread that may go on does so after all that could before
//   backward            descending; a thread that may go on does so at once, so that a warp runs far ahead of others
//   a number            pseudo-random, seeded by it; every launch starts from the seed
//
// With AIMFAIR_EMULATOR_TRACE set, every launch prints a line to stderr, with how often its threads waited: 0 where all
// of them returned at once.

namespace aimfair_emulator {

using Where = std::source_location;

// What the lanes of a warp compute together.
enum class Combine { nothing, ballot, shuffle, sum, least, greatest };

// Runs body(context) once for every thread.
void launch(unsigned blocks, unsigned threads, bool cooperative, void (*body)(void*), void* context);

// Waits for the whole block. Returns the number of threads with `predicate`.
unsigned wait_for_block(const char* function, bool predicate, const Where& where);

// Lets the other blocks of a cooperative launch go on.
void wait_for_other_blocks(const char* function, const Where& where);

// Waits for the lanes of `mask`; `value` and `source`, a lane, are those of this lane. Returns ballot and shuffle as
// CUDA defines them; sum, least and greatest are over the values as signed numbers.
uint64_t wait_for_lanes(const char* function, Combine combine, unsigned mask, uint64_t value, unsigned source,
                        const Where& where);

// Ends the program: "CUDA emulator: block 1 of 3, thread 5: <problem> at <where>".
[[noreturn]] void fail(const char* problem, const Where& where);

}  // namespace aimfair_emulator
