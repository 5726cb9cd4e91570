#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "aimfair/topk.h"
#include "cpu/chunks.h"
#include "cpu/kernels.h"

// What the launchers of topk share. Keys of scores are computed block by block and never stored; they are counted, and
// turned into bits.
//
// The exact search for the k-th best key is a radix search: each round histograms the keys of one range into bins and
// continues with the bin that holds the k-th. The counts of several processes may be added before each decision.

namespace aimfair::cpu {

constexpr int kBinBits = 11;
constexpr int64_t kBins = kKeyBins;
static_assert(kBins == int64_t{1} << kBinBits);

inline uint32_t unsigned_key(int32_t key) { return static_cast<uint32_t>(key) ^ 0x80000000u; }
inline int32_t signed_key(uint32_t key) { return static_cast<int32_t>(key ^ 0x80000000u); }

// The unsigned keys that agree with `first` in all but the low `bits` bits, which are zero in `first`.
struct KeyRange {
  uint32_t first = 0;
  int bits = 32;

  int shift() const { return std::max(0, bits - kBinBits); }  // bin = offset in the range >> shift
};

// The smallest range with both keys.
inline KeyRange range_of(int32_t low, int32_t high) {
  const uint32_t a = unsigned_key(low), b = unsigned_key(high);
  const int bits = a == b ? 0 : 32 - __builtin_clz(a ^ b);
  return {static_cast<uint32_t>(static_cast<uint64_t>(a) >> bits << bits), bits};
}

// The k-th best key, and how many of the elements with that key belong to the k best.
struct Threshold {
  int32_t key;
  int64_t ties;
};

// Adds the keys of the range to their bins.
inline void add_to_histogram(const int32_t* keys, int64_t n, const KeyRange& range, int64_t* histogram) {
  const uint64_t size = uint64_t{1} << range.bits;
  const int shift = range.shift();
  for (int64_t i = 0; i < n; i++) {
    const uint32_t offset = unsigned_key(keys[i]) - range.first;
    if (offset < size) histogram[offset >> shift]++;
  }
}

// count(range, histogram) adds to kBins counts. The range must hold the k-th best key; k counts from 1 within the
// range.
template <class Count>
Threshold find_threshold(int64_t k, KeyRange range, const Count& count) {
  std::vector<int64_t> histogram(kBins);
  for (;;) {
    std::fill(histogram.begin(), histogram.end(), 0);
    count(range, histogram.data());
    int64_t bin = kBins - 1;
    while (bin > 0 && histogram[static_cast<size_t>(bin)] < k) k -= histogram[static_cast<size_t>(bin--)];
    const int shift = range.shift();
    range = {range.first + (static_cast<uint32_t>(bin) << shift), shift};
    if (shift == 0) return {signed_key(range.first), k};
  }
}

constexpr int64_t kSelectionChunk = 16 * kBlock;  // elements

// The keys of all scores, never stored.
struct ScoreKeys {
  const ScoreTensor* tensors;
  int64_t count;
  const Score& spec;
  bool largest;
  int threads;
  const Kernels& kernel;
  Chunks chunks;
  std::atomic<int64_t> nan_tensor;  // the lowest tensor with a NaN score seen so far; `count` if none

  ScoreKeys(const ScoreTensor* tensors, int64_t count, const Score& spec, bool largest, int threads);

  bool has_nan() const { return nan_tensor.load() < count; }

  // Calls use(keys, n, first element, whether a score is NaN) for every block of a chunk. NaN scores have keys too.
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

// Keys, and the bits under construction.
struct Selection : ScoreKeys {
  int64_t total;  // elements
  std::vector<int64_t> first_block;
  std::unique_ptr<uint32_t[]> bits;  // not the caller's, which must not change if a score is NaN

  Selection(const ScoreTensor* tensors, int64_t count, const Score& spec, bool largest, int threads);

  int64_t words() const { return first_block.back() * kWordsPerBlock; }

  // Calls use(keys, n, bits of the block, place of its first element in the chunk) for every block of a chunk.
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

  // Writes the caller's mask unless there was a NaN.
  SelectResult finish(uint32_t* out_bits, int64_t* out_rank) const;
};

// Writes the bits of the k best scores, or any bits if a score is NaN (topk.cpp).
void select_bits(Selection& selection, int64_t k);

// Moves the keys of scores that are not NaN to the front and returns their number.
int drop_nans(int32_t* keys, int n, bool largest);

// Adds the histogram of the keys in `range` to kBins counts. Returns the number of NaN scores, which are in no bin.
int64_t count_all(ScoreKeys& scores, const KeyRange& range, int64_t* histogram);

// Distributes `ties` over the chunks [begin, end) in index order, at most equal[i] to chunk i.
void share_ties(const std::vector<int64_t>& equal, int64_t begin, int64_t end, int64_t ties,
                std::vector<int64_t>& share);

// Writes all bits: key > threshold. Returns for each chunk the number of keys that equal the threshold.
std::vector<int64_t> write_above(Selection& selection, int32_t threshold);

// Sets the bits of the first share[i] elements of chunk i whose key equals the threshold.
void write_ties(Selection& selection, int32_t threshold, const std::vector<int64_t>& share);

}  // namespace aimfair::cpu
