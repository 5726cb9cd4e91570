#include <numeric>

#include "aimfair/select.h"
#include "cpu/selection.h"

// The parts of a selection over the scores of several processes, each of which sees its own only.

namespace aimfair::cpu {

void count_keys(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, uint32_t first, int bits,
                bool largest, int64_t* counts, int threads) {
  ScoreKeys scores(tensors, count, spec, largest, threads);
  counts[kKeyBins] += count_all(scores, {first, bits}, counts);
}

void count_equal(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, uint32_t key, bool largest,
                 int64_t* counts, int threads) {
  ScoreKeys scores(tensors, count, spec, largest, threads);
  std::vector<int64_t> equal(static_cast<size_t>(scores.chunks.count()));
  parallel_for(scores.chunks.count(), scores.threads, [&](int64_t i) {
    scores.for_each_block(scores.chunks[i], [&](int32_t* keys, int n, int64_t, bool nan) {
      const int numbers = nan ? drop_nans(keys, n, largest) : n;
      equal[static_cast<size_t>(i)] += std::count(keys, keys + numbers, signed_key(key));
    });
  });
  for (int64_t t = 0; t < count; t++) {
    counts[t] =
        std::accumulate(equal.begin() + scores.chunks.first(t), equal.begin() + scores.chunks.first(t + 1), counts[t]);
  }
}

SelectResult select_above(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, uint32_t key,
                          const int64_t* ties, bool largest, uint32_t* bits, int64_t* rank, int threads) {
  Selection s(tensors, count, spec, largest, threads);
  const auto equal = write_above(s, signed_key(key));
  std::vector<int64_t> share(equal.size());
  for (int64_t t = 0; t < count; t++) share_ties(equal, s.chunks.first(t), s.chunks.first(t + 1), ties[t], share);
  write_ties(s, signed_key(key), share);
  return s.finish(bits, rank);
}

}  // namespace aimfair::cpu
