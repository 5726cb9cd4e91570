#include "cuda/topk_keys.h"

#include "aimfair/mask.h"
#include "cuda/launch.h"

namespace aimfair::cuda {
namespace {

constexpr int kThreads = kSearchThreads;
constexpr int kWarps = kThreads / kWarp;
constexpr int kResident = 3;  // minimum of thread blocks per multiprocessor; leaves registers for loads ahead

// Counts the keys in the range of a search; NaN scores go to histogram[kBins]. With `arrived`, the range is then
// narrowed and the histogram zeroed.
template <int kTerm, int kDivisor>
__global__ void __launch_bounds__(kThreads, kResident)
    count_round(ScoreInputs inputs, Search* search, Count* histogram, unsigned* arrived) {
  __shared__ unsigned bins[kBins];
  const Search range = *search;
  if (arrived && range.bits == 0) return;
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) bins[i] = 0;
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
  if (arrived) {
    if (last_to_arrive(arrived, gridDim.x)) narrow(search, histogram);
  } else {
    nans = block_sum<kThreads>(nans);
    if (threadIdx.x == 0 && nans > 0) atomicAdd(histogram + kBins, static_cast<Count>(nans));
  }
}

template <int kTerm, int kDivisor>
__global__ void __launch_bounds__(kThreads, kResident)
    compare_keys(ScoreInputs inputs, SelectState* state, uint32_t* bits, int64_t* equal) {
  const uint32_t threshold = state->threshold.first;
  for (int64_t at = int64_t{blockIdx.x} * kWarps + warp_id(); at < inputs.blocks; at += int64_t{gridDim.x} * kWarps) {
    const ScoreBlock block = score_block(inputs, at);
    uint32_t greater = 0, same = 0;
    bool nan = false;
    for_each_group<kTerm, kDivisor>(inputs.spec, block, [&](int group, const Four& scores) {
      uint32_t greater_four = 0, same_four = 0;
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const bool number = scores.v[e] == scores.v[e];
        const uint32_t key = unsigned_key(scores.v[e], inputs.largest);
        nan |= !number;
        greater_four |= static_cast<uint32_t>(key > threshold) << e;
        same_four |= static_cast<uint32_t>(number && key == threshold) << e;
      }
      greater |= greater_four << (4 * group);
      same |= same_four << (4 * group);
    });
    if (__any_sync(kAllLanes, nan) && lane_id() == 0) {
      atomicMin(&state->nan_tensor, static_cast<unsigned>(block.index));
    }
    greater = words_of(greater) & bits_inside(block.size);
    if (bits) bits[at * kWordsPerBlock + lane_id()] = greater;
    const int found = warp_sum(__popc(words_of(same) & bits_inside(block.size)));
    if (lane_id() == 0) equal[at] = found;
  }
}

template <int kTerm, int kDivisor>
__global__ void __launch_bounds__(kThreads, kResident)
    set_ties(ScoreInputs inputs, const SelectState* state, uint32_t* bits, const int64_t* equal_until,
             const int64_t* ties) {
  const Search threshold = state->threshold;
  for (int64_t at = int64_t{blockIdx.x} * kWarps + warp_id(); at < inputs.blocks; at += int64_t{gridDim.x} * kWarps) {
    const int64_t before = at == 0 ? 0 : equal_until[at - 1];
    if (equal_until[at] == before) continue;
    const ScoreBlock block = score_block(inputs, at);
    int64_t left = threshold.k - before;
    if (ties) {
      const int64_t first_block = inputs.first_blocks[block.index], wanted = ties[block.index];
      left = (wanted > 0 ? wanted : 0) - (before - (first_block == 0 ? 0 : equal_until[first_block - 1]));
    }
    if (left <= 0) continue;
    uint32_t same = 0;
    for_each_group<kTerm, kDivisor>(inputs.spec, block, [&](int group, const Four& scores) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const bool is_same = unsigned_key(scores.v[e], inputs.largest) == threshold.first;
        same |= static_cast<uint32_t>(is_same) << (4 * group + e);
      }
    });
    same = words_of(same) & bits_inside(block.size);
    int total;
    left -= exclusive_sum(__popc(same), &total);
    while (__popc(same) > left && same != 0) same &= ~(0x80000000u >> __clz(static_cast<int>(same)));
    bits[at * kWordsPerBlock + lane_id()] |= same;
  }
}

template <int kSearches>
__global__ void __launch_bounds__(kSearchThreads) search_round(const uint32_t* keys, int64_t n, const Count* used,
                                                               Search* searches, Count* histograms, unsigned* arrived) {
  __shared__ unsigned bins[kSearches * kBins];
  Search search[kSearches];
  bool done = true;
#pragma unroll
  for (int s = 0; s < kSearches; s++) {
    search[s] = searches[s];
    done &= search[s].bits == 0;
  }
  if (done) return;
  for (int i = static_cast<int>(threadIdx.x); i < kSearches * kBins; i += kSearchThreads) bins[i] = 0;
  __syncthreads();
  if (used) n = *used <= static_cast<Count>(n) ? static_cast<int64_t>(*used) : 0;
  const int64_t stride = int64_t{gridDim.x} * kSearchThreads;
  for (int64_t i = int64_t{blockIdx.x} * kSearchThreads + threadIdx.x; i < n; i += stride) {
    const uint32_t key = keys[i];
#pragma unroll
    for (int s = 0; s < kSearches; s++) {
      const int bin = bin_of(key, search[s]);
      if (bin >= 0) atomicAdd(&bins[s * kBins + bin], 1u);
    }
  }
  __syncthreads();
#pragma unroll
  for (int s = 0; s < kSearches; s++) {
    if (search[s].bits != 0) add_bins(bins + s * kBins, histograms + s * kBins);
  }
  if (!last_to_arrive(arrived, gridDim.x)) return;
#pragma unroll
  for (int s = 0; s < kSearches; s++) {
    if (search[s].bits != 0) narrow(searches + s, histograms + s * kBins);
  }
}

template <int kSearches>
cudaError_t queue_rounds(const uint32_t* keys, int64_t n, const Count* used, Search* searches, Count* histograms,
                         unsigned* arrived, void* stream) {
  constexpr int64_t kKeysPerThread = 4;  // fewer thread blocks have fewer bins to add up
  const int64_t work = (n + kKeysPerThread * kSearchThreads - 1) / (kKeysPerThread * kSearchThreads);
  for (int round = 0; round < kRounds; round++) {
    AIMFAIR_TRY(launch_persistent(search_round<kSearches>, work, kSearchThreads, stream, keys, n, used, searches,
                                  histograms, arrived));
  }
  return cudaSuccess;
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

cudaError_t Selection::begin() {
  Upload upload;
  const int64_t tensors = upload.add(tensors_, inputs_.count);
  const int64_t first_blocks =
      upload.add(first_units(inputs_.count, [&](int64_t t) { return block_count(tensors_[t].numel); }));
  const int64_t first_elements = upload.add(first_units(inputs_.count, [&](int64_t t) { return tensors_[t].numel; }));
  void* table = allocate<char>(upload.bytes());
  state_ = allocate<SelectState>(1);
  histograms_ = allocate<Count>(2 * kBins);
  if (!table || !state_ || !histograms_) return cudaErrorMemoryAllocation;
  inputs_.tensors = array_at<const ScoreTensor>(table, tensors);
  inputs_.first_blocks = array_at<const int64_t>(table, first_blocks);
  first_elements_ = array_at<const int64_t>(table, first_elements);
  AIMFAIR_TRY(upload.copy(table, stream_));
  return cudaMemsetAsync(histograms_, 0, 2 * kBins * sizeof(Count), static_cast<cudaStream_t>(stream_));
}

cudaError_t Selection::begin_mask() {
  bits_ = allocate<uint32_t>(blocks() * kWordsPerBlock);
  per_block_ = allocate<int64_t>(blocks());
  return bits_ && per_block_ ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t Selection::reset(const SelectState& initial) const {
  Upload upload;
  upload.add(&initial, 1);
  return upload.copy(state_, stream_);
}

cudaError_t Selection::read(SelectState* state) const {
  const auto stream = static_cast<cudaStream_t>(stream_);
  AIMFAIR_TRY(cudaMemcpyAsync(state, state_, sizeof *state, cudaMemcpyDeviceToHost, stream));
  return cudaStreamSynchronize(stream);
}

cudaError_t Selection::search_all() const {
  return with_input_counts(inputs_.spec, [&](auto term, auto divisor) {
    for (int round = 0; round < kRounds; round++) {
      AIMFAIR_TRY(launch_persistent(count_round<term.value, divisor.value>, (blocks() + kWarps - 1) / kWarps, kThreads,
                                    stream_, inputs_, &state_->threshold, histograms_, &state_->arrived));
    }
    return cudaSuccess;
  });
}

cudaError_t Selection::count_keys(int64_t* counts) const {
  return with_input_counts(inputs_.spec, [&](auto term, auto divisor) {
    return launch_persistent(count_round<term.value, divisor.value>, (blocks() + kWarps - 1) / kWarps, kThreads,
                             stream_, inputs_, &state_->threshold, reinterpret_cast<Count*>(counts), nullptr);
  });
}

cudaError_t Selection::compare(uint32_t* bits, int64_t* equal_until) const {
  AIMFAIR_TRY(with_input_counts(inputs_.spec, [&](auto term, auto divisor) {
    return launch_persistent(compare_keys<term.value, divisor.value>, (blocks() + kWarps - 1) / kWarps, kThreads,
                             stream_, inputs_, state_, bits, equal_until);
  }));
  return inclusive_scan(equal_until, blocks(), allocate_, stream_);
}

cudaError_t Selection::write_mask(const int64_t* ties, uint32_t* bits, int64_t* rank, SelectResult* result) const {
  AIMFAIR_TRY(compare(bits_, per_block_));
  AIMFAIR_TRY(with_input_counts(inputs_.spec, [&](auto term, auto divisor) {
    return launch_persistent(set_ties<term.value, divisor.value>, (blocks() + kWarps - 1) / kWarps, kThreads, stream_,
                             inputs_, state_, bits_, per_block_, ties);
  }));
  SelectState state;
  AIMFAIR_TRY(read(&state));
  if (state.nan_tensor != kNoTensor) {
    *result = {state.nan_tensor};
    return cudaSuccess;
  }
  AIMFAIR_TRY(cudaMemcpyAsync(bits, bits_, static_cast<size_t>(blocks() * kWordsPerBlock) * sizeof(uint32_t),
                              cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(stream_)));
  return static_cast<cudaError_t>(cuda::rank(bits, blocks(), rank, allocate_, stream_));
}

cudaError_t search_keys(const uint32_t* keys, int64_t n, const Count* used, Search* searches, int count,
                        Count* histograms, unsigned* arrived, void* stream) {
  return count == 1 ? queue_rounds<1>(keys, n, used, searches, histograms, arrived, stream)
                    : queue_rounds<2>(keys, n, used, searches, histograms, arrived, stream);
}

}  // namespace aimfair::cuda
