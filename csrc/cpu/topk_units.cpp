#include <algorithm>
#include <atomic>
#include <vector>

#include "aimfair/topk.h"
#include "cpu/chunks.h"
#include "cpu/kernels.h"

namespace aimfair::cpu {
namespace {

// Sums are taken in the order of aimfair/topk.h, so that the mean does not depend on the number of threads.
struct UnitScores {
  const ScoreTensor* tensors;
  const Score& spec;
  const Kernels& kernel;
  std::atomic<int64_t> nan_tensor;

  bool scores(int64_t tensor, int64_t begin, int n, float* out) {
    const bool nan = kernel.scores(tensors[tensor], spec, begin, n, out);
    if (nan) lower_to(nan_tensor, tensor);
    return !nan;
  }

  double block_sum(int64_t tensor, int64_t begin, int64_t n) {
    alignas(64) float values[kBlock];
    const int count = static_cast<int>(n);
    return scores(tensor, begin, count, values) ? kernel.sum(values, count) : 0.0;
  }

  // Span `span` of the unit that begins at `begin`.
  double span_sum(int64_t tensor, int64_t begin, int64_t length, int64_t span) {
    double blocks[kBlocksPerSpan] = {};
    const int64_t first = span * kSpan, end = std::min(length, first + kSpan);
    for (int64_t at = first; at < end; at += kBlock) {
      blocks[(at - first) / kBlock] = block_sum(tensor, begin + at, std::min(kBlock, end - at));
    }
    return tree_sum<kBlocksPerSpan>(blocks);
  }

  double unit_sum(int64_t tensor, int64_t begin, int64_t length) {
    if (length <= kBlock) return block_sum(tensor, begin, length);
    if (length <= kSpan) return span_sum(tensor, begin, length, 0);
    double lanes[kSpanLanes] = {};
    for (int64_t span = 0; span < span_count(length); span++) {
      lanes[span % kSpanLanes] += span_sum(tensor, begin, length, span);
    }
    return tree_sum<kSpanLanes>(lanes);
  }

  // Units [begin, end) of `length` elements each.
  void short_units(int64_t tensor, int64_t begin, int64_t end, int64_t length, float* out) {
    if (length == 1) {  // the score itself
      for (int64_t at = begin; at < end; at += kBlock) {
        scores(tensor, at, static_cast<int>(std::min(kBlock, end - at)), out + at);
      }
      return;
    }
    for (int64_t unit = begin; unit < end; unit++) {
      out[unit] = static_cast<float>(unit_sum(tensor, unit * length, length) / static_cast<double>(length));
    }
  }

  // A tensor of few long units: the threads share the spans of each.
  void long_units(int64_t tensor, int64_t units, int64_t length, float* out, int threads) {
    std::vector<double> spans(static_cast<size_t>(span_count(length)));
    for (int64_t unit = 0; unit < units; unit++) {
      parallel_for(span_count(length), threads, [&](int64_t span) {
        spans[static_cast<size_t>(span)] = span_sum(tensor, unit * length, length, span);
      });
      double lanes[kSpanLanes] = {};
      for (size_t span = 0; span < spans.size(); span++) lanes[span % kSpanLanes] += spans[span];
      out[unit] = static_cast<float>(tree_sum<kSpanLanes>(lanes) / static_cast<double>(length));
    }
  }
};

}  // namespace

SelectResult unit_scores(const ScoreTensor* tensors, int64_t count, const Score& spec, const int64_t* units,
                         float* const* out, int threads) {
  constexpr int64_t kChunk = 64 * kBlock;  // elements
  UnitScores work{tensors, spec, kernels(), {count}};
  const auto length = [&](int64_t t) { return units[t] == 0 ? 0 : tensors[t].numel / units[t]; };
  const auto is_long = [&](int64_t t) { return length(t) > kChunk; };
  for (int64_t t = 0; t < count; t++) {
    if (is_long(t)) work.long_units(t, units[t], length(t), out[t], threads);
  }
  // The short units of all tensors in one schedule; a tensor of many elements has several tasks.
  const auto units_per_task = [&](int64_t t) { return std::max<int64_t>(1, kChunk / std::max<int64_t>(1, length(t))); };
  const Chunks tasks(count, 1, [&](int64_t t) {
    return is_long(t) || length(t) == 0 ? 0 : (units[t] + units_per_task(t) - 1) / units_per_task(t);
  });
  parallel_for(tasks.count(), threads, [&](int64_t i) {
    const Chunk task = tasks[i];
    const int64_t begin = task.begin * units_per_task(task.tensor);
    const int64_t end = std::min(units[task.tensor], begin + units_per_task(task.tensor));
    work.short_units(task.tensor, begin, end, length(task.tensor), out[task.tensor]);
  });
  return {work.nan_tensor.load() < count ? work.nan_tensor.load() : -1};
}

}  // namespace aimfair::cpu
