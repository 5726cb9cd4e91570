#pragma once

// The masked step with moments of 16 or 8 bits, for a range of one tensor. Included by kernels.cpp after step.h.
//
// Block by block: the selected elements are gathered as floats, so that the arithmetic is the same for all element
// types and forms of state, then rounded and scattered.

namespace aimfair::cpu::AIMFAIR_SIMD {
namespace {

constexpr int kPrefetchBlocks = 4;  // how far ahead
constexpr int kPrefetchUpTo = 45;   // groups of the 64 of a block

// The selected elements of a block, in index order.
template <int kStates>
struct BlockElements {
  int64_t begin;     // the block's first element
  int64_t state_at;  // where the state of the selected elements begins; dense state: that of the block
  int groups;        // of 16 elements
  int size;          // selected elements
  uint64_t key;      // of the block's random bits
  alignas(64) float grad[kBlock + 16], weight[kBlock + 16];
  alignas(64) float state[kStates][kBlock + 16];  // after the update: bits8: rounded magnitudes with the sign
  alignas(64) int32_t place[kBlock + 16];         // in the block
};

template <class Update, Moments kMoments>
struct MomentsStep {
  using Fp32 = Storage<DType::float32>;
  using Bf16 = Storage<DType::bfloat16>;
  using Elements = BlockElements<Update::kStates>;

  const Update update;
  const StepTensor& tensor;
  const StepOptions& options;
  const float grad_factor;  // negative to maximize
  const uint64_t random_key;

  MomentsStep(const Update& update_, const StepTensor& tensor_, const StepOptions& options_, const StepValues& values)
      : update(update_),
        tensor(tensor_),
        options(options_),
        grad_factor(options_.maximize ? -values.grad_factor : values.grad_factor),
        random_key(step_key(options_.seed, values.step)) {}

  // Calls body(first element, selected lanes, elements, selected elements before) for the groups of 16 with a selected
  // element.
  template <class Body>
  AIMFAIR_INLINE void for_each_group(const Elements& block, const Body& body) const {
    const auto* lanes = lanes_of(block.begin);
    for (int i = 0, before = 0; i < block.groups; i++) {
      const int64_t at = block.begin + i * 16;
      const int count = tensor.numel - at < 16 ? static_cast<int>(tensor.numel - at) : 16;
      const Lanes selected = lanes ? lanes[i] : first_lanes(count);
      if (selected == 0) continue;
      body(at, selected, count, before);
      before += __builtin_popcount(selected);
    }
  }

  // The mask of the block that begins at an element, by groups; null: all are selected.
  AIMFAIR_INLINE const uint16_t* lanes_of(int64_t begin) const {
    if (!options.mask.bits) return nullptr;
    return reinterpret_cast<const uint16_t*>(options.mask.bits +
                                             (tensor.first_block + begin / kBlock) * kWordsPerBlock);
  }

  // Prefetches what a block will read besides compact state, if only some of its elements are selected: the hardware
  // does that better where all memory is touched.
  template <DType kDType>
  AIMFAIR_INLINE void prefetch_block(int64_t begin, int64_t end) const {
    const auto* lanes = lanes_of(begin);
    if (begin >= end || !lanes) return;
    const int64_t size = end - begin < kBlock ? end - begin : kBlock;
    uint8_t groups[kBlock / 16 + 1];
    int count = 0;
    for (int i = 0; i < (size + 15) / 16; i++) {  // without an unpredictable branch
      groups[count] = static_cast<uint8_t>(i);
      count += lanes[i] != 0;
    }
    if (count > kPrefetchUpTo) return;
    const auto* param = static_cast<const typename Storage<kDType>::type*>(tensor.param) + begin;
    const auto* grad = static_cast<const typename Storage<kDType>::type*>(tensor.grad) + begin;
    for (int i = 0; i < count; i++) {
      __builtin_prefetch(param + groups[i] * 16);
      __builtin_prefetch(grad + groups[i] * 16);
      for (int s = 0; s < Update::kStates && !options.compact; s++) {
        constexpr int kBytes = kMoments == Moments::bfloat16 ? 2 : 1;
        __builtin_prefetch(static_cast<const char*>(tensor.state[s]) + kBytes * (begin + groups[i] * 16));
      }
    }
  }

  static AIMFAIR_INLINE Floats to_front(Lanes lanes, Floats x) { return lanes == 0xffff ? x : compress(lanes, x); }
  static AIMFAIR_INLINE Floats to_places(Lanes lanes, Floats x) { return lanes == 0xffff ? x : expand(lanes, x); }

  template <DType kDType>
  void gather(Elements& block) const {
    using Param = Storage<kDType>;
    const auto* param = static_cast<const typename Param::type*>(tensor.param);
    const auto* grad = static_cast<const typename Param::type*>(tensor.grad);
    for_each_group(block, [&](int64_t at, Lanes selected, int count, int before) {
      const Words place = lane_index() + Words(static_cast<uint32_t>(at % kBlock));
      store(block.place + before, compress(selected, place));
      store(block.grad + before, to_front(selected, Param::get(grad + at, count) * Floats(grad_factor)));
      if (!tensor.master) store(block.weight + before, to_front(selected, Param::get(param + at, count)));
      if (options.compact) return;
      if (tensor.master) store(block.weight + before, to_front(selected, Fp32::get(tensor.master + at, count)));
      for (int s = 0; s < Update::kStates; s++) {
        store(block.state[s] + before, to_front(selected, read_state(s, block.begin / kBlock, at, count)));
      }
    });
    if (!options.compact) return;
    for (int i = 0; i < block.size; i += 16) {
      const int count = block.size - i < 16 ? block.size - i : 16;
      if (tensor.master) store(block.weight + i, Fp32::get(tensor.master + block.state_at + i, count));
      for (int s = 0; s < Update::kStates; s++) {
        store(block.state[s] + i, read_state(s, block.begin / kBlock, block.state_at + i, count));
      }
    }
  }

  AIMFAIR_INLINE Floats read_state(int s, int64_t block, int64_t at, int count) const {
    if constexpr (kMoments == Moments::bfloat16) {
      return Bf16::get(static_cast<const uint16_t*>(tensor.state[s]) + at, count);
    } else {
      const Bits8 memory = bits8_in(tensor.state[s], tensor.numel);
      const Words code = load_bytes(memory.codes + at, count), base(memory.bases[block]);
      if (s == Update::kRootState) {
        const Floats root = floats_of(Bits8Format<true>::decode(code, base));
        return root * root;
      }
      return floats_of(Bits8Format<false>::decode(code & Words(127u), base) | (code & Words(128u)) << 24);
    }
  }

  // Steps the elements; block.weight is then their new values and block.state their rounded state, except that in 8
  // bits the bases are not subtracted yet: they go to `bases`.
  void step(Elements& block, uint32_t* bases) const {
    Words largest[kMaxStates] = {Words(0u), Words(0u), Words(0u)};
    for (int i = 0; i < block.size; i += 16) {
      Floats state[kMaxStates];
      for (int s = 0; s < Update::kStates; s++) state[s] = load(block.state[s] + i);
      const Floats old = load(block.weight + i),
                   direction = update.direction(update.prepare(old, load(block.grad + i)), state);
      store(block.weight + i, update.apply(old, direction));
      [[maybe_unused]] const Lanes used = block.size - i < 16 ? first_lanes(block.size - i) : Lanes{0xffff};
      for (int s = 0; s < Update::kStates; s++) {
        store(block.state[s] + i, rounded(s, state[s], moment_random(block.key, load(block.place + i), s)));
        if constexpr (kMoments == Moments::bits8) {
          const Words magnitude = bits_of(load(block.state[s] + i)) & Words(0x7fffffffu);
          largest[s] = greatest(largest[s], blend(used, magnitude, Words(0u)));
        }
      }
    }
    for (int s = 0; s < Update::kStates && kMoments == Moments::bits8; s++) {
      int32_t lanes[16];
      store(lanes, largest[s]);
      uint32_t all = 0;
      for (const int32_t lane : lanes) all = aimfair::greatest(all, static_cast<uint32_t>(lane));
      bases[s] = s == Update::kRootState ? Bits8Format<true>::base(all) : Bits8Format<false>::base(all);
    }
  }

  static AIMFAIR_INLINE Floats rounded(int s, Floats x, Words random) {
    const bool root = kMoments == Moments::bits8 && s == Update::kRootState;
    if (root) x = square_root(x);
    const Words bits = blend(nan_lanes(x), Words(kQuietNaN), bits_of(x));
    const Words sign = bits & Words(0x80000000u), magnitude = bits & Words(0x7fffffffu);
    if constexpr (kMoments == Moments::bfloat16) {
      return floats_of(sign | (((magnitude + random) >> 16) << 16));
    } else {
      if (root) return floats_of(Bits8Format<true>::round(magnitude, random));
      return floats_of(sign | Bits8Format<false>::round(magnitude, random));
    }
  }

  // Writes the selected ones of `count` elements of state s from `at` on.
  AIMFAIR_INLINE void write_state(int s, int64_t at, Floats x, uint32_t base, Lanes selected, int count) const {
    if constexpr (kMoments == Moments::bfloat16) {
      Bf16::put_lanes(static_cast<uint16_t*>(tensor.state[s]) + at, Bf16::pack(x), selected, count);
    } else {
      const Words bits = bits_of(x), minus_base(0u - base);
      const Words code = s == Update::kRootState ? Bits8Format<true>::encode(bits, minus_base)
                                                 : Bits8Format<false>::encode(bits & Words(0x7fffffffu), minus_base) |
                                                       ((bits >> 24) & Words(128u));
      store_bytes_lanes(bits8_in(tensor.state[s], tensor.numel).codes + at, code, selected, count);
    }
  }

  template <DType kDType, bool kStochastic>
  void scatter(const Elements& block, const uint32_t* bases) const {
    auto* param = static_cast<typename Storage<kDType>::type*>(tensor.param);
    for_each_group(block, [&](int64_t at, Lanes selected, int count, int before) {
      const Floats value = to_places(selected, load(block.weight + before));
      put_rounded<kDType, kStochastic>(param + at, value, block.key, at % kBlock, selected, count);
      if (options.compact) return;
      if (tensor.master) Fp32::put_lanes(tensor.master + at, value, selected, count);
      for (int s = 0; s < Update::kStates; s++) {
        write_state(s, at, to_places(selected, load(block.state[s] + before)), bases[s], selected, count);
      }
    });
    for (int i = 0; i < block.size && options.compact; i += 16) {
      const int count = block.size - i < 16 ? block.size - i : 16;
      if (tensor.master) Fp32::put(tensor.master + block.state_at + i, load(block.weight + i), count);
      for (int s = 0; s < Update::kStates; s++) {
        write_state(s, block.state_at + i, load(block.state[s] + i), bases[s], 0xffff, count);
      }
    }
    for (int s = 0; s < Update::kStates && kMoments == Moments::bits8; s++) {
      bits8_in(tensor.state[s], tensor.numel).bases[block.begin / kBlock] = static_cast<uint16_t>(bases[s]);
    }
  }

  // Elements [begin, end); begin is a multiple of kBlock.
  template <DType kDType, bool kStochastic>
  void range_as(int64_t begin, int64_t end) const {
    const int64_t* rank = options.mask.rank ? options.mask.rank + tensor.first_block : nullptr;
    for (int64_t at = begin; at < end; at += kBlock) {
      prefetch_block<kDType>(at + kBlock * kPrefetchBlocks, end);
      const int64_t number = at / kBlock, size = end - at < kBlock ? end - at : kBlock;
      Elements block;
      block.begin = at;
      block.groups = static_cast<int>((size + 15) / 16);
      block.size = static_cast<int>(rank ? rank[number + 1] - rank[number] : size);
      block.state_at = options.compact && rank ? rank[number] - rank[0] : at;
      block.key = block_key(random_key, static_cast<uint64_t>(tensor.first_block + number));
      if (block.size == 0) continue;
      uint32_t bases[kMaxStates];
      gather<kDType>(block);
      step(block, bases);
      scatter<kDType, kStochastic>(block, bases);
    }
  }

  void range(int64_t begin, int64_t end) const {
    switch (tensor.dtype) {
      case DType::float32:
        return range_as<DType::float32, false>(begin, end);
      case DType::float16:
        return range_as<DType::float16, false>(begin, end);
      case DType::bfloat16:
        return options.stochastic_rounding ? range_as<DType::bfloat16, true>(begin, end)
                                           : range_as<DType::bfloat16, false>(begin, end);
    }
  }
};

// Chooses the instance for the type of the moments.
template <class Update>
void step_range(const StepTensor& tensor, const StepOptions& options, const StepValues& values, const Update& update,
                int64_t begin, int64_t end) {
  if constexpr (Update::kStates > 0) {
    if (options.moments == Moments::bfloat16) {
      return MomentsStep<Update, Moments::bfloat16>(update, tensor, options, values).range(begin, end);
    }
  }
  if constexpr (Update::kStates > 0 && Update::kStates < kMaxStates) {
    if (options.moments == Moments::bits8) {
      return MomentsStep<Update, Moments::bits8>(update, tensor, options, values).range(begin, end);
    }
  }
  float32_step_range(tensor, options, values, update, begin, end);
}

}  // namespace
}  // namespace aimfair::cpu::AIMFAIR_SIMD
