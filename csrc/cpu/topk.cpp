#include "aimfair/topk.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "aimfair/random.h"
#include "cpu/topk_keys.h"

// How select finds the k best keys without sorting or storing scores:
//   1. A sample of the keys brackets the k-th best one.
//   2. One pass over the inputs writes the bits of the keys above the bracket and collects those inside: candidates.
//   3. The exact k-th key and the ties it leaves are found among the candidates, whose bits are then set in
//      index order.
// If the bracket misses or there are too many candidates (many equal scores), a radix search over all keys finds the
// k-th one in up to three passes and one more pass writes the bits. Small inputs start there.
//
// The other launchers are the parts of a selection over several processes, each of which sees only its own scores.

namespace aimfair::cpu {
namespace {

constexpr int64_t kSmall = int64_t{1} << 18;      // up to here sampling does not pay
constexpr int64_t kMaxSample = int64_t{1} << 19;  // keys
constexpr int kSampleLanes = 4;                   // keys taken from one group of 16
constexpr int64_t kCandidateShare = 160;  // room for 1/160 of the elements: 8 bytes each, 1.3% of one fp32 input
constexpr int64_t kCandidateRoom = int64_t{1} << 15;  // and more for small inputs

// Writes all bits, given the k-th best key and how many elements with exactly that key are to be taken.
void write_bits(Selection& s, const Threshold& threshold) {
  const auto equal = write_above(s, threshold.key);
  std::vector<int64_t> share(equal.size());
  share_ties(equal, 0, s.chunks.count(), threshold.ties, share);
  write_ties(s, threshold.key, share);
}

// Keys at evenly spaced places with a jitter that depends only on the place.
std::vector<int32_t> sample_keys(const Selection& s) {
  const int64_t groups = std::min(kMaxSample, s.total / 32) / kSampleLanes;
  const int64_t stride = s.total / groups;
  std::vector<int64_t> first_element(static_cast<size_t>(s.count) + 1);
  for (int64_t t = 0; t < s.count; t++) first_element[t + 1] = first_element[t] + s.tensors[t].numel;

  std::vector<int32_t> sample(static_cast<size_t>(groups * kSampleLanes), INT32_MIN);
  constexpr int64_t kGroupsPerTask = 4096;
  parallel_for((groups + kGroupsPerTask - 1) / kGroupsPerTask, s.threads, [&](int64_t task) {
    alignas(64) int32_t keys[16];
    const int64_t end = std::min(groups, (task + 1) * kGroupsPerTask);
    int64_t tensor = std::upper_bound(first_element.begin(), first_element.end(), task * kGroupsPerTask * stride) -
                     first_element.begin() - 1;
    for (int64_t g = task * kGroupsPerTask; g < end; g++) {
      const int64_t element = g * stride + static_cast<int64_t>(splitmix64(static_cast<uint64_t>(g)) % stride);
      while (element >= first_element[tensor + 1]) tensor++;
      const int64_t at = (element - first_element[tensor]) / 16 * 16;
      const int n = static_cast<int>(std::min<int64_t>(16, s.tensors[tensor].numel - at));
      s.kernel.score_keys(s.tensors[tensor], s.spec, s.largest, at, n, keys);
      // A short last group of a tensor gives some keys twice: the sample need not be exact.
      for (int lane = 0; lane < kSampleLanes; lane++) sample[g * kSampleLanes + lane] = keys[lane * 5 % n];
    }
  });
  return sample;
}

Threshold threshold_of(const int32_t* keys, int64_t n, const KeyRange& range, int64_t k) {
  return find_threshold(k, range,
                        [&](const KeyRange& part, int64_t* histogram) { add_to_histogram(keys, n, part, histogram); });
}

// Keys between which the k-th best one very likely lies: six standard deviations of a sample quantile to either side,
// or as much as there is room for among the candidates.
struct Bracket {
  int32_t low, high;
};

Bracket bracket_of(const Selection& s, int64_t k, int64_t capacity) {
  const std::vector<int32_t> sample = sample_keys(s);
  const double size = static_cast<double>(sample.size()), total = static_cast<double>(s.total);
  const double share = static_cast<double>(k) / total;
  const double room = 0.45 * static_cast<double>(capacity) / total * size;
  const double width = std::min(6.0 * std::sqrt(share * (1 - share) * size) + 2, room);
  const auto key_at = [&](double from_best) {
    if (from_best < 1) return INT32_MAX;
    if (from_best > size) return INT32_MIN + 1;
    return threshold_of(sample.data(), static_cast<int64_t>(sample.size()), KeyRange{}, static_cast<int64_t>(from_best))
        .key;
  };
  return {key_at(std::ceil(share * size + width)), key_at(std::floor(share * size - width))};
}

// Elements whose keys fall inside the bracket, chunk by chunk in one arena.
struct Candidates {
  int64_t capacity;
  std::unique_ptr<int32_t[]> keys;  // not initialized, so that unused memory is not touched
  std::unique_ptr<uint32_t[]> places;
  std::vector<int64_t> first, size;  // per chunk
  std::atomic<int64_t> used{0};
  std::atomic<int64_t> above{0};  // elements better than the bracket
  std::atomic<bool> overflow{false};

  Candidates(int64_t capacity_, int64_t chunks)
      : capacity(capacity_),
        keys(std::make_unique_for_overwrite<int32_t[]>(static_cast<size_t>(capacity_))),
        places(std::make_unique_for_overwrite<uint32_t[]>(static_cast<size_t>(capacity_))),
        first(static_cast<size_t>(chunks)),
        size(static_cast<size_t>(chunks)) {}

  // Calls use(key, place) for the candidates of a chunk, in index order.
  template <class Use>
  void for_each(int64_t chunk, const Use& use) const {
    const int64_t begin = first[static_cast<size_t>(chunk)], end = begin + size[static_cast<size_t>(chunk)];
    for (int64_t c = begin; c < end; c++) use(keys[static_cast<size_t>(c)], places[static_cast<size_t>(c)]);
  }
};

// The one pass over the inputs: the bits above the bracket, and the candidates.
void collect(Selection& s, const Bracket& bracket, Candidates& found) {
  parallel_for(s.chunks.count(), s.threads, [&](int64_t i) {
    if (found.overflow.load(std::memory_order_relaxed)) return;
    int32_t keys_inside[kSelectionChunk + 16];
    uint32_t places_inside[kSelectionChunk + 16];
    int64_t inside = 0, above = 0;
    s.for_each_block(s.chunks[i], [&](const int32_t* keys, int n, uint16_t* bits, uint32_t place) {
      int block_above = 0;
      inside += s.kernel.bracket(keys, n, bracket.low, bracket.high, bits, &block_above, place, keys_inside + inside,
                                 places_inside + inside);
      above += block_above;
    });
    found.above.fetch_add(above);
    const int64_t at = found.used.fetch_add(inside);
    if (at + inside > found.capacity) {
      found.overflow.store(true);
      return;
    }
    memcpy(found.keys.get() + at, keys_inside, sizeof(int32_t) * static_cast<size_t>(inside));
    memcpy(found.places.get() + at, places_inside, sizeof(uint32_t) * static_cast<size_t>(inside));
    found.first[static_cast<size_t>(i)] = at;
    found.size[static_cast<size_t>(i)] = inside;
  });
}

// Sets the bits of the `wanted` best candidates.
void choose(Selection& s, const Bracket& bracket, const Candidates& found, int64_t wanted) {
  const Threshold threshold =
      threshold_of(found.keys.get(), found.used.load(), range_of(bracket.low, bracket.high), wanted);
  std::vector<int64_t> equal(static_cast<size_t>(s.chunks.count()));
  parallel_for(s.chunks.count(), s.threads, [&](int64_t i) {
    found.for_each(i, [&](int32_t key, uint32_t) { equal[static_cast<size_t>(i)] += key == threshold.key; });
  });
  std::vector<int64_t> ties(equal.size());
  share_ties(equal, 0, s.chunks.count(), threshold.ties, ties);
  parallel_for(s.chunks.count(), s.threads, [&](int64_t i) {
    const Chunk chunk = s.chunks[i];
    int64_t left = ties[static_cast<size_t>(i)];
    found.for_each(i, [&](int32_t key, uint32_t place) {
      if (key > threshold.key || (key == threshold.key && left-- > 0)) s.set_bit(chunk, place);
    });
  });
}

// Steps 1 to 3 above. Returns false, with nothing decided, if the bracket missed or there were too many candidates.
bool select_by_bracket(Selection& s, int64_t k) {
  const int64_t capacity = s.total / kCandidateShare + kCandidateRoom;
  const Bracket bracket = bracket_of(s, k, capacity);
  Candidates found(capacity, s.chunks.count());
  collect(s, bracket, found);
  if (s.has_nan()) return true;
  const int64_t wanted = k - found.above.load();
  if (found.overflow.load() || wanted < 0 || wanted > found.used.load()) return false;
  if (wanted > 0) choose(s, bracket, found, wanted);
  return true;
}

}  // namespace

void select_bits(Selection& s, int64_t k) {
  if (k == 0) {
    write_bits(s, {INT32_MAX, 0});
  } else if (k == s.total) {
    write_bits(s, {INT32_MIN, 0});
  } else if (s.total <= kSmall || !select_by_bracket(s, k)) {
    write_bits(s, find_threshold(k, KeyRange{},
                                 [&](const KeyRange& range, int64_t* histogram) { count_all(s, range, histogram); }));
  }
}

SelectResult select(const ScoreTensor* tensors, int64_t count, const Score& spec, int64_t k, bool largest,
                    uint32_t* bits, int64_t* rank, int threads) {
  Selection s(tensors, count, spec, largest, threads);
  select_bits(s, k);
  return s.finish(bits, rank);
}

void count_keys(const ScoreTensor* tensors, int64_t count, const Score& spec, uint32_t first, int bits, bool largest,
                int64_t* counts, int threads) {
  ScoreKeys scores(tensors, count, spec, largest, threads);
  counts[kKeyBins] += count_all(scores, {first, bits}, counts);
}

void count_equal(const ScoreTensor* tensors, int64_t count, const Score& spec, uint32_t key, bool largest,
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

SelectResult select_above(const ScoreTensor* tensors, int64_t count, const Score& spec, uint32_t key,
                          const int64_t* ties, bool largest, uint32_t* bits, int64_t* rank, int threads) {
  Selection s(tensors, count, spec, largest, threads);
  const auto equal = write_above(s, signed_key(key));
  std::vector<int64_t> share(equal.size());
  for (int64_t t = 0; t < count; t++) share_ties(equal, s.chunks.first(t), s.chunks.first(t + 1), ties[t], share);
  write_ties(s, signed_key(key), share);
  return s.finish(bits, rank);
}

}  // namespace aimfair::cpu
