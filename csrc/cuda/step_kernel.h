#pragma once

#include "aimfair/moments.h"
#include "aimfair/random.h"
#include "aimfair/step.h"
#include "cuda/element.h"
#include "cuda/launch.h"
#include "cuda/moment.h"
#include "cuda/warp.h"

// The masked step: a warp processes one run of up to 8 consecutive blocks of 1024 elements after another. The rank
// directory says how many elements of each block are selected. Blocks without any are skipped; blocks in which all are
// selected are processed four elements at a time where alignment allows. Of all others, the mask words are read
// together and their selected elements listed in shared memory; the lanes then take several elements of that list each,
// whose loads are all issued before the first one is used. So a run waits for memory three times (ranks, mask,
// elements), however its elements are spread, and only sectors that hold a selected element are touched.
//
// Moments of 8 bits take a second round: their codes depend on the largest value of a block, so the rounded values wait
// in shared memory until those of the whole block are there.

namespace aimfair::cuda {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
// Thread blocks per multiprocessor: 6 leave 80 registers per thread. For sm_120, and for sm_100 with moments of fewer
// bits, these are a few too little. With 8 bits the shared memory of sm_120 holds no more than 3.
template <Moments kMoments>
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int kResident = kMoments == Moments::bits8 ? 3 : 5;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kResident = kMoments == Moments::float32 ? 6 : 5;
#else
constexpr int kResident = 6;
#endif
constexpr int kLongestRun = 8;                     // blocks
constexpr int64_t kMostBlocks = int64_t{1} << 30;  // in a plan: 1.1e12 elements; they are counted in 32 bits
constexpr int kListed = 1024;                      // elements that a warp lists at once: at least a block

// A plan in device memory, in this order. Gradients are apart because they may be others at every step.
struct StepTable {
  unsigned* arrived;  // thread blocks that are done
  const StepTensor* tensors;
  const void* const* grads;
  const int64_t* first_blocks;  // count + 1 entries
  int64_t count;
  int64_t blocks;
};

constexpr int64_t tensors_place() { return Upload::kAlignment; }
constexpr int64_t grads_place(int64_t count) {
  return tensors_place() + rounded_up(count * static_cast<int64_t>(sizeof(StepTensor)));
}
constexpr int64_t first_blocks_place(int64_t count) {
  return grads_place(count) + rounded_up(count * static_cast<int64_t>(sizeof(void*)));
}

// The rounded moments of the listed elements, if they are kept in 8 bits: magnitudes, and the sign in the uppermost
// bit.
template <int kStates, Moments kMoments>
struct Rounded {};
template <int kStates>
struct Rounded<kStates, Moments::bits8> {
  uint16_t rounded[kStates][kListed];
};

// What a warp works on, in shared memory to save registers for the elements.
template <class Update_, Moments kMoments_>
struct WarpWork : Rounded<Update_::kStates, kMoments_> {
  using Update = Update_;
  static constexpr Moments kMoments = kMoments_;
  StepTensor tensor;
  typename Update::Scalars scalars;
  float grad_factor;  // negative to maximize
  uint64_t step;      // of scalars and random_key
  uint64_t random_key;
  uint16_t list[kListed];  // places in the run
};

// Consecutive blocks of one tensor, from its block `first`. `state_at` is the place in the state of what belongs to the
// first element (dense state) or the first selected element (compact state).
template <class Work, DType kDType, bool kMaster, bool kStochastic>
struct RunStep {
  using Update = typename Work::Update;
  using P = Element<kDType>;
  using T = typename P::type;
  using M = Moment<Work::kMoments>;
  Work& work;
  const typename Update::Constants& constants;
  int first;
  int64_t state_at;

  // Elements of a lane whose loads are issued together, as many as there are registers for.
  static constexpr int kAhead = Update::kStates < kMaxStates ? 4 : 2;

  __device__ __forceinline__ T* param() const { return static_cast<T*>(work.tensor.param) + first * kBlock; }
  __device__ __forceinline__ const T* grad() const { return static_cast<const T*>(work.tensor.grad) + first * kBlock; }
  __device__ __forceinline__ typename M::type* state(int s) const {
    return M::values(work.tensor.state[s], work.tensor.numel) + state_at;
  }
  __device__ __forceinline__ float* master() const { return work.tensor.master + state_at; }

  __device__ __forceinline__ float updated(float old, float grad, float* states) const {
    const Update update{constants, work.scalars};
    return update.apply(old, update.direction(update.prepare(old, grad * work.grad_factor), states));
  }

  // 16 random bits for element i of the run: for its state s, or for the parameter if s = -1.
  __device__ __forceinline__ uint32_t random(int i, int s) const {
    const int64_t block = work.tensor.first_block + first + i / static_cast<int>(kBlock);
    const uint64_t key = block_key(work.random_key, static_cast<uint64_t>(block));
    return moment_random(key, static_cast<uint32_t>(i) % uint32_t{kBlock}, s);
  }

  // The new value of element i of the run in the parameter's type.
  __device__ __forceinline__ T encoded(float value, int i) const {
    if constexpr (kStochastic) {
      return float_to_bfloat16_stochastic(value, random(i, -1));
    } else {
      return P::encode(value);
    }
  }

  // n elements: place(j) is the place in the run of the j-th, whose state is the one at state_place(j).
  template <class Place, class StatePlace>
  __device__ __forceinline__ void elements(int n, const Place& place, const StatePlace& state_place) const {
#pragma unroll 1
    for (int begin = lane_id(); begin < n; begin += kAhead * kWarp) {
      T p[kAhead], g[kAhead];
      typename M::Kept states[kAhead][kMaxStates];
      float masters[kAhead];
      // Explicitly from global memory: the compiler moves other loads below the arithmetic that does not need them.
      // What is past the end repeats the lane's first element, which is in the cache.
#pragma unroll
      for (int e = 0; e < kAhead; e++) {
        const int j = begin + e * kWarp < n ? begin + e * kWarp : begin, i = place(j), at = state_place(j);
        g[e] = __ldca(grad() + i);
        p[e] = __ldca(param() + i);
#pragma unroll
        for (int s = 0; s < Update::kStates; s++) {
          states[e][s] = M::load(state(s) + at, work.tensor.state[s], first + i / static_cast<int>(kBlock));
        }
        if constexpr (kMaster) masters[e] = __ldca(master() + at);
      }
#pragma unroll
      for (int e = 0; e < kAhead; e++) {
        const int j = begin + e * kWarp;
        float own[kMaxStates];
#pragma unroll
        for (int s = 0; s < Update::kStates; s++) {
          own[s] = M::template decode<Update::kRootState>(states[e][s], s);
        }
        const float value = updated(kMaster ? masters[e] : P::decode(p[e]), P::decode(g[e]), own);
        if (j >= n) break;
        const int i = place(j), at = state_place(j);
#pragma unroll
        for (int s = 0; s < Update::kStates; s++) {
          if constexpr (Work::kMoments == Moments::float32) {
            __stwb(state(s) + at, own[s]);
          } else if constexpr (Work::kMoments == Moments::bfloat16) {
            __stwb(state(s) + at, float_to_bfloat16_stochastic(own[s], random(i, s)));
          } else {
            work.rounded[s][j] = M::template round<Update::kRootState>(own[s], random(i, s), s);
          }
        }
        if constexpr (kMaster) __stwb(master() + at, value);
        __stwb(param() + i, encoded(value, i));
      }
    }
  }

  __device__ __forceinline__ bool four_allowed() const {
    bool aligned = four_aligned(param(), sizeof(typename P::four)) && four_aligned(grad(), sizeof(typename P::four));
#pragma unroll
    for (int s = 0; s < Update::kStates; s++) aligned = aligned && four_aligned(state(s), sizeof(float4));
    if constexpr (kMaster) aligned = aligned && four_aligned(master(), sizeof(float4));
    return aligned;
  }

  // Elements i to i + 3.
  __device__ __forceinline__ void four(int i) const {
    const Four g = load_four<kDType>(grad() + i);
    Four p = kMaster ? load_four<DType::float32>(master() + i) : load_four<kDType>(param() + i);
    Four states[kMaxStates];
#pragma unroll
    for (int s = 0; s < Update::kStates; s++) states[s] = load_four<DType::float32>(state(s) + i);
#pragma unroll
    for (int e = 0; e < 4; e++) {
      float own[kMaxStates];
#pragma unroll
      for (int s = 0; s < Update::kStates; s++) own[s] = states[s].v[e];
      p.v[e] = updated(p.v[e], g.v[e], own);
#pragma unroll
      for (int s = 0; s < Update::kStates; s++) states[s].v[e] = own[s];
    }
#pragma unroll
    for (int s = 0; s < Update::kStates; s++) store_four<DType::float32>(state(s) + i, states[s]);
    if constexpr (kMaster) store_four<DType::float32>(master() + i, p);
    const typename P::four values = {encoded(p.v[0], i), encoded(p.v[1], i + 1), encoded(p.v[2], i + 2),
                                     encoded(p.v[3], i + 3)};
    __stwb(reinterpret_cast<typename P::four*>(param() + i), values);
  }

  // The first n elements of the run.
  __device__ __forceinline__ void all(int n) const {
    int i = 0;
    if constexpr (Work::kMoments == Moments::float32) {
      if (four_allowed()) {
#pragma unroll 1
        for (i = lane_id() * 4; i + 4 <= n; i += kWarp * 4) four(i);
        i = n - n % 4;
      }
    }
    elements(n - i, [i](int j) { return i + j; }, [i](int j) { return i + j; });
  }

  // The elements whose places are in list[0 .. n).
  __device__ __forceinline__ void listed(int n, bool compact) const {
    const auto place = [this](int j) { return static_cast<int>(work.list[j]); };
    if (compact) {
      elements(n, place, [](int j) { return j; });
    } else {
      elements(n, place, place);
    }
  }
};

// Writes the places of the selected elements of some blocks of a run, a bit in `blocks` for each, to `list`, in order.
// `bits` is the lane's mask word of the first block of the run.
__device__ __forceinline__ void list_elements(const uint32_t* bits, unsigned blocks, uint16_t* list) {
  uint32_t words[kLongestRun];
#pragma unroll
  for (int b = 0; b < kLongestRun; b++) words[b] = blocks >> b & 1 ? __ldg(bits + b * kWordsPerBlock) : 0;
  int listed = 0;
  __syncwarp();  // the previous list has been read
#pragma unroll
  for (int b = 0; b < kLongestRun; b++) {
    if (blocks >> b == 0) break;
    int total, next = listed + exclusive_sum(__popc(words[b]), &total);
    for (uint32_t word = words[b]; word != 0; word &= word - 1) {
      list[next++] = static_cast<uint16_t>(b * int{kBlock} + lane_id() * 32 + __ffs(static_cast<int>(word)) - 1);
    }
    listed += total;
  }
  __syncwarp();
}

template <DType kDType, bool kMaster, bool kStochastic, class Work>
__device__ __forceinline__ void step_as(Work& work, const typename Work::Update::Constants& constants,
                                        const StepOptions& options, int first, int64_t state_at, int n, bool listed) {
  const RunStep<Work, kDType, kMaster, kStochastic> step{work, constants, first, state_at};
  if (listed) {
    step.listed(n, options.compact);
  } else {
    step.all(n);
  }
}

// n elements of the blocks from `first` on: those in the list, or the first ones.
template <class Work>
__device__ __forceinline__ void step_elements(Work& work, const typename Work::Update::Constants& constants,
                                              const StepOptions& options, int first, int64_t state_at, int n,
                                              bool listed) {
  const bool master = work.tensor.master != nullptr;
  switch (work.tensor.dtype) {
    case DType::float32:
      return master ? step_as<DType::float32, true, false>(work, constants, options, first, state_at, n, listed)
                    : step_as<DType::float32, false, false>(work, constants, options, first, state_at, n, listed);
    case DType::float16:
      return master ? step_as<DType::float16, true, false>(work, constants, options, first, state_at, n, listed)
                    : step_as<DType::float16, false, false>(work, constants, options, first, state_at, n, listed);
    case DType::bfloat16:
      if (options.stochastic_rounding)
        return step_as<DType::bfloat16, false, true>(work, constants, options, first, state_at, n, listed);
      return master ? step_as<DType::bfloat16, true, false>(work, constants, options, first, state_at, n, listed)
                    : step_as<DType::bfloat16, false, false>(work, constants, options, first, state_at, n, listed);
  }
}

// Writes the 8-bit moments of one block of the tensor, whose rounded values are in work.rounded from `begin` to `end`;
// place(j) is the place of the j-th in the state.
template <class Work, class Place>
__device__ __forceinline__ void encode_block(Work& work, int block, int begin, int end, const Place& place) {
  __syncwarp();  // all lanes have written their rounded values
#pragma unroll
  for (int s = 0; s < Work::Update::kStates; s++) {
    using M = Moment<Moments::bits8>;
    uint32_t largest = 0;
    for (int j = begin + lane_id(); j < end; j += kWarp) largest = greatest(largest, work.rounded[s][j] & 0x7fffu);
    const uint32_t base = M::base_of<Work::Update::kRootState>(warp_greatest(largest), s);
    const Bits8 memory = bits8_in(work.tensor.state[s], work.tensor.numel);
    for (int j = begin + lane_id(); j < end; j += kWarp) {
      __stwb(memory.codes + place(j), M::encode<Work::Update::kRootState>(work.rounded[s][j], base, s));
    }
    if (lane_id() == 0) __stwb(memory.bases + block, static_cast<uint16_t>(base));
  }
}

// Up to kLongestRun blocks of one tensor, from its block `first`.
template <class Work>
__device__ __forceinline__ void step_run(Work& work, const typename Work::Update::Constants& constants,
                                         const StepOptions& options, int first, int blocks) {
  // Lane i has the elements of block first + i, and how many of the run's are selected before and in it.
  const int64_t rest = work.tensor.numel - (int64_t{first} + lane_id()) * kBlock;
  const int size = lane_id() >= blocks ? 0 : rest < kBlock ? static_cast<int>(rest) : static_cast<int>(kBlock);
  int64_t state_at = first * kBlock;
  int before = lane_id() * static_cast<int>(kBlock), selected = size;
  if (options.mask.rank) {
    const int64_t* rank = options.mask.rank + work.tensor.first_block + first;
    const int64_t own = lane_id() <= blocks ? rank[lane_id()] : 0;
    const int64_t of_first = __shfl_sync(kAllLanes, own, 0);
    before = static_cast<int>(own - of_first);
    selected = __shfl_down_sync(kAllLanes, before, 1) - before;
    if (options.compact) state_at = of_first - options.mask.rank[work.tensor.first_block];
  }
  unsigned all = __ballot_sync(kAllLanes, size != 0 && selected == size);
  unsigned some = __ballot_sync(kAllLanes, size != 0 && selected != size && selected != 0);

  for (; all != 0; all &= all - 1) {
    const int b = __ffs(static_cast<int>(all)) - 1;
    const int at = options.compact ? __shfl_sync(kAllLanes, before, b) : b * static_cast<int>(kBlock);
    const int n = __shfl_sync(kAllLanes, size, b);
    step_elements(work, constants, options, first + b, state_at + at, n, false);
    if constexpr (Work::kMoments == Moments::bits8) {
      encode_block(work, first + b, 0, n, [&](int j) { return state_at + at + j; });
    }
  }
  while (some != 0) {
    // The next blocks whose elements fit in the list. A full block between them would not.
    const int of_next = __shfl_sync(kAllLanes, before, __ffs(static_cast<int>(some)) - 1);
    const int upto = before + selected - of_next;
    const unsigned next = some & __ballot_sync(kAllLanes, upto <= kListed);
    list_elements(options.mask.bits + (work.tensor.first_block + first) * kWordsPerBlock + lane_id(), next, work.list);
    const int n = __shfl_sync(kAllLanes, upto, kWarp - 1 - __clz(static_cast<int>(next)));
    step_elements(work, constants, options, first, state_at + (options.compact ? of_next : 0), n, true);
    if constexpr (Work::kMoments == Moments::bits8) {
      for (unsigned left = next; left != 0; left &= left - 1) {
        const int b = __ffs(static_cast<int>(left)) - 1;
        const int begin = __shfl_sync(kAllLanes, before, b) - of_next, size_of_b = __shfl_sync(kAllLanes, selected, b);
        encode_block(work, first + b, begin, begin + size_of_b,
                     [&](int j) { return state_at + (options.compact ? of_next + j : int{work.list[j]}); });
      }
    }
    some &= ~next;
  }
}

// Makes tensor t the one that the warp works on.
template <class Work>
__device__ __forceinline__ void take_tensor(Work& work, const StepTable& table, int t,
                                            const typename Work::Update::Config& config, const StepOptions& options) {
  __syncwarp();  // all lanes are done with the previous tensor
  if (lane_id() == 0) {
    work.tensor = table.tensors[t];
    work.tensor.grad = table.grads[t];
    const uint64_t step = static_cast<uint64_t>(*work.tensor.step + 1.0f);
    if (step != work.step) {  // most tensors share the step
      work.step = step;
      work.scalars = scalars_of(config, learning_rate(options, config.lr), step);
      work.random_key = step_key(options.seed, step);
    }
  }
  __syncwarp();
}

template <class Update, Moments kMoments>
__global__ void __launch_bounds__(kThreads, kResident<kMoments>)
    masked_step(StepTable table, typename Update::Config config,
                const __grid_constant__ typename Update::Constants constants, StepOptions options, int run) {
  if (options.found_inf && *options.found_inf != 0) return;
  __shared__ WarpWork<Update, kMoments> works[kWarps];
  WarpWork<Update, kMoments>& work = works[warp_id()];
  if (lane_id() == 0) {
    const float factor = gradient_factor(options.grad_scale);
    work.grad_factor = options.maximize ? -factor : factor;
    work.step = 0;  // no step has this number
  }
  // Neighbouring runs go to different thread blocks: they may be those of the only tensors that are selected.
  const int blocks = static_cast<int>(table.blocks), stride = static_cast<int>(gridDim.x) * kWarps * run;
  for (int begin = (warp_id() * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x)) * run; begin < blocks;
       begin += stride) {
    const int end = begin + run < blocks ? begin + run : blocks;
    int t = static_cast<int>(owner_of(table.first_blocks, table.count, begin));
    for (int at = begin; at < end; t++) {
      const int first = static_cast<int>(table.first_blocks[t]), next = static_cast<int>(table.first_blocks[t + 1]);
      if (next <= at) continue;  // an empty tensor
      take_tensor(work, table, t, config, options);
      const int upto = next < end ? next : end;
      step_run(work, constants, options, at - first, upto - at);
      at = upto;
    }
  }
  // Steps change only after all thread blocks have read them.
  if (last_to_arrive(table.arrived, gridDim.x)) {
    for (int64_t t = threadIdx.x; t < table.count; t += kThreads) *table.tensors[t].step += 1.0f;
  }
}

template <class Update, Moments kMoments>
cudaError_t launch_step(const StepPlan& plan, const typename Update::Config& config, const StepOptions& options,
                        void* stream) {
  if (plan.count == 0) return cudaSuccess;
  if (plan.blocks > kMostBlocks) return cudaErrorInvalidValue;
  int64_t resident = 0;
  AIMFAIR_TRY(resident_blocks(reinterpret_cast<const void*>(&masked_step<Update, kMoments>), kThreads, &resident));
  // As few runs as keep all warps equally busy: each costs a search for its tensor and a wait for its ranks.
  const int64_t warps = resident * kWarps;
  const int64_t rounds = (plan.blocks + warps * kLongestRun - 1) / (warps * kLongestRun);
  const int64_t run = rounds == 0 ? 1 : (plan.blocks + warps * rounds - 1) / (warps * rounds);
  const int64_t runs = (plan.blocks + run - 1) / run;
  const int64_t thread_blocks = std::clamp<int64_t>((runs + kWarps - 1) / kWarps, 1, resident);
  const StepTable table{array_at<unsigned>(plan.memory, 0),
                        array_at<StepTensor>(plan.memory, tensors_place()),
                        array_at<const void*>(plan.memory, grads_place(plan.count)),
                        array_at<int64_t>(plan.memory, first_blocks_place(plan.count)),
                        plan.count,
                        plan.blocks};
  return launch(masked_step<Update, kMoments>, thread_blocks, kThreads, stream, table, config, constants_of(config),
                options, static_cast<int>(run));
}

// In step_moments.cu.
extern template cudaError_t launch_step<AdamW<false>, Moments::bfloat16>(const StepPlan&, const AdamWConfig&,
                                                                         const StepOptions&, void*);
extern template cudaError_t launch_step<AdamW<true>, Moments::bfloat16>(const StepPlan&, const AdamWConfig&,
                                                                        const StepOptions&, void*);
extern template cudaError_t launch_step<Sgd<true>, Moments::bfloat16>(const StepPlan&, const SgdConfig&,
                                                                      const StepOptions&, void*);
extern template cudaError_t launch_step<AdamW<false>, Moments::bits8>(const StepPlan&, const AdamWConfig&,
                                                                      const StepOptions&, void*);
extern template cudaError_t launch_step<Sgd<true>, Moments::bits8>(const StepPlan&, const SgdConfig&,
                                                                   const StepOptions&, void*);

}  // namespace aimfair::cuda
