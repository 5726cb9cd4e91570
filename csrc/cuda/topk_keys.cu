#include "cuda/topk_keys.h"

#include "aimfair/mask.h"
#include "cuda/launch.h"

namespace aimfair::cuda {
namespace {

constexpr int kThreads = kSearchThreads;
constexpr int kWarps = kThreads / kWarp;
constexpr int kResident = 3;  // minimum of thread blocks per multiprocessor; leaves registers for loads ahead

// Counts the keys in the range of the threshold; NaN scores go to histogram[kBins]. In a search, which does nothing
// unless the bracket missed, the range is then narrowed and the histogram zeroed, until one key is left: a cooperative
// launch.
template <int kTerm, int kDivisor>
__global__ void __launch_bounds__(kThreads, kResident)
    count_range(ScoreInputs inputs, SelectState* state, Count* histogram, bool search) {
  __shared__ unsigned bins[kBins];
  if (search && !state->missed) return;
  for (int round = 0; round < (search ? kRounds : 1); round++) {
    const Search range = state->threshold;
    if (search && range.bits == 0) return;
    zero_bins(bins);
    __syncthreads();
    int64_t nans = 0;
    for (int64_t at = int64_t{blockIdx.x} * kWarps + warp_id(); at < inputs.blocks; at += int64_t{gridDim.x} * kWarps) {
      const ScoreBlock block = score_block(inputs, at);
      for_each_group<kTerm, kDivisor>(inputs.spec, block, [&](int group, const Four& scores) {
        int bin[4];
        bool same = true;
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const bool inside = group * kGroup + lane_id() * 4 + e < block.size, nan = scores.v[e] != scores.v[e];
          nans += inside && nan;
          bin[e] = inside && !nan ? bin_of(unsigned_key(scores.v[e], inputs.largest), range) : -1;
          same &= bin[e] == bin[0];
        }
        // Many equal scores would contend for one bin.
        const int first = __shfl_sync(kAllLanes, bin[0], 0);
        if (__all_sync(kAllLanes, same && bin[0] == first)) {
          if (lane_id() == 0 && first >= 0) atomicAdd(&bins[first], unsigned{kGroup});
          return;
        }
#pragma unroll
        for (int e = 0; e < 4; e++) {
          if (bin[e] >= 0) atomicAdd(&bins[bin[e]], 1u);
        }
      });
    }
    __syncthreads();
    add_bins(bins, histogram);
    if (search) {
      meet(&state->meeting, [&] {
        narrow(&state->threshold, histogram);
        zero_bins(histogram);
      });
    } else {
      nans = block_sum<kThreads>(nans);
      if (threadIdx.x == 0 && nans > 0) atomicAdd(histogram + kBins, static_cast<Count>(nans));
    }
  }
}

template <int kTerm, int kDivisor>
__global__ void __launch_bounds__(kThreads, kResident)
    compare_keys(ScoreInputs inputs, SelectState* state, uint32_t* bits, int64_t* equal) {
  const uint32_t threshold = state->threshold.first;
  for (int64_t at = int64_t{blockIdx.x} * kWarps + warp_id(); at < inputs.blocks; at += int64_t{gridDim.x} * kWarps) {
    const ScoreBlock block = score_block(inputs, at);
    const Compared compared = compare_block<kTerm, kDivisor>(inputs, block, threshold);
    if (__any_sync(kAllLanes, compared.nan) && lane_id() == 0) {
      atomicMin(&state->nan_tensor, static_cast<unsigned>(block.index));
    }
    if (bits) bits[at * kWordsPerBlock + lane_id()] = compared.better;
    const int found = warp_sum(__popc(compared.inside));
    if (lane_id() == 0) equal[at] = found;
  }
}

template <int kTerm, int kDivisor>
__global__ void __launch_bounds__(kThreads, kResident)
    set_ties(ScoreInputs inputs, const SelectState* state, uint32_t* bits, const int64_t* equal_until,
             const int64_t* ties) {
  const uint32_t threshold = state->threshold.first;
  for (int64_t at = int64_t{blockIdx.x} * kWarps + warp_id(); at < inputs.blocks; at += int64_t{gridDim.x} * kWarps) {
    const int64_t before = at == 0 ? 0 : equal_until[at - 1];
    if (equal_until[at] == before) continue;
    const ScoreBlock block = score_block(inputs, at);
    const int64_t first_block = inputs.first_blocks[block.index], wanted = ties[block.index];
    const int64_t left = wanted - (before - (first_block == 0 ? 0 : equal_until[first_block - 1]));
    if (wanted <= 0 || left <= 0) continue;
    const uint32_t same = compare_block<kTerm, kDivisor>(inputs, block, threshold).inside;
    bits[at * kWordsPerBlock + lane_id()] |= first_bits(same, left);
  }
}

}  // namespace

Selection::Selection(const ScoreTensor* tensors, int64_t count, const Score& spec, bool largest,
                     const Allocate& allocate, void* stream)
    : tensors_(tensors),
      inputs_{nullptr, nullptr, count, 0, spec, largest},
      allocate_(allocate),
      stream_(stream),
      total_(0) {
  for (int64_t t = 0; t < count; t++) {
    total_ += tensors[t].numel;
    inputs_.blocks += block_count(tensors[t].numel);
  }
}

cudaError_t Selection::begin(const SelectState& initial) {
  Upload upload;
  const int64_t tensors = upload.add(tensors_, inputs_.count);
  const int64_t first_blocks =
      upload.add(first_units(inputs_.count, [&](int64_t t) { return block_count(tensors_[t].numel); }));
  const int64_t first_elements = upload.add(first_units(inputs_.count, [&](int64_t t) { return tensors_[t].numel; }));
  const int64_t state = upload.add(&initial, 1);
  constexpr int64_t kHistogramBytes = 2 * kBins * static_cast<int64_t>(sizeof(Count));
  const int64_t zeroed = upload.bytes() + kHistogramBytes, first = (zeroed + kAlignment - 1) / kAlignment * kAlignment;
  void* table = allocate_(first + reserved_);
  if (!table) return cudaErrorMemoryAllocation;
  inputs_.tensors = array_at<const ScoreTensor>(table, tensors);
  inputs_.first_blocks = array_at<const int64_t>(table, first_blocks);
  first_elements_ = array_at<const int64_t>(table, first_elements);
  state_ = array_at<SelectState>(table, state);
  histograms_ = array_at<Count>(table, upload.bytes());
  memory_ = array_at<char>(table, first);
  return upload.copy(table, stream_, kHistogramBytes);
}

cudaError_t Selection::read(SelectState* state) const {
  const auto stream = static_cast<cudaStream_t>(stream_);
  AIMFAIR_TRY(cudaMemcpyAsync(state, state_, sizeof *state, cudaMemcpyDeviceToHost, stream));
  return cudaStreamSynchronize(stream);
}

cudaError_t Selection::search_all() const {
  return with_input_counts(inputs_.spec, [&](auto term, auto divisor) {
    const auto kernel = count_range<term.value, divisor.value>;
    int64_t resident = 0;
    AIMFAIR_TRY(persistent_blocks(kernel, (blocks() + kWarps - 1) / kWarps, kThreads, &resident));
    return launch_cooperative(kernel, resident, kThreads, stream_, inputs_, state_, histograms_, true);
  });
}

cudaError_t Selection::count_keys(int64_t* counts) const {
  return with_input_counts(inputs_.spec, [&](auto term, auto divisor) {
    return launch_persistent(count_range<term.value, divisor.value>, (blocks() + kWarps - 1) / kWarps, kThreads,
                             stream_, inputs_, state_, reinterpret_cast<Count*>(counts), false);
  });
}

cudaError_t Selection::compare(uint32_t* bits, int64_t* equal_until) const {
  AIMFAIR_TRY(with_input_counts(inputs_.spec, [&](auto term, auto divisor) {
    return launch_persistent(compare_keys<term.value, divisor.value>, (blocks() + kWarps - 1) / kWarps, kThreads,
                             stream_, inputs_, state_, bits, equal_until);
  }));
  return inclusive_scan(equal_until, blocks(), allocate_, stream_);
}

cudaError_t Selection::add_ties(uint32_t* bits, const int64_t* equal_until, const int64_t* ties) const {
  return with_input_counts(inputs_.spec, [&](auto term, auto divisor) {
    return launch_persistent(set_ties<term.value, divisor.value>, (blocks() + kWarps - 1) / kWarps, kThreads, stream_,
                             inputs_, state_, bits, equal_until, ties);
  });
}

}  // namespace aimfair::cuda
