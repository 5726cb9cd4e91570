#include "aimfair/select.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "aimfair/mask_ops.h"
#include "aimfair/random.h"
#include "cpu/chunks.h"
#include "cpu/kernels.h"
#include "cpu/threshold.h"

// How the k best keys are found without sorting or storing scores:
//   1. A sample of the keys brackets the k-th best one.
//   2. One pass over the inputs writes the bits of the keys above the bracket and collects those inside: candidates.
//   3. The exact k-th key and the ties it leaves are found among the candidates, whose bits are then set in index
//   order.
// If the bracket misses or there are too many candidates (many equal scores), a radix search over all keys finds the
// k-th one in up to three passes and one more pass writes the bits. Small inputs go there at once.

namespace aimfair::cpu {
namespace {

constexpr int64_t kChunk = 64 * kBlock;           // elements
constexpr int64_t kSmall = int64_t{1} << 18;      // up to here sampling does not pay
constexpr int64_t kMaxSample = int64_t{1} << 18;  // keys
constexpr int kSampleLanes = 4;                   // keys taken from one group of 16
constexpr int64_t kCandidateShare = 96;           // room for 1/96 of the elements: 8 bytes each, 2% of one fp32 input

// The inputs, and the bits as they are being made.
struct Selection {
  const ScoreTensor* tensors;
  int64_t count;
  const ScoreSpec& spec;
  bool largest;
  int threads;
  const Kernels& kernel;
  Chunks chunks;
  int64_t total;
  std::vector<int64_t> first_block;
  std::vector<uint32_t> bits;  // apart from the caller's, which stay as they are if a score is NaN
  std::atomic<int64_t> nan_tensor;

  Selection(const ScoreTensor* tensors_, int64_t count_, const ScoreSpec& spec_, bool largest_, int threads_)
      : tensors(tensors_),
        count(count_),
        spec(spec_),
        largest(largest_),
        threads(thread_count(threads_)),
        kernel(kernels()),
        chunks(count_, kChunk, [&](int64_t t) { return tensors_[t].numel; }),
        total(0),
        first_block(static_cast<size_t>(count_) + 1),
        nan_tensor(count_) {
    for (int64_t t = 0; t < count; t++) {
      total += tensors[t].numel;
      first_block[t + 1] = first_block[t] + block_count(tensors[t].numel);
    }
    bits.resize(static_cast<size_t>(first_block.back() * kWordsPerBlock));
  }

  bool has_nan() const { return nan_tensor.load() < count; }

  void note_nan(int64_t tensor) {
    for (int64_t seen = nan_tensor.load(); tensor < seen && !nan_tensor.compare_exchange_weak(seen, tensor);) {
    }
  }

  // Calls use(keys, n, block's bits, place of its first element in the chunk) for every block of a chunk.
  template <class Use>
  void for_each_block(const Chunk& chunk, const Use& use) {
    alignas(64) int32_t keys[kBlock];
    const ScoreTensor& tensor = tensors[chunk.tensor];
    uint32_t* words = bits.data() + first_block[chunk.tensor] * kWordsPerBlock;
    for (int64_t at = chunk.begin; at < chunk.end; at += kBlock) {
      const int n = static_cast<int>(std::min(kBlock, chunk.end - at));
      if (kernel.score_keys(tensor, spec, largest, at, n, keys)) note_nan(chunk.tensor);
      use(keys, n, reinterpret_cast<uint16_t*>(words + at / 32), static_cast<uint32_t>(at - chunk.begin));
    }
  }

  void set_bit(const Chunk& chunk, uint32_t place) {
    const int64_t at = chunk.begin + place;
    bits[static_cast<size_t>(first_block[chunk.tensor] * kWordsPerBlock + at / 32)] |= 1u << (at % 32);
  }
};

// Gives each chunk its part of `ties`: as many as it has, in index order.
std::vector<int64_t> share_ties(const std::vector<int64_t>& equal, int64_t ties) {
  std::vector<int64_t> share(equal.size());
  for (size_t i = 0; i < equal.size(); i++) {
    share[i] = std::min(equal[i], ties);
    ties -= share[i];
  }
  return share;
}

// Writes all bits, given the k-th best key and how many elements with exactly that key are to be taken.
void write_bits(Selection& s, const Threshold& threshold) {
  std::vector<int64_t> equal(static_cast<size_t>(s.chunks.count()));
  parallel_for(s.chunks.count(), s.threads, [&](int64_t i) {
    s.for_each_block(s.chunks[i], [&](const int32_t* keys, int n, uint16_t* bits, uint32_t) {
      equal[static_cast<size_t>(i)] += s.kernel.above(keys, n, threshold.key, bits);
    });
  });
  const auto share = share_ties(equal, threshold.ties);
  parallel_for(s.chunks.count(), s.threads, [&](int64_t i) {
    int64_t left = share[static_cast<size_t>(i)];
    if (left == 0) return;
    const Chunk chunk = s.chunks[i];
    s.for_each_block(chunk, [&](const int32_t* keys, int n, uint16_t*, uint32_t place) {
      for (int e = 0; e < n && left > 0; e++) {
        if (keys[e] == threshold.key) {
          s.set_bit(chunk, place + static_cast<uint32_t>(e));
          left--;
        }
      }
    });
  });
}

// Histograms of all keys. One per thread, added up: counts do not depend on the order.
void count_all(Selection& s, const KeyRange& range, int64_t* histogram) {
  std::vector<int64_t> counts(static_cast<size_t>(s.threads * kBins));
  const int64_t per_thread = (s.chunks.count() + s.threads - 1) / s.threads;
  parallel_for(s.threads, s.threads, [&](int64_t thread) {
    int64_t* own = counts.data() + thread * kBins;
    const int64_t end = std::min(s.chunks.count(), (thread + 1) * per_thread);
    for (int64_t i = thread * per_thread; i < end; i++) {
      s.for_each_block(s.chunks[i], [&](const int32_t* keys, int n, uint16_t*, uint32_t) {
        // The bits of this block are written later; counting reads the inputs only.
        count_keys(keys, n, range, own);
      });
    }
  });
  for (int64_t i = 0; i < s.threads * kBins; i++) histogram[i % kBins] += counts[static_cast<size_t>(i)];
}

// Keys at evenly spread places with a jitter that depends on nothing but the place.
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
      // A tensor's short last group gives some keys twice; the sample only has to be good, not exact.
      for (int lane = 0; lane < kSampleLanes; lane++) sample[g * kSampleLanes + lane] = keys[lane * 5 % n];
    }
  });
  return sample;
}

Threshold threshold_of(const std::vector<int32_t>& keys, int64_t n, const KeyRange& range, int64_t k) {
  return find_threshold(k, range,
                        [&](const KeyRange& part, int64_t* histogram) { count_keys(keys.data(), n, part, histogram); });
}

// Elements whose keys fall inside the bracket, chunk by chunk in one arena.
struct Candidates {
  std::vector<int32_t> keys;
  std::vector<uint32_t> places;
  std::vector<int64_t> first, size;  // per chunk
  int64_t used = 0;

  Candidates(int64_t capacity, int64_t chunks)
      : keys(static_cast<size_t>(capacity)),
        places(static_cast<size_t>(capacity)),
        first(static_cast<size_t>(chunks)),
        size(static_cast<size_t>(chunks)) {}
};

// Steps 1 to 3 above. False if the bracket missed or there were too many candidates: nothing is decided then.
bool select_by_bracket(Selection& s, int64_t k) {
  const int64_t capacity = s.total / kCandidateShare + kChunk;
  const std::vector<int32_t> sample = sample_keys(s);
  const double size = static_cast<double>(sample.size()), share = static_cast<double>(k) / static_cast<double>(s.total);
  // Six standard deviations of a sample quantile, or what the arena can hold.
  const double room = 0.45 * static_cast<double>(s.total / kCandidateShare) / static_cast<double>(s.total) * size;
  const double width = std::min(6.0 * std::sqrt(share * (1 - share) * size) + 2, room);
  const auto sample_key = [&](double from_best) {
    if (from_best < 1) return INT32_MAX;
    if (from_best > size) return INT32_MIN + 1;
    return threshold_of(sample, static_cast<int64_t>(sample.size()), KeyRange{}, static_cast<int64_t>(from_best)).key;
  };
  const int32_t high = sample_key(std::floor(share * size - width)), low = sample_key(std::ceil(share * size + width));

  Candidates found(capacity, s.chunks.count());
  std::atomic<int64_t> used{0}, above{0};
  std::atomic<bool> overflow{false};
  parallel_for(s.chunks.count(), s.threads, [&](int64_t i) {
    if (overflow.load(std::memory_order_relaxed)) return;
    // A block's candidates are gathered apart and moved to the arena when their number is known.
    int32_t keys_inside[kChunk / 32 + kBlock + 16];
    uint32_t places_inside[kChunk / 32 + kBlock + 16];
    int inside = 0;
    int64_t chunk_above = 0;
    bool full = false;
    s.for_each_block(s.chunks[i], [&](const int32_t* keys, int n, uint16_t* bits, uint32_t place) {
      if (full) return;
      int block_above = 0;
      inside +=
          s.kernel.bracket(keys, n, low, high, bits, &block_above, place, keys_inside + inside, places_inside + inside);
      chunk_above += block_above;
      full = inside > kChunk / 32;
    });
    const int64_t at = used.fetch_add(inside);
    if (full || at + inside > capacity) {
      overflow.store(true);
      return;
    }
    above.fetch_add(chunk_above);
    memcpy(found.keys.data() + at, keys_inside, sizeof(int32_t) * static_cast<size_t>(inside));
    memcpy(found.places.data() + at, places_inside, sizeof(uint32_t) * static_cast<size_t>(inside));
    found.first[static_cast<size_t>(i)] = at;
    found.size[static_cast<size_t>(i)] = inside;
  });
  if (s.has_nan()) return true;
  if (overflow.load()) return false;
  const int64_t wanted = k - above.load();
  if (wanted < 0 || wanted > used.load()) return false;
  if (wanted == 0) return true;

  const Threshold threshold = threshold_of(found.keys, used.load(), range_of(low, high), wanted);
  std::vector<int64_t> equal(static_cast<size_t>(s.chunks.count()));
  const auto for_each_candidate = [&](int64_t chunk, const auto& use) {
    const int64_t begin = found.first[static_cast<size_t>(chunk)];
    for (int64_t c = begin; c < begin + found.size[static_cast<size_t>(chunk)]; c++) {
      use(found.keys[static_cast<size_t>(c)], found.places[static_cast<size_t>(c)]);
    }
  };
  parallel_for(s.chunks.count(), s.threads, [&](int64_t i) {
    for_each_candidate(i, [&](int32_t key, uint32_t) { equal[static_cast<size_t>(i)] += key == threshold.key; });
  });
  const auto ties = share_ties(equal, threshold.ties);
  parallel_for(s.chunks.count(), s.threads, [&](int64_t i) {
    const Chunk chunk = s.chunks[i];
    int64_t left = ties[static_cast<size_t>(i)];
    for_each_candidate(i, [&](int32_t key, uint32_t place) {
      if (key > threshold.key || (key == threshold.key && left-- > 0)) s.set_bit(chunk, place);
    });
  });
  return true;
}

}  // namespace

SelectResult select(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, int64_t k, bool largest,
                    uint32_t* bits, int64_t* rank, int threads) {
  Selection s(tensors, count, spec, largest, threads);
  if (k == 0) {
    write_bits(s, {INT32_MAX, 0});
  } else if (k == s.total) {
    write_bits(s, {INT32_MIN, 0});
  } else if (s.total <= kSmall || !select_by_bracket(s, k)) {
    write_bits(s, find_threshold(k, KeyRange{},
                                 [&](const KeyRange& range, int64_t* histogram) { count_all(s, range, histogram); }));
  }
  if (s.has_nan()) return {s.nan_tensor.load()};
  if (!s.bits.empty()) memcpy(bits, s.bits.data(), s.bits.size() * sizeof(uint32_t));
  cpu::rank(bits, s.first_block.back(), rank, threads);
  return {};
}

}  // namespace aimfair::cpu
