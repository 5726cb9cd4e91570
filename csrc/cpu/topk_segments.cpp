#include <algorithm>
#include <atomic>
#include <functional>
#include <unordered_map>
#include <vector>

#include "aimfair/topk.h"
#include "cpu/topk_keys.h"

// select in every segment by itself.
//
// Short segments are shared among the threads, several at a time. A thread computes the keys of one and keeps them in
// cache, halves the range of keys that holds the k-th best one until few are left in it, and looks for it among these.
// In segments of a few elements all pairs are compared instead. A task begins at a word of the mask, so that no two
// threads write one.
//
// Longer segments, and those of several tensors, are selected one after another by all threads, as in topk.cpp.

namespace aimfair::cpu {
namespace {

constexpr int64_t kShort = int64_t{1} << 18;   // elements; a segment up to here is the work of one thread
constexpr int64_t kTask = 16 * kBlock;         // elements of short segments that a thread takes at a time
constexpr int64_t kTiny = 32;                  // elements; up to here all pairs are compared
constexpr int64_t kSerial = int64_t{1} << 15;  // elements; a group up to here does not pay for several threads

constexpr int64_t kNear = int64_t{1} << 21;  // keys; the scores of a quarter of an octave

// Among so many candidates the k-th best key is found by partitioning.
int64_t few(int64_t length) { return 64 + length / 64; }

int64_t word_count(int64_t n) { return (n + 31) / 32; }

// Sets the n bits from bit `at` of `to`, which are zero, to those of `from`, whose bits after n are zero.
void put_bits(uint32_t* to, int64_t at, const uint32_t* from, int64_t n) {
  to += at / 32;
  const int shift = static_cast<int>(at % 32);
  const int64_t words = word_count(n);
  if (shift == 0) {
    for (int64_t i = 0; i < words; i++) to[i] |= from[i];
    return;
  }
  for (int64_t i = 0; i < words; i++) {
    to[i] |= from[i] << shift;
    if (const uint32_t rest = from[i] >> (32 - shift)) to[i + 1] |= rest;
  }
}

// The k best of n <= 32 keys, as bits.
template <int kLength>  // n, or 0 if it is known at run time only
uint32_t best_of_few(const int32_t* keys, int length, int k) {
  const int n = kLength ? kLength : length;
  int better[kLength ? kLength : kTiny] = {};  // keys that precede each in the order of the selection
  for (int j = 1; j < n; j++) {
    for (int i = 0; i < j; i++) {
      const int later = keys[j] > keys[i];
      better[i] += later;
      better[j] += 1 - later;
    }
  }
  uint32_t bits = 0;
  for (int i = 0; i < n; i++) bits |= static_cast<uint32_t>(better[i] < k) << i;
  return bits;
}

// Memory of one thread.
struct Scratch {
  std::vector<int32_t> keys;   // of a segment, padded as those of score_keys
  std::vector<uint32_t> bits;  // of whole blocks
  std::vector<int32_t> candidate_keys, sorted;
  std::vector<uint32_t> candidate_places;
  int64_t threshold = 0;  // the k-th best key of the segment before, which may be near that of the next one

  explicit Scratch(int64_t length)
      : keys(static_cast<size_t>(length + 16)),
        bits(static_cast<size_t>(block_count(length) * kWordsPerBlock)),
        candidate_keys(static_cast<size_t>(few(length) + 16)),
        sorted(static_cast<size_t>(few(length) + 16)),
        candidate_places(static_cast<size_t>(few(length) + 16)) {}
};

// Writes the bits of the n keys that are greater than the threshold.
void write_greater(const Kernels& kernel, int64_t n, int32_t threshold, Scratch& s) {
  for (int64_t at = 0; at < n; at += kBlock) {
    kernel.above(s.keys.data() + at, static_cast<int>(std::min(kBlock, n - at)), threshold,
                 reinterpret_cast<uint16_t*>(s.bits.data() + at / 32));
  }
}

// Writes the bits of the k best of the n keys in `s.keys`, 0 < k <= n; none is INT32_MIN.
void best_of_keys(const Kernels& kernel, int64_t n, int64_t k, Scratch& s) {
  if (k == n) return write_greater(kernel, n, INT32_MIN, s);
  // The k-th best key is above `low` and not above `high`.
  int64_t low = INT32_MIN, high = INT32_MAX, above_low = n, above_high = 0;
  for (int step = 0; above_low - above_high > few(n) && high - low > 1; step++) {
    const int64_t near = step < 2 ? s.threshold + (step == 0 ? -kNear : kNear) : low;
    const int64_t middle = low < near && near < high ? near : low + (high - low) / 2;
    const int64_t above = kernel.count_greater(s.keys.data(), n, static_cast<int32_t>(middle));
    if (above >= k) {
      low = middle;
      above_low = above;
    } else {
      high = middle;
      above_high = above;
    }
  }
  const int64_t wanted = k - above_high;  // of those in between
  const auto least = static_cast<int32_t>(low + 1), greatest = static_cast<int32_t>(high);
  const auto set = [&](int64_t place) { s.bits[static_cast<size_t>(place / 32)] |= 1u << (place % 32); };
  if (above_low - above_high > few(n)) {  // all equal
    write_greater(kernel, n, greatest, s);
    s.threshold = greatest;
    int64_t left = wanted;
    for (int64_t i = 0; left > 0; i++) {
      if (s.keys[static_cast<size_t>(i)] != greatest) continue;
      set(i);
      left--;
    }
    return;
  }
  int64_t candidates = 0;
  for (int64_t at = 0; at < n; at += kBlock) {
    int above = 0;
    candidates +=
        kernel.bracket(s.keys.data() + at, static_cast<int>(std::min(kBlock, n - at)), least, greatest,
                       reinterpret_cast<uint16_t*>(s.bits.data() + at / 32), &above, static_cast<uint32_t>(at),
                       s.candidate_keys.data() + candidates, s.candidate_places.data() + candidates);
  }
  const auto begin = s.sorted.begin(), end = std::copy_n(s.candidate_keys.begin(), candidates, begin);
  std::nth_element(begin, begin + (wanted - 1), end, std::greater<>());
  const int32_t threshold = begin[wanted - 1];
  s.threshold = threshold;
  int64_t ties = wanted - std::count_if(begin, end, [&](int32_t key) { return key > threshold; });
  for (size_t c = 0; c < static_cast<size_t>(candidates); c++) {
    const int32_t key = s.candidate_keys[c];
    if (key > threshold || (key == threshold && ties-- > 0)) set(s.candidate_places[c]);
  }
}

uint32_t* words_of(const Selection& s, int64_t tensor) {
  return s.bits.get() + s.first_block[static_cast<size_t>(tensor)] * kWordsPerBlock;
}

// -- short segments of one tensor each --------------------------------------------------------------------------------

struct ShortSegments {
  int64_t tensor, units, length, k;
  int64_t per_task;  // units

  ShortSegments(int64_t tensor_, int64_t units_, int64_t length_, int64_t k_)
      : tensor(tensor_), units(units_), length(length_), k(k_) {
    const int64_t aligned = std::max<int64_t>(1, 32 / (length & -length));  // so many fill whole words
    per_task = std::max<int64_t>(1, kTask / (length * aligned)) * aligned;
  }

  int64_t tasks() const { return (units + per_task - 1) / per_task; }
};

// Units [first, end) of up to kTiny elements.
void select_tiny(Selection& s, const ShortSegments& segments, int64_t first, int64_t end) {
  alignas(64) int32_t keys[kBlock];
  uint32_t* words = words_of(s, segments.tensor);
  const int length = static_cast<int>(segments.length), k = static_cast<int>(segments.k);
  const auto best = length == 2   ? best_of_few<2>
                    : length == 4 ? best_of_few<4>
                    : length == 8 ? best_of_few<8>
                                  : best_of_few<0>;
  const int64_t at_once = kBlock / length;
  for (int64_t unit = first; unit < end; unit += at_once) {
    const int count = static_cast<int>(std::min(at_once, end - unit));
    int64_t at = unit * length;
    if (s.kernel.score_keys(s.tensors[segments.tensor], s.spec, s.largest, at, count * length, keys)) {
      lower_to(s.nan_tensor, segments.tensor);
    }
    for (int i = 0; i < count; i++, at += length) {
      const uint64_t bits = static_cast<uint64_t>(best(keys + i * length, length, k)) << (at % 32);
      words[at / 32] |= static_cast<uint32_t>(bits);
      if (bits >> 32) words[at / 32 + 1] |= static_cast<uint32_t>(bits >> 32);
    }
  }
}

// Units [first, end) of more elements.
void select_short(Selection& s, const ShortSegments& segments, int64_t first, int64_t end, Scratch& scratch) {
  for (int64_t unit = first; unit < end; unit++) {
    const int64_t at = unit * segments.length;
    bool nan = false;
    for (int64_t i = 0; i < segments.length; i += kBlock) {
      const int n = static_cast<int>(std::min(kBlock, segments.length - i));
      nan |= s.kernel.score_keys(s.tensors[segments.tensor], s.spec, s.largest, at + i, n, scratch.keys.data() + i);
    }
    if (nan) {
      lower_to(s.nan_tensor, segments.tensor);
    } else if (segments.k > 0) {
      best_of_keys(s.kernel, segments.length, segments.k, scratch);
      put_bits(words_of(s, segments.tensor), at, scratch.bits.data(), segments.length);
    }
  }
}

// Writes the bits of all of them.
void select_all_short(Selection& s, const std::vector<ShortSegments>& list) {
  std::vector<int64_t> first_task = {0};
  int64_t longest = 0;
  for (const ShortSegments& segments : list) {
    first_task.push_back(first_task.back() + segments.tasks());
    longest = std::max(longest, segments.length);
  }
  const int64_t tasks = first_task.back(), workers = std::min<int64_t>(s.threads, tasks);
  std::vector<Scratch> scratch;
  for (int64_t i = 0; i < workers; i++) scratch.emplace_back(longest);
  std::atomic<int64_t> next{0};
  parallel_for(workers, s.threads, [&](int64_t worker) {
    for (int64_t task = next.fetch_add(1); task < tasks; task = next.fetch_add(1)) {
      const auto place =
          static_cast<size_t>(std::upper_bound(first_task.begin(), first_task.end(), task) - first_task.begin() - 1);
      const ShortSegments& segments = list[place];
      const int64_t first = (task - first_task[place]) * segments.per_task;
      const int64_t end = std::min(first + segments.per_task, segments.units);
      uint32_t* words = words_of(s, segments.tensor);
      // The last task of a tensor also clears the rest of its last block.
      std::fill(words + first * segments.length / 32,
                end < segments.units ? words + end * segments.length / 32 : words_of(s, segments.tensor + 1), 0);
      if (segments.length <= kTiny) {
        select_tiny(s, segments, first, end);
      } else {
        select_short(s, segments, first, end, scratch[static_cast<size_t>(worker)]);
      }
    }
  });
}

// -- long segments, and those of several tensors ----------------------------------------------------------------------

// Writes the bits of the k best in each of the runs of a tensor.
void select_long(Selection& s, int64_t index, int64_t length, int64_t k) {
  const ScoreTensor& tensor = s.tensors[index];
  std::fill(words_of(s, index), words_of(s, index + 1), 0);
  for (int64_t at = 0; at < tensor.numel; at += length) {
    const auto from = [&](const float* input) { return input ? input + at : nullptr; };
    const ScoreTensor run = {length, from(tensor.a), from(tensor.b), from(tensor.c), from(tensor.d)};
    Selection one(&run, 1, s.spec, s.largest, s.threads);
    select_bits(one, k);
    if (one.has_nan()) lower_to(s.nan_tensor, index);
    put_bits(words_of(s, index), at, one.bits.get(), length);
  }
}

// Writes the bits of the k best of some tensors together.
void select_group(Selection& s, const std::vector<int64_t>& members, int64_t k) {
  std::vector<ScoreTensor> list;
  int64_t elements = 0;
  for (const int64_t t : members) {
    list.push_back(s.tensors[t]);
    elements += s.tensors[t].numel;
  }
  Selection together(list.data(), static_cast<int64_t>(list.size()), s.spec, s.largest,
                     elements <= kSerial ? 1 : s.threads);
  select_bits(together, k);
  if (together.has_nan()) lower_to(s.nan_tensor, members[static_cast<size_t>(together.nan_tensor.load())]);
  for (size_t i = 0; i < members.size(); i++) {
    const auto first = static_cast<int64_t>(i);
    std::copy(words_of(together, first), words_of(together, first + 1), words_of(s, members[i]));
  }
}

// The tensors of each segment of several.
std::vector<std::vector<int64_t>> groups_of(const int64_t* groups, int64_t count) {
  std::vector<std::vector<int64_t>> members;
  std::unordered_map<int64_t, size_t> known;
  for (int64_t t = 0; groups && t < count; t++) {
    const auto [found, is_new] = known.try_emplace(groups[t], members.size());
    if (is_new) members.emplace_back();
    members[found->second].push_back(t);
  }
  std::erase_if(members, [](const std::vector<int64_t>& tensors) { return tensors.size() == 1; });
  return members;
}

}  // namespace

SelectResult select_segments(const ScoreTensor* tensors, int64_t count, const Score& spec, const Segments& segments,
                             bool largest, uint32_t* bits, int64_t* rank, int threads) {
  Selection s(tensors, count, spec, largest, threads);
  const auto groups = groups_of(segments.groups, count);
  std::vector<bool> grouped(static_cast<size_t>(count));
  for (const auto& members : groups) {
    for (const int64_t t : members) grouped[static_cast<size_t>(t)] = true;
  }
  std::vector<ShortSegments> list;
  for (int64_t t = 0; t < count; t++) {
    if (grouped[static_cast<size_t>(t)] || tensors[t].numel == 0) continue;
    const int64_t units = segments.units[t], length = tensors[t].numel / units;
    if (length <= kShort) {
      list.emplace_back(t, units, length, segments.ks[t]);
    } else {
      select_long(s, t, length, segments.ks[t]);
    }
  }
  select_all_short(s, list);
  for (const auto& members : groups) select_group(s, members, segments.ks[members.front()]);
  return s.finish(bits, rank);
}

}  // namespace aimfair::cpu
