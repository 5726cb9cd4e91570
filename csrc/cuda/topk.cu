#include "aimfair/topk.h"

#include "aimfair/mask.h"
#include "cuda/launch.h"
#include "cuda/topk_select.h"

// select finds the k best keys as on the CPU (cpu/topk.cpp), without the host in between:
//   1. A sample of the keys brackets the k-th best one (topk_sample.cu).
//   2. One pass over the inputs writes the bits of the keys above the bracket and collects those inside: candidates
//      (topk_collect.cu).
//   3. If the bracket missed or there were too many candidates, the k-th key is found by counting all keys, and a
//   second
//      pass does the work of the first (topk_collect.cu). This launch is always queued; it returns at once if there is
//      nothing to do.
//   4. The k-th key is found among the candidates, and the mask is written (topk_choose.cu).
// Each step is one launch; where it needs all keys to have been counted before it goes on, its thread blocks wait for
// each other. The host then reads whether there was a NaN; in that case step 4 has written nothing.
//
// The other launchers are the parts of a selection over several processes, each of which sees only its own scores.

namespace aimfair::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kSmall = int64_t{1} << 18;  // elements; up to here sampling does not pay
constexpr int64_t kCandidateShare = 128;      // room for 1/128 of the elements: 6 bytes each, 1.2% of one fp32 input
constexpr int64_t kCandidateRoom = int64_t{1} << 15;  // and some more, for small inputs

// counts[t] += the counts of the blocks of tensor t; `until` is the prefix sum of the counts of all blocks.
__global__ void __launch_bounds__(kThreads)
    add_per_tensor(const int64_t* until, const int64_t* first_blocks, int64_t count, int64_t* counts) {
  const int64_t t = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (t >= count) return;
  const int64_t begin = first_blocks[t], end = first_blocks[t + 1];
  if (begin < end) counts[t] += until[end - 1] - (begin == 0 ? 0 : until[begin - 1]);
}

}  // namespace

int select(const ScoreTensor* tensors, int64_t count, const Score& spec, int64_t k, bool largest, uint32_t* bits,
           int64_t* rank, const Allocate& allocate, void* stream, SelectResult* result) {
  *result = {};
  Selection s(tensors, count, spec, largest, allocate, stream);
  const int64_t blocks = s.blocks(), total = s.total();
  if (blocks == 0) return cuda::rank(bits, 0, rank, allocate, stream);
  const bool known = k == 0 || k == total, bracketed = !known && total > kSmall;
  Candidates found = {};
  if (bracketed) found.capacity = total / kCandidateShare + kCandidateRoom;
  const int64_t above_at = s.reserve<uint32_t>(blocks * kWordsPerBlock);
  const int64_t keys_at = s.reserve<uint32_t>(found.capacity), places_at = s.reserve<uint16_t>(found.capacity);
  const int64_t first_at = s.reserve<uint32_t>(blocks), counts_at = s.reserve<BlockCounts>(blocks);
  const int64_t runs_at = s.reserve<RunCounts>(kMaxRuns);

  SelectState state = {};
  if (bracketed) {
    enter_bracket(k, total, found.capacity, state.bracket);
  } else {
    // No score has the greatest key or the key 0.
    state.threshold = !known ? Search{0, 32, k} : k == 0 ? Search{0xffffffffu, 0, 0} : Search{0, 0, k};
    state.missed = 1;
  }
  AIMFAIR_TRY(s.begin(state));
  found.keys = s.at<uint32_t>(keys_at);
  found.places = s.at<uint16_t>(places_at);
  found.first = s.at<uint32_t>(first_at);
  found.counts = s.at<BlockCounts>(counts_at);
  auto* above = s.at<uint32_t>(above_at);
  if (bracketed) {
    AIMFAIR_TRY(sample(s, above));  // not larger than the bits, which are written when it is used up
    AIMFAIR_TRY(collect(s, k, found, above, false));
  }
  if (!known) AIMFAIR_TRY(s.search_all());
  AIMFAIR_TRY(collect(s, k, found, above, true));
  AIMFAIR_TRY(choose(s, found, above, s.at<RunCounts>(runs_at), bits, rank));
  AIMFAIR_TRY(s.read(&state));
  if (state.nan_tensor != kNoTensor) result->nan_tensor = state.nan_tensor;
  return cudaSuccess;
}

int count_keys(const ScoreTensor* tensors, int64_t count, const Score& spec, uint32_t first, int bits, bool largest,
               int64_t* counts, const Allocate& allocate, void* stream) {
  Selection s(tensors, count, spec, largest, allocate, stream);
  if (s.blocks() == 0) return cudaSuccess;
  AIMFAIR_TRY(s.begin({.bracket = {}, .threshold = {first, bits, 0}}));
  return s.count_keys(counts);
}

int count_equal(const ScoreTensor* tensors, int64_t count, const Score& spec, uint32_t key, bool largest,
                int64_t* counts, const Allocate& allocate, void* stream) {
  Selection s(tensors, count, spec, largest, allocate, stream);
  if (s.blocks() == 0) return cudaSuccess;
  const int64_t equal_at = s.reserve<int64_t>(s.blocks());
  AIMFAIR_TRY(s.begin({.bracket = {}, .threshold = {key, 0, 0}}));
  auto* equal = s.at<int64_t>(equal_at);
  AIMFAIR_TRY(s.compare(nullptr, equal));
  return launch(add_per_tensor, (count + kThreads - 1) / kThreads, kThreads, stream, equal, s.inputs().first_blocks,
                count, counts);
}

int select_above(const ScoreTensor* tensors, int64_t count, const Score& spec, uint32_t key, const int64_t* ties,
                 bool largest, uint32_t* bits, int64_t* rank, const Allocate& allocate, void* stream,
                 SelectResult* result) {
  *result = {};
  Selection s(tensors, count, spec, largest, allocate, stream);
  if (s.blocks() == 0) return cuda::rank(bits, 0, rank, allocate, stream);
  // Not the caller's bits, which must not change if a score is NaN.
  const int64_t own_at = s.reserve<uint32_t>(s.blocks() * kWordsPerBlock), equal_at = s.reserve<int64_t>(s.blocks());
  AIMFAIR_TRY(s.begin({.bracket = {}, .threshold = {key, 0, 0}}));
  auto* own = s.at<uint32_t>(own_at);
  auto* equal = s.at<int64_t>(equal_at);
  AIMFAIR_TRY(s.compare(own, equal));
  AIMFAIR_TRY(s.add_ties(own, equal, ties));
  SelectState state;
  AIMFAIR_TRY(s.read(&state));
  if (state.nan_tensor != kNoTensor) {
    result->nan_tensor = state.nan_tensor;
    return cudaSuccess;
  }
  AIMFAIR_TRY(cudaMemcpyAsync(bits, own, static_cast<size_t>(s.blocks() * kWordsPerBlock) * sizeof(uint32_t),
                              cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(stream)));
  return cuda::rank(bits, s.blocks(), rank, allocate, stream);
}

}  // namespace aimfair::cuda
