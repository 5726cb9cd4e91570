#include "aimfair/step.h"

#include "aimfair/random.h"
#include "cuda/element.h"
#include "cuda/launch.h"
#include "cuda/warp.h"

// The masked step: a warp processes one block of 1024 elements after another. By the number of selected elements in the
// rank directory, a block is skipped (none), processed four elements at a time where alignment allows (all), or (some)
// the lanes, one mask word each, list the selected elements in shared memory and divide the list, so that every lane
// has an element to work on and only memory that holds a selected element is touched.

namespace aimfair::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kResident = 7;  // thread blocks per multiprocessor, which leaves 72 registers per thread
constexpr int64_t kLongestRun =
    kWarp - 1;  // blocks that a warp handles together: a lane for each of their 32 rank entries

// A plan in device memory: `arrived`, then the tensors, then their first blocks in the order of work.
struct StepTable {
  unsigned* arrived;  // thread blocks that are done
  const StepTensor* tensors;
  const int64_t* first_blocks;  // count + 1 entries
  int64_t count;
  int64_t blocks;
};

constexpr int64_t rounded_up(int64_t bytes) {
  return (bytes + Upload::kAlignment - 1) / Upload::kAlignment * Upload::kAlignment;
}
constexpr int64_t tensors_place() { return Upload::kAlignment; }
constexpr int64_t first_blocks_place(int64_t count) {
  return tensors_place() + rounded_up(count * static_cast<int64_t>(sizeof(StepTensor)));
}

// What a warp works on, in shared memory to save registers for the elements.
template <class Update>
struct WarpWork {
  StepTensor tensor;
  typename Update::Scalars scalars;
  float grad_factor;  // negative to maximize
  uint64_t step;      // of scalars and random_key
  uint64_t random_key;
  uint16_t list[kBlock];
};

// One block of a tensor: n elements from `begin`, of which `state_at` is the place of the first one's (dense state) or
// the first selected one's (compact state) values in the state.
template <class Update, DType kDType, bool kMaster, bool kStochastic>
struct BlockStep {
  using P = Element<kDType>;
  using T = typename P::type;
  const WarpWork<Update>& work;
  const typename Update::Constants& constants;
  int64_t begin;
  int64_t state_at;
  uint64_t random_key;  // of this block

  __device__ __forceinline__ T* param() const { return static_cast<T*>(work.tensor.param) + begin; }
  __device__ __forceinline__ const T* grad() const { return static_cast<const T*>(work.tensor.grad) + begin; }
  __device__ __forceinline__ float* state(int s) const { return work.tensor.state[s] + state_at; }
  __device__ __forceinline__ float* master() const { return work.tensor.master + state_at; }

  __device__ __forceinline__ float updated(float old, float grad, float* states) const {
    const Update update{constants, work.scalars};
    return update.apply(old, update.direction(update.prepare(old, grad * work.grad_factor), states));
  }

  // The new value of element i of the block in the parameter's type.
  __device__ __forceinline__ T encoded(float value, int i) const {
    if constexpr (kStochastic) {
      return float_to_bfloat16_stochastic(value, random16(random_key, static_cast<uint32_t>(i)));
    } else {
      return P::encode(value);
    }
  }

  // Element i of the block, whose state is the j-th from state_at.
  __device__ __forceinline__ void one(int i, int j) const {
    float states[kMaxStates];
    const T p = param()[i], g = grad()[i];
#pragma unroll
    for (int s = 0; s < Update::kStates; s++) states[s] = state(s)[j];
    float value = P::decode(p);
    if constexpr (kMaster) value = master()[j];
    value = updated(value, P::decode(g), states);
#pragma unroll
    for (int s = 0; s < Update::kStates; s++) state(s)[j] = states[s];
    if constexpr (kMaster) master()[j] = value;
    param()[i] = encoded(value, i);
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

  __device__ __forceinline__ void all(int n) const {
    if (n == kBlock && four_allowed()) {
#pragma unroll 1
      for (int i = lane_id() * 4; i < kBlock; i += kWarp * 4) four(i);
    } else {
#pragma unroll 1
      for (int i = lane_id(); i < n; i += kWarp) one(i, i);
    }
  }

  // The elements whose places are in list[0 .. n).
  __device__ __forceinline__ void some(const uint16_t* list, int n, bool compact) const {
#pragma unroll 1
    for (int j = lane_id(); j < n; j += kWarp) one(list[j], compact ? j : list[j]);
  }
};

// Writes the places of the set bits of a block to `list`, in order. One word of the block for each lane.
__device__ __forceinline__ void list_set_bits(uint32_t word, uint16_t* list) {
  int total;
  int next = exclusive_sum(__popc(word), &total);
  __syncwarp();  // the list of the previous block has been read
  for (; word != 0; word &= word - 1)
    list[next++] = static_cast<uint16_t>(lane_id() * 32 + __ffs(static_cast<int>(word)) - 1);
  __syncwarp();
}

struct Block {
  int64_t number;    // in the tensor
  int64_t state_at;  // index of its state
  int n;             // elements
  int selected;      // of those
};

template <DType kDType, bool kMaster, bool kStochastic, class Update>
__device__ __forceinline__ void step_block_as(WarpWork<Update>& work, const typename Update::Constants& constants,
                                              const StepOptions& options, const Block& block) {
  const int64_t mask_block = work.tensor.first_block + block.number;
  const uint64_t key = kStochastic ? block_key(work.random_key, static_cast<uint64_t>(mask_block)) : 0;
  const BlockStep<Update, kDType, kMaster, kStochastic> step{work, constants, block.number * kBlock, block.state_at,
                                                             key};
  if (block.selected == block.n) {
    step.all(block.n);
  } else {
    list_set_bits(options.mask.bits[mask_block * kWordsPerBlock + lane_id()], work.list);
    step.some(work.list, block.selected, options.compact);
  }
}

template <class Update>
__device__ __forceinline__ void step_block(WarpWork<Update>& work, const typename Update::Constants& constants,
                                           const StepOptions& options, const Block& block) {
  const bool master = work.tensor.master != nullptr;
  switch (work.tensor.dtype) {
    case DType::float32:
      return master ? step_block_as<DType::float32, true, false>(work, constants, options, block)
                    : step_block_as<DType::float32, false, false>(work, constants, options, block);
    case DType::float16:
      return master ? step_block_as<DType::float16, true, false>(work, constants, options, block)
                    : step_block_as<DType::float16, false, false>(work, constants, options, block);
    case DType::bfloat16:
      if (options.stochastic_rounding)
        return step_block_as<DType::bfloat16, false, true>(work, constants, options, block);
      return master ? step_block_as<DType::bfloat16, true, false>(work, constants, options, block)
                    : step_block_as<DType::bfloat16, false, false>(work, constants, options, block);
  }
}

// Up to kLongestRun blocks of one tensor, from its block `first`.
template <class Update>
__device__ __forceinline__ void step_run(WarpWork<Update>& work, const typename Update::Constants& constants,
                                         const StepOptions& options, int64_t first, int blocks) {
  // Lane i holds the number of selected elements of the tensor before block first + i.
  int64_t before = (first + lane_id()) * kBlock;
  if (before > work.tensor.numel) before = work.tensor.numel;
  if (options.mask.rank && lane_id() <= blocks) {
    const int64_t* rank = options.mask.rank + work.tensor.first_block;
    before = rank[first + lane_id()] - rank[0];
  }
  const int selected = static_cast<int>(__shfl_down_sync(kAllLanes, before, 1) - before);
  unsigned left = __ballot_sync(kAllLanes, lane_id() < blocks && selected != 0);
  for (; left != 0; left &= left - 1) {
    const int i = __ffs(static_cast<int>(left)) - 1;
    Block block;
    block.number = first + i;
    block.state_at = __shfl_sync(kAllLanes, before, i);
    block.selected = __shfl_sync(kAllLanes, selected, i);
    if (!options.compact) block.state_at = block.number * kBlock;
    const int64_t rest = work.tensor.numel - block.number * kBlock;
    block.n = rest < kBlock ? static_cast<int>(rest) : static_cast<int>(kBlock);
    step_block(work, constants, options, block);
  }
}

// Makes tensor t the one that the warp works on.
template <class Update>
__device__ __forceinline__ void take_tensor(WarpWork<Update>& work, const StepTable& table, int64_t t,
                                            const typename Update::Config& config, const StepOptions& options) {
  __syncwarp();  // all lanes are done with the previous tensor
  if (lane_id() == 0) {
    work.tensor = table.tensors[t];
    const uint64_t step = static_cast<uint64_t>(*work.tensor.step + 1.0f);
    if (step != work.step) {  // most tensors share the step
      work.step = step;
      work.scalars = scalars_of(config, learning_rate(options, config.lr), step);
      work.random_key = step_key(options.seed, step);
    }
  }
  __syncwarp();
}

template <class Update>
__global__ void __launch_bounds__(kThreads, kResident)
    masked_step(StepTable table, typename Update::Config config,
                const __grid_constant__ typename Update::Constants constants, StepOptions options, int64_t run) {
  if (options.found_inf && *options.found_inf != 0) return;
  __shared__ WarpWork<Update> works[kWarps];
  WarpWork<Update>& work = works[warp_id()];
  if (lane_id() == 0) {
    const float factor = gradient_factor(options.grad_scale);
    work.grad_factor = options.maximize ? -factor : factor;
    work.step = 0;  // no step has this number
  }
  const int64_t stride = int64_t{gridDim.x} * kWarps * run;
  for (int64_t begin = (int64_t{blockIdx.x} * kWarps + warp_id()) * run; begin < table.blocks; begin += stride) {
    const int64_t end = begin + run < table.blocks ? begin + run : table.blocks;
    int64_t t = owner_of(table.first_blocks, table.count, begin);
    for (int64_t at = begin; at < end; t++) {
      const int64_t first = table.first_blocks[t], next = table.first_blocks[t + 1];
      if (next <= at) continue;  // an empty tensor
      take_tensor(work, table, t, config, options);
      const int64_t upto = next < end ? next : end;
      step_run(work, constants, options, at - first, static_cast<int>(upto - at));
      at = upto;
    }
  }
  // Steps change only after all thread blocks have read them.
  if (last_to_arrive(table.arrived, gridDim.x)) {
    for (int64_t t = threadIdx.x; t < table.count; t += kThreads) *table.tensors[t].step += 1.0f;
  }
}

template <class Update>
cudaError_t launch_step(const StepPlan& plan, const typename Update::Config& config, const StepOptions& options,
                        void* stream) {
  if (plan.count == 0) return cudaSuccess;
  int64_t resident = 0;
  AIMFAIR_TRY(resident_blocks(reinterpret_cast<const void*>(&masked_step<Update>), kThreads, &resident));
  // Long runs save searches, short ones keep all warps busy.
  const int64_t warps = resident * kWarps;
  const int64_t run = std::clamp<int64_t>(plan.blocks / (8 * warps), 1, kLongestRun);
  const int64_t runs = (plan.blocks + run - 1) / run;
  const int64_t thread_blocks = std::clamp<int64_t>((runs + kWarps - 1) / kWarps, 1, resident);
  const StepTable table{array_at<unsigned>(plan.memory, 0), array_at<StepTensor>(plan.memory, tensors_place()),
                        array_at<int64_t>(plan.memory, first_blocks_place(plan.count)), plan.count, plan.blocks};
  return launch(masked_step<Update>, thread_blocks, kThreads, stream, table, config, constants_of(config), options,
                run);
}

}  // namespace

int64_t step_plan_bytes(int64_t count) {
  return first_blocks_place(count) + rounded_up((count + 1) * static_cast<int64_t>(sizeof(int64_t)));
}

int make_step_plan(const StepTensor* tensors, int64_t count, void* memory, void* stream, StepPlan* plan) {
  const auto first_blocks = first_units(count, [&](int64_t t) { return block_count(tensors[t].numel); });
  Upload upload;
  upload.add_zeros<unsigned>(1);
  upload.add(tensors, count);
  upload.add(first_blocks);
  *plan = {memory, count, first_blocks.back()};
  return upload.copy(memory, stream);
}

int masked_adamw(const StepPlan& plan, const AdamWConfig& config, bool amsgrad, const StepOptions& options,
                 void* stream) {
  return amsgrad ? launch_step<AdamW<true>>(plan, config, options, stream)
                 : launch_step<AdamW<false>>(plan, config, options, stream);
}

int masked_sgd(const StepPlan& plan, const SgdConfig& config, const StepOptions& options, void* stream) {
  return config.momentum != 0 ? launch_step<Sgd<true>>(plan, config, options, stream)
                              : launch_step<Sgd<false>>(plan, config, options, stream);
}

}  // namespace aimfair::cuda
