#include <algorithm>
#include <atomic>
#include <vector>

#include "aimfair/select.h"
#include "cpu/chunks.h"
#include "cpu/kernels.h"

namespace aimfair::cpu {
namespace {

// One unit's blocks are summed apart and added in order, so that the mean does not depend on the threads.
struct UnitScores {
  const ScoreTensor* tensors;
  const ScoreSpec& spec;
  const Kernels& kernel;
  std::atomic<int64_t> nan_tensor;

  bool scores(int64_t tensor, int64_t begin, int n, float* out) {
    const bool nan = kernel.scores(tensors[tensor], spec, begin, n, out);
    if (nan) lower_to(nan_tensor, tensor);
    return !nan;
  }

  double block_sum(int64_t tensor, int64_t begin, int n) {
    alignas(64) float values[kBlock];
    return scores(tensor, begin, n, values) ? kernel.sum(values, n) : 0.0;
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
      double total = 0;
      for (int64_t at = 0; at < length; at += kBlock) {
        total += block_sum(tensor, unit * length + at, static_cast<int>(std::min(kBlock, length - at)));
      }
      out[unit] = static_cast<float>(total / static_cast<double>(length));
    }
  }

  // A tensor of few long units: their blocks are spread over the threads.
  void long_units(int64_t tensor, int64_t units, int64_t length, float* out, int threads) {
    const int64_t blocks = block_count(length);
    std::vector<double> partial(static_cast<size_t>(blocks));
    for (int64_t unit = 0; unit < units; unit++) {
      constexpr int64_t kBlocksPerTask = 32;
      parallel_for((blocks + kBlocksPerTask - 1) / kBlocksPerTask, threads, [&](int64_t task) {
        const int64_t end = std::min(blocks, (task + 1) * kBlocksPerTask);
        for (int64_t block = task * kBlocksPerTask; block < end; block++) {
          const int n = static_cast<int>(std::min(kBlock, length - block * kBlock));
          partial[static_cast<size_t>(block)] = block_sum(tensor, unit * length + block * kBlock, n);
        }
      });
      double total = 0;
      for (const double sum : partial) total += sum;
      out[unit] = static_cast<float>(total / static_cast<double>(length));
    }
  }
};

}  // namespace

SelectResult unit_scores(const ScoreTensor* tensors, int64_t count, const ScoreSpec& spec, const int64_t* units,
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
