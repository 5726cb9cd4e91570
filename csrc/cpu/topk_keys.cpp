#include "cpu/topk_keys.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "aimfair/mask.h"
#include "aimfair/numeric.h"

namespace aimfair::cpu {

ScoreKeys::ScoreKeys(const ScoreTensor* tensors_, int64_t count_, const Score& spec_, bool largest_, int threads_)
    : tensors(tensors_),
      count(count_),
      spec(spec_),
      largest(largest_),
      threads(thread_count(threads_)),
      kernel(kernels()),
      chunks(count_, kSelectionChunk, [&](int64_t t) { return tensors_[t].numel; }),
      nan_tensor(count_) {}

Selection::Selection(const ScoreTensor* tensors_, int64_t count_, const Score& spec_, bool largest_, int threads_)
    : ScoreKeys(tensors_, count_, spec_, largest_, threads_), total(0), first_block(static_cast<size_t>(count_) + 1) {
  for (int64_t t = 0; t < count; t++) {
    total += tensors[t].numel;
    first_block[static_cast<size_t>(t) + 1] = first_block[static_cast<size_t>(t)] + block_count(tensors[t].numel);
  }
  bits = std::make_unique_for_overwrite<uint32_t[]>(static_cast<size_t>(words()));
}

SelectResult Selection::finish(uint32_t* out_bits, int64_t* out_rank) const {
  if (has_nan()) return {nan_tensor.load()};
  if (words() > 0) memcpy(out_bits, bits.get(), static_cast<size_t>(words()) * sizeof(uint32_t));
  rank(out_bits, first_block.back(), out_rank, threads);
  return {};
}

int drop_nans(int32_t* keys, int n, bool largest) {
  const float infinity = std::numeric_limits<float>::infinity();
  const auto [low, high] =
      std::minmax({score_key(float_bits(-infinity), largest), score_key(float_bits(infinity), largest)});
  const auto is_nan = [low = low, high = high](int32_t key) { return key < low || key > high; };
  return static_cast<int>(std::remove_if(keys, keys + n, is_nan) - keys);
}

// One histogram per thread; the sum of integers does not depend on the order.
int64_t count_all(ScoreKeys& s, const KeyRange& range, int64_t* histogram) {
  std::vector<int64_t> counts(static_cast<size_t>(s.threads * kBins));
  std::atomic<int64_t> nans{0};
  const int64_t per_thread = (s.chunks.count() + s.threads - 1) / s.threads;
  parallel_for(s.threads, s.threads, [&](int64_t thread) {
    int64_t* own = counts.data() + thread * kBins;
    const int64_t end = std::min(s.chunks.count(), (thread + 1) * per_thread);
    for (int64_t i = thread * per_thread; i < end; i++) {
      s.for_each_block(s.chunks[i], [&](int32_t* keys, int n, int64_t, bool nan) {
        const int numbers = nan ? drop_nans(keys, n, s.largest) : n;
        if (nan) nans.fetch_add(n - numbers);
        add_to_histogram(keys, numbers, range, own);
      });
    }
  });
  for (int64_t i = 0; i < s.threads * kBins; i++) histogram[i % kBins] += counts[static_cast<size_t>(i)];
  return nans.load();
}

void share_ties(const std::vector<int64_t>& equal, int64_t begin, int64_t end, int64_t ties,
                std::vector<int64_t>& share) {
  for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); i++) {
    share[i] = std::min(equal[i], ties);
    ties -= share[i];
  }
}

std::vector<int64_t> write_above(Selection& s, int32_t threshold) {
  std::vector<int64_t> equal(static_cast<size_t>(s.chunks.count()));
  parallel_for(s.chunks.count(), s.threads, [&](int64_t i) {
    s.for_each_block(s.chunks[i], [&](const int32_t* keys, int n, uint16_t* bits, uint32_t) {
      equal[static_cast<size_t>(i)] += s.kernel.above(keys, n, threshold, bits);
    });
  });
  return equal;
}

void write_ties(Selection& s, int32_t threshold, const std::vector<int64_t>& share) {
  parallel_for(s.chunks.count(), s.threads, [&](int64_t i) {
    int64_t left = share[static_cast<size_t>(i)];
    if (left <= 0) return;
    const Chunk chunk = s.chunks[i];
    s.for_each_block(chunk, [&](const int32_t* keys, int n, uint16_t*, uint32_t place) {
      for (int e = 0; e < n && left > 0; e++) {
        if (keys[e] == threshold) {
          s.set_bit(chunk, place + static_cast<uint32_t>(e));
          left--;
        }
      }
    });
  });
}

}  // namespace aimfair::cpu
