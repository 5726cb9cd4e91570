#pragma once

// The masked step for a range of one tensor. Included by kernels.cpp after a vector header.
//
// A range is cut into runs of blocks of one kind: nothing selected (skipped), everything selected (plain loops), some
// selected and, with compact state, few selected. In the last two the mask is first decoded to a list of the groups of
// 16 elements that have a selected one, so that the loop over them has no unpredictable branch and can prefetch the
// memory it will touch.

namespace aimfair::cpu::AIMFAIR_SIMD {
namespace {

constexpr int kRunBlocks = 64;                        // longest run that is decoded together
constexpr int kRunGroups = kRunBlocks * kBlock / 16;  // groups of 16 elements
constexpr int kBatch = 128;                           // selected elements gathered at a time; small, so that
                                                      // memory and arithmetic overlap
constexpr int kGroupsPerBlock = kBlock / 16;
constexpr int kMostListed = 400;     // selected elements of a block, up to which they are listed
constexpr int kPrefetchGroups = 48;  // how far ahead, in groups that have a selected element

// The groups of a run that have a selected element.
struct GroupList {
  const uint16_t* lanes;  // of the whole run
  uint16_t index[kRunGroups + 1];
  int size = 0;
  int prefetched;  // entries to prefetch: none where nearly all memory is touched, as the hardware prefetcher does
                   // better there

  GroupList(const uint16_t* lanes_, int groups, double prefetch_up_to) : lanes(lanes_) {
    for (int i = 0; i < groups; i++) {
      index[size] = static_cast<uint16_t>(i);
      size += lanes[i] != 0;
    }
    prefetched = size < prefetch_up_to * groups ? size : 0;
  }
};

template <class Update, DType kDType, bool kMaster, bool kStochastic>
struct Step {
  using Param = Storage<kDType>;
  using Fp32 = Storage<DType::float32>;
  using Element = typename Param::type;

  const Update update;
  const StepTensor& tensor;
  const StepOptions& options;
  Element* const param;
  const Element* const grad;
  const float grad_factor;  // negative to maximize
  const uint64_t random_key;

  Step(const Update& update_, const StepTensor& tensor_, const StepOptions& options_, const StepValues& values)
      : update(update_),
        tensor(tensor_),
        options(options_),
        param(static_cast<Element*>(tensor_.param)),
        grad(static_cast<const Element*>(tensor_.grad)),
        grad_factor(options_.maximize ? -values.grad_factor : values.grad_factor),
        random_key(kStochastic ? step_key(options_.seed, values.step) : 0) {}

  AIMFAIR_INLINE float* state_of(int s) const { return static_cast<float*>(tensor.state[s]); }

  AIMFAIR_INLINE Floats read_grad(int64_t at, int count) const {
    return Param::get(grad + at, count) * Floats(grad_factor);
  }

  // Rounds new values to the parameter's type and writes the selected ones.
  AIMFAIR_INLINE void write_param(int64_t at, Floats x, Lanes selected, int count) const {
    const uint64_t key = kStochastic ? block_key_of(at / kBlock) : 0;
    put_rounded<kDType, kStochastic>(param + at, x, key, at % kBlock, selected, count);
  }

  // Blocks with some elements selected, dense state: everything is loaded, only selected elements are stored.
  void some_selected_dense(int64_t first_block, int64_t end_block) const {
    const GroupList list = groups_of(first_block, end_block, 0.95);
    const int64_t begin = first_block * kBlock;
    for (int j = 0; j < kPrefetchGroups; j++) prefetch_group<true>(list, j, begin);
    for (int j = 0; j < list.size; j++) {
      prefetch_group<true>(list, j + kPrefetchGroups, begin);
      const int64_t at = begin + list.index[j] * 16;
      const Lanes selected = list.lanes[list.index[j]];
      const int count = group_size(at);
      Floats state[kMaxStates];
      for (int s = 0; s < Update::kStates; s++) state[s] = Fp32::get(state_of(s) + at, count);
      const Floats value = updated(kMaster ? Fp32::get(tensor.master + at, count) : Param::get(param + at, count),
                                   read_grad(at, count), state);
      for (int s = 0; s < Update::kStates; s++) Fp32::put_lanes(state_of(s) + at, state[s], selected, count);
      if constexpr (kMaster) Fp32::put_lanes(tensor.master + at, value, selected, count);
      write_param(at, value, selected, count);
    }
  }

  // The same with compact state, which begins at index `state_at`. In batches: the selected gradients are
  // gathered, their directions computed where the state is contiguous, and scattered to the parameters.
  void some_selected_compact(int64_t first_block, int64_t end_block, int64_t state_at) const {
    const GroupList list = groups_of(first_block, end_block, 0.7);
    alignas(64) float moved[kBatch + 32];  // gradients, then directions (with master weights: new values)
    const int64_t begin = first_block * kBlock;
    for (int j = 0; j < kPrefetchGroups; j++) prefetch_group<false>(list, j, begin);
    for (int j = 0; j < list.size;) {
      const int batch_begin = j;
      int size = 0;
      for (; j < list.size && size <= kBatch - 16; j++) {
        prefetch_group<false>(list, j + kPrefetchGroups, begin);
        const int64_t at = begin + list.index[j] * 16;
        const int count = group_size(at);
        Floats g = read_grad(at, count);
        if constexpr (!kMaster) g = update.prepare(Param::get(param + at, count), g);
        const Lanes selected = list.lanes[list.index[j]];
        store(moved + size, compress(selected, g));
        size += __builtin_popcount(selected);
      }
      store(moved + size, Floats(0.0f));  // the last 16 are computed in full

      for (int i = 0; i < size; i += 16) compact_direction(moved + i, state_at + i, size - i < 16 ? size - i : 16);
      state_at += size;

      for (int i = batch_begin, from = 0; i < j; i++) {
        const int64_t at = begin + list.index[i] * 16;
        const Lanes selected = list.lanes[list.index[i]];
        const int count = group_size(at);
        const Floats value = expand(selected, load(moved + from));
        write_param(at, kMaster ? value : update.apply(Param::get(param + at, count), value), selected, count);
        from += __builtin_popcount(selected);
      }
    }
  }

  // Compact state and few elements selected: those are listed, and their gradients and parameters gathered and
  // scattered sixteen at a time, so that the arithmetic is of selected elements only.
  void few_selected_compact(int64_t first_block, int64_t end_block, int64_t state_at) const {
    const GroupList list = groups_of(first_block, end_block, 1.0);
    const int64_t begin = first_block * kBlock;
    alignas(64) int32_t places[kBatch + 16];  // in the run
    for (int j = 0; j < kPrefetchGroups; j++) prefetch_group<false>(list, j, begin);
    for (int j = 0; j < list.size;) {
      int size = 0;
      const int block = list.index[j] / kGroupsPerBlock;
      for (; j < list.size && size <= kBatch - 16; j++) {
        // With stochastic rounding one block at a time: each has its own random key.
        if (kStochastic && list.index[j] / kGroupsPerBlock != block) break;
        prefetch_group<false>(list, j + kPrefetchGroups, begin);
        const Lanes selected = list.lanes[list.index[j]];
        store(places + size, compress(selected, lane_index() + Words(static_cast<uint32_t>(list.index[j]) * 16)));
        size += __builtin_popcount(selected);
      }
      const uint64_t key = kStochastic ? block_key_of(first_block + block) : 0;
      for (int i = 0; i < size; i += 16) {
        listed_group(begin, load(places + i), state_at + i, key, size - i < 16 ? size - i : 16);
      }
      state_at += size;
    }
  }

  // The first `count` of sixteen elements at `places` from `begin` on.
  AIMFAIR_INLINE void listed_group(int64_t begin, Words places, int64_t state_at, uint64_t key, int count) const {
    Floats state[kMaxStates];
    for (int s = 0; s < Update::kStates; s++) state[s] = Fp32::get(state_of(s) + state_at, count);
    const Floats old =
        kMaster ? Fp32::get(tensor.master + state_at, count) : Param::get_at(param + begin, places, count);
    const Floats value = updated(old, Param::get_at(grad + begin, places, count) * Floats(grad_factor), state);
    for (int s = 0; s < Update::kStates; s++) Fp32::put(state_of(s) + state_at, state[s], count);
    if constexpr (kMaster) Fp32::put(tensor.master + state_at, value, count);
    if constexpr (kStochastic) {
      const Words random = random16(key, places & Words(static_cast<uint32_t>(kBlock - 1)));
      Param::put_at(param + begin, places, Param::pack(value, random), count);
    } else {
      Param::put_at(param + begin, places, Param::pack(value), count);
    }
  }

  AIMFAIR_INLINE uint64_t block_key_of(int64_t block) const {
    return block_key(random_key, static_cast<uint64_t>(tensor.first_block + block));
  }

  AIMFAIR_INLINE void compact_direction(float* moved, int64_t state_at, int count) const {
    Floats state[kMaxStates];
    for (int s = 0; s < Update::kStates; s++) state[s] = Fp32::get(state_of(s) + state_at, count);
    if constexpr (kMaster) {
      const Floats value = updated(Fp32::get(tensor.master + state_at, count), load(moved), state);
      Fp32::put(tensor.master + state_at, value, count);
      store(moved, value);
    } else {
      store(moved, update.direction(load(moved), state));
    }
    for (int s = 0; s < Update::kStates; s++) Fp32::put(state_of(s) + state_at, state[s], count);
  }

  AIMFAIR_INLINE Floats updated(Floats old, Floats g, Floats* state) const {
    return update.apply(old, update.direction(update.prepare(old, g), state));
  }

  // Prefetches the memory of entry j of a list. Always inlined: GCC treats a function that only prefetches as one
  // without effect.
  template <bool kDenseState>
  AIMFAIR_INLINE void prefetch_group(const GroupList& list, int j, int64_t begin) const {
    if (j >= list.prefetched) return;
    const int64_t at = begin + list.index[j] * 16;
    prefetch(param + at);
    prefetch(grad + at);
    for (int s = 0; s < Update::kStates && kDenseState; s++) prefetch(state_of(s) + at);
    if constexpr (kMaster && kDenseState) prefetch(tensor.master + at);
  }

  // Into the second-level cache: on the processors tried, the first level supports too few misses in flight.
  AIMFAIR_INLINE static void prefetch(const void* at) { __builtin_prefetch(at, 0, 2); }

  // Elements [begin, end), all selected; their state begins at index `state_at`.
  void all_selected(int64_t begin, int64_t end, int64_t state_at) const {
    int64_t at = begin;
    for (; at + 16 <= end; at += 16) full_group(at, 16, state_at + (at - begin));
    if (at < end) full_group(at, static_cast<int>(end - at), state_at + (at - begin));
  }

  AIMFAIR_INLINE void full_group(int64_t at, int count, int64_t state_at) const {
    Floats state[kMaxStates];
    for (int s = 0; s < Update::kStates; s++) state[s] = Fp32::get(state_of(s) + state_at, count);
    const Floats old = kMaster ? Fp32::get(tensor.master + state_at, count) : Param::get(param + at, count);
    const Floats value = updated(old, read_grad(at, count), state);
    for (int s = 0; s < Update::kStates; s++) Fp32::put(state_of(s) + state_at, state[s], count);
    if constexpr (kMaster) Fp32::put(tensor.master + state_at, value, count);
    write_param(at, value, 0xffff, count);
  }

  GroupList groups_of(int64_t first_block, int64_t end_block, double prefetch_up_to) const {
    const uint32_t* words = options.mask.bits + (tensor.first_block + first_block) * kWordsPerBlock;
    return GroupList(reinterpret_cast<const uint16_t*>(words),
                     static_cast<int>((end_block - first_block) * kBlock / 16), prefetch_up_to);
  }

  AIMFAIR_INLINE int group_size(int64_t at) const {
    return tensor.numel - at < 16 ? static_cast<int>(tensor.numel - at) : 16;
  }

  // Elements [begin, end); begin is a multiple of kBlock.
  void range(int64_t begin, int64_t end) const {
    if (!options.mask.bits) return all_selected(begin, end, begin);
    const int64_t* rank = options.mask.rank + tensor.first_block;
    const int64_t end_block = block_count(end);
    enum Kind { kNone, kFew, kSome, kAll };  // selected elements of a block
    const auto kind = [&](int64_t block) {
      const int64_t selected = rank[block + 1] - rank[block];
      const int64_t size = tensor.numel - block * kBlock < kBlock ? tensor.numel - block * kBlock : kBlock;
      if (selected == 0) return kNone;
      return selected == size ? kAll : options.compact && selected <= kMostListed ? kFew : kSome;
    };
    for (int64_t block = begin / kBlock; block < end_block;) {
      const Kind run_kind = kind(block);
      int64_t run_end = block + 1;
      while (run_end < end_block && run_end - block < kRunBlocks && kind(run_end) == run_kind) run_end++;
      const int64_t compact_at = rank[block] - rank[0];
      if (run_kind == kAll) {
        const int64_t run_size = run_end * kBlock < end ? run_end * kBlock : end;
        all_selected(block * kBlock, run_size, options.compact ? compact_at : block * kBlock);
      } else if (run_kind == kFew) {
        few_selected_compact(block, run_end, compact_at);
      } else if (run_kind == kSome && options.compact) {
        some_selected_compact(block, run_end, compact_at);
      } else if (run_kind == kSome) {
        some_selected_dense(block, run_end);
      }
      block = run_end;
    }
  }
};

// Chooses the instance for the element type, the master weights and the rounding.
template <class Update>
void float32_step_range(const StepTensor& tensor, const StepOptions& options, const StepValues& values,
                        const Update& update, int64_t begin, int64_t end) {
  const bool master = tensor.master != nullptr;
  switch (tensor.dtype) {
    case DType::float32:
      return master ? Step<Update, DType::float32, true, false>(update, tensor, options, values).range(begin, end)
                    : Step<Update, DType::float32, false, false>(update, tensor, options, values).range(begin, end);
    case DType::float16:
      return master ? Step<Update, DType::float16, true, false>(update, tensor, options, values).range(begin, end)
                    : Step<Update, DType::float16, false, false>(update, tensor, options, values).range(begin, end);
    case DType::bfloat16:
      if (options.stochastic_rounding) {
        return Step<Update, DType::bfloat16, false, true>(update, tensor, options, values).range(begin, end);
      }
      return master ? Step<Update, DType::bfloat16, true, false>(update, tensor, options, values).range(begin, end)
                    : Step<Update, DType::bfloat16, false, false>(update, tensor, options, values).range(begin, end);
  }
}

}  // namespace
}  // namespace aimfair::cpu::AIMFAIR_SIMD
