#include <algorithm>

#include "cuda/topk_select.h"

// The mask: the search for the k-th best key ends among the candidates. Then every thread block takes a run of mask
// blocks, and counts what it holds of better and of equal keys; the last one adds these up, and all go through their
// runs again and write bits and rank.

namespace aimfair::cuda {
namespace {

constexpr int kThreads = kSearchThreads;
constexpr int kWarps = kThreads / kWarp;

// Eight lanes read the candidates of one mask block.
constexpr int kShare = 8;
constexpr int kBlocksPerWarp = kWarp / kShare;
constexpr int kTile = kWarps * kBlocksPerWarp;  // mask blocks of a thread block at a time

// The k-th best key, and the ends of the bracket.
struct Threshold {
  uint32_t key;
  int64_t ties;
  uint32_t low, high;

  __device__ explicit Threshold(const SelectState* state)
      : key(state->threshold.first),
        ties(state->threshold.k),
        low(state->bracket[0].first),
        high(state->bracket[1].first) {}
};

// The keys of a mask block that are better than the threshold, and in the upper half those that equal it. All lanes
// must call; the eight of a block get the same.
__device__ __forceinline__ unsigned tally(const Candidates& found, int64_t block, const BlockCounts& counts,
                                          const Threshold& threshold) {
  const uint32_t first = counts.inside > 0 ? found.first[block] : 0;
  unsigned both = 0;
  for (int i = lane_id() % kShare; i < counts.inside; i += kShare) {
    const uint32_t key = found.keys[first + i];
    both += static_cast<unsigned>(key > threshold.key) + (static_cast<unsigned>(key == threshold.key) << 16);
  }
#pragma unroll
  for (int distance = kShare / 2; distance > 0; distance /= 2) both += __shfl_xor_sync(kAllLanes, both, distance);
  both += counts.above;
  if (threshold.high > threshold.key) both += counts.at_high;
  if (threshold.high == threshold.key) both += static_cast<unsigned>(counts.at_high) << 16;
  if (threshold.low == threshold.key) both += static_cast<unsigned>(counts.at_low) << 16;
  return both;
}

// Counts the run of mask blocks from `begin` to `end`; runs[i] becomes what the runs before i hold.
__device__ __forceinline__ void count_runs(const Candidates& found, const Threshold& threshold, int64_t begin,
                                           int64_t end, RunCounts* runs, Meeting* meeting) {
  int64_t better = 0, equal = 0;
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const int64_t block = tile + threadIdx.x / kShare;
    const unsigned both = tally(found, block, block < end ? found.counts[block] : BlockCounts{}, threshold);
    better += both & 0xffff;
    equal += both >> 16;
  }
  better = block_sum<kThreads>(lane_id() % kShare == 0 ? better : 0);
  equal = block_sum<kThreads>(lane_id() % kShare == 0 ? equal : 0);
  if (threadIdx.x == 0) runs[blockIdx.x] = {better, equal};
  meet(meeting, [&] {
    int64_t before_better = 0, before_equal = 0;
    for (int64_t first = 0; first < gridDim.x; first += kThreads) {
      const int64_t i = first + threadIdx.x;
      const RunCounts own = i < gridDim.x ? runs[i] : RunCounts{0, 0};
      int64_t all_better, all_equal;
      const int64_t until_better = before_better + block_exclusive_sum<kThreads>(own.better, &all_better);
      const int64_t until_equal = before_equal + block_exclusive_sum<kThreads>(own.equal, &all_equal);
      if (i < gridDim.x) runs[i] = {until_better, until_equal};
      before_better += all_better;
      before_equal += all_equal;
    }
  });
}

// Of the ties that are left when a mask block begins, as many as matter: none, some, or more than it can have.
__device__ __forceinline__ int ties_left(int64_t left) {
  return left < 0 ? 0 : left > kBlock ? static_cast<int>(kBlock) + 1 : static_cast<int>(left);
}

// Does nothing if there is a NaN.
template <int kTerm, int kDivisor>
__global__ void __launch_bounds__(kThreads, 3)
    choose_elements(ScoreInputs inputs, Candidates found, int64_t run, SelectState* state, Count* histogram,
                    RunCounts* runs, const uint32_t* above, uint32_t* bits, int64_t* rank) {
  if (state->nan_tensor != kNoTensor) return;
  // Bins of the search, then words of the mask.
  __shared__ unsigned bins[kBins];
  static_assert(kBins >= kWarps * kBlocksPerWarp * kWordsPerBlock);
  search_keys<1>(found.keys, static_cast<int64_t>(state->used), &state->threshold, histogram, bins, &state->meeting);
  const Threshold threshold(state);
  const int64_t begin = blockIdx.x * run, end = begin + run < inputs.blocks ? begin + run : inputs.blocks;
  count_runs(found, threshold, begin, end, runs, &state->meeting);

  auto* own = reinterpret_cast<uint32_t (*)[kWordsPerBlock]>(bins) + warp_id() * kBlocksPerWarp;
  RunCounts before = runs[blockIdx.x];
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const int64_t first_block = tile + warp_id() * kBlocksPerWarp, block = first_block + lane_id() / kShare;
#pragma unroll
    for (int b = 0; b < kBlocksPerWarp; b++) {
      own[b][lane_id()] = first_block + b < end ? above[(first_block + b) * kWordsPerBlock + lane_id()] : 0;
    }
    const BlockCounts counts = block < end ? found.counts[block] : BlockCounts{};
    const unsigned both = tally(found, block, counts, threshold);
    unsigned all, until = block_exclusive_sum<kThreads>(lane_id() % kShare == 0 ? both : 0, &all);
    until = __shfl_sync(kAllLanes, until, lane_id() / kShare * kShare);
    const int64_t until_equal = before.equal + (until >> 16);
    const int equal = static_cast<int>(both >> 16), left = ties_left(threshold.ties - until_equal);
    if (block < end && lane_id() % kShare == 0) {
      const int64_t until_better = before.better + (until & 0xffff);
      rank[block] = until_better + (left > 0 ? until_equal : threshold.ties);
      if (block + 1 == inputs.blocks) {
        rank[block + 1] = until_better + (both & 0xffff) + (left > equal ? until_equal + equal : threshold.ties);
      }
    }
    // Which elements equal an end of the bracket is not known if they were counted.
    const bool again =
        (counts.at_high > 0 && (threshold.high > threshold.key || (threshold.high == threshold.key && left > 0))) ||
        (counts.at_low > 0 && threshold.low == threshold.key && left > 0);
    if (!again && counts.inside > 0) {
      uint32_t* words = own[lane_id() / kShare];
      const uint32_t first = found.first[block];
      for (int i = lane_id() % kShare; i < counts.inside; i += kShare) {
        const uint32_t key = found.keys[first + i];
        if (key > threshold.key || (key == threshold.key && equal <= left)) {
          const int place = found.places[first + i];
          atomicOr(words + place / 32, 1u << (place % 32));
        }
      }
      // At most one block has more ties than are left.
      if (0 < left && left < equal && lane_id() % kShare == 0) {
        int more = left;
        for (int i = 0; more > 0; i++) {
          if (found.keys[first + i] != threshold.key) continue;
          const int place = found.places[first + i];
          atomicOr(words + place / 32, 1u << (place % 32));
          more--;
        }
      }
    }
    __syncwarp();  // the words are complete
#pragma unroll 1
    for (int b = 0; b < kBlocksPerWarp; b++) {
      const int ties = __shfl_sync(kAllLanes, left, b * kShare);
      uint32_t word = own[b][lane_id()];
      if (__shfl_sync(kAllLanes, static_cast<int>(again), b * kShare)) {
        const ScoreBlock compared = score_block(inputs, first_block + b);
        const Compared found_again =
            compare_block<kTerm, kDivisor>(inputs, compared, ScoreRange(threshold.key, threshold.key, inputs.largest));
        word = found_again.better | first_bits(found_again.inside, ties);
      }
      if (first_block + b < end) bits[(first_block + b) * kWordsPerBlock + lane_id()] = word;
    }
    __syncwarp();  // all lanes have read the words
    before.better += all & 0xffff;
    before.equal += all >> 16;
  }
}

}  // namespace

cudaError_t choose(const Selection& s, const Candidates& found, const uint32_t* above, RunCounts* runs, uint32_t* bits,
                   int64_t* rank) {
  const int64_t tiles = (s.blocks() + kTile - 1) / kTile;
  return with_input_counts(s.inputs().spec, [&](auto term, auto divisor) {
    const auto kernel = choose_elements<term.value, divisor.value>;
    int64_t most = 0;
    AIMFAIR_TRY(persistent_blocks(kernel, std::min(tiles, kMaxRuns), kThreads, &most));
    const int64_t run = (tiles + most - 1) / most * kTile, count = (s.blocks() + run - 1) / run;
    return launch_cooperative(kernel, count, kThreads, s.stream(), s.inputs(), found, run, s.state(), s.histograms(),
                              runs, above, bits, rank);
  });
}

}  // namespace aimfair::cuda
