#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "aimfair/select.h"
#include "cpu/chunks.h"
#include "cpu/kernels.h"
#include "cpu/threshold.h"

// What select and the counting launchers share: keys computed block by block, counted, and turned into bits.

namespace aimfair::cpu {

constexpr int64_t kSelectionChunk = 16 * kBlock;  // elements

// The keys of all scores, never stored.
struct ScoreKeys {
  const ScoreTensor* tensors;
  int64_t count;
  const ScoreSpec& spec;
  bool largest;
  int threads;
  const Kernels& kernel;
  Chunks chunks;
  std::atomic<int64_t> nan_tensor;  // the lowest tensor with a NaN score seen so far; `count` if none

  ScoreKeys(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, bool largest, int threads);

  bool has_nan() const { return nan_tensor.load() < count; }

  // Calls use(keys, n, its first element, whether a score is NaN) for every block of a chunk. NaN have keys too.
  template <class Use>
  void for_each_block(const Chunk& chunk, const Use& use) {
    alignas(64) int32_t keys[kBlock];
    const ScoreTensor& tensor = tensors[chunk.tensor];
    for (int64_t at = chunk.begin; at < chunk.end; at += kBlock) {
      const int n = static_cast<int>(std::min(kBlock, chunk.end - at));
      const bool nan = kernel.score_keys(tensor, spec, largest, at, n, keys);
      if (nan) lower_to(nan_tensor, chunk.tensor);
      use(keys, n, at, nan);
    }
  }
};

// Keys and the bits as they are being made.
struct Selection : ScoreKeys {
  int64_t total;  // elements
  std::vector<int64_t> first_block;
  std::unique_ptr<uint32_t[]> bits;  // apart from the caller's, which stay as they are if a score is NaN

  Selection(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, bool largest, int threads);

  int64_t words() const { return first_block.back() * kWordsPerBlock; }

  // Calls use(keys, n, block's bits, place of its first element in the chunk) for every block of a chunk.
  template <class Use>
  void for_each_block(const Chunk& chunk, const Use& use) {
    uint32_t* words = bits.get() + first_block[static_cast<size_t>(chunk.tensor)] * kWordsPerBlock;
    ScoreKeys::for_each_block(chunk, [&](const int32_t* keys, int n, int64_t at, bool) {
      use(keys, n, reinterpret_cast<uint16_t*>(words + at / 32), static_cast<uint32_t>(at - chunk.begin));
    });
  }

  void set_bit(const Chunk& chunk, uint32_t place) {
    const int64_t at = chunk.begin + place;
    bits[static_cast<size_t>(first_block[static_cast<size_t>(chunk.tensor)] * kWordsPerBlock + at / 32)] |=
        1u << (at % 32);
  }

  // Writes the caller's mask, unless there was a NaN.
  SelectResult finish(uint32_t* out_bits, int64_t* out_rank) const;
};

// Moves the keys that are not of NaN scores to the front, and returns how many there are.
int drop_nans(int32_t* keys, int n, bool largest);

// Adds the histogram of the keys in `range` to kBins counts; returns the number of NaN scores, which are in no bin.
int64_t count_all(ScoreKeys& scores, const KeyRange& range, int64_t* histogram);

// Gives the chunks [begin, end) their part of `ties`: as many as each has, in index order.
void share_ties(const std::vector<int64_t>& equal, int64_t begin, int64_t end, int64_t ties,
                std::vector<int64_t>& share);

// Writes all bits: key > threshold. Returns for each chunk the number of keys that equal the threshold.
std::vector<int64_t> write_above(Selection& selection, int32_t threshold);

// Sets the bits of the first share[i] elements of chunk i whose key equals the threshold.
void write_ties(Selection& selection, int32_t threshold, const std::vector<int64_t>& share);

}  // namespace aimfair::cpu
