#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "aimfair/select.h"

// Exact search for the k-th best key by counting: each round histograms the keys of one range into bins and goes on
// with the bin that holds the k-th. The counts of several machines may be added before each decision.

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

// count(range, histogram) adds to kBins counts. The range must hold the k-th best key; k counts from 1 in the range.
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

}  // namespace aimfair::cpu
