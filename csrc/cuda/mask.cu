#include "aimfair/mask.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

#include "cuda/launch.h"
#include "cuda/warp.h"

// Packing, unpacking and expanding masks, where a thread block takes a tile of one tensor at a time, and rank
// directories.

namespace aimfair::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kTile = 32 * kBlock;  // elements

// Places a tensor in a mask.
struct Tensor {
  int64_t numel;
  int64_t first_block;
};

struct BoolTensor : Tensor {
  uint8_t* bools;
};

struct UnitTensor : Tensor {
  int64_t length;            // of a unit
  int64_t first_unit_block;  // in the mask over units
};

// Calls use(tensor, first element, one past the last) for every tile of this thread block.
template <class T, class Use>
__device__ __forceinline__ void for_each_tile(const T* tensors, const int64_t* first_tiles, int64_t count,
                                              int64_t tiles, const Use& use) {
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t t = owner_of(first_tiles, count, tile);
    const T tensor = tensors[t];
    const int64_t begin = (tile - first_tiles[t]) * kTile, rest = block_count(tensor.numel) * kBlock - begin;
    use(tensor, begin, begin + (rest < kTile ? rest : kTile));
  }
}

// Queues such a kernel. The parameters of all of them begin alike.
template <class T, class Kernel, class... Arguments>
cudaError_t launch_tiles(const Kernel& kernel, const std::vector<T>& tensors, const Allocate& allocate, void* stream,
                         const Arguments&... arguments) {
  const auto count = static_cast<int64_t>(tensors.size());
  const std::vector<int64_t> first_tiles =
      first_units(count, [&](int64_t t) { return (tensors[static_cast<size_t>(t)].numel + kTile - 1) / kTile; });
  const int64_t tiles = first_tiles.back();
  if (tiles == 0) return cudaSuccess;
  Upload upload;
  const int64_t tensors_at = upload.add(tensors), first_tiles_at = upload.add(first_tiles);
  void* table = allocate(upload.bytes());
  if (!table) return cudaErrorMemoryAllocation;
  AIMFAIR_TRY(upload.copy(table, stream));
  return launch_persistent(kernel, tiles, kThreads, stream, array_at<T>(table, tensors_at),
                           array_at<int64_t>(table, first_tiles_at), count, tiles, arguments...);
}

// A thread takes 16 elements: 16 bytes, and half a word of the mask.
constexpr int kRun = 16;

__device__ __forceinline__ bool run_aligned(const uint8_t* bools) {
  return reinterpret_cast<uintptr_t>(bools) % kRun == 0;
}

// Four bytes of 0 or 1 to four bits, the first byte lowest, and back: multiplying adds shifted copies of x, of which
// no two have a bit at the same place.
__device__ __forceinline__ uint32_t pack4(uint32_t x) { return (x & 0x01010101u) * 0x01020408u >> 24; }
__device__ __forceinline__ uint32_t unpack4(uint32_t x) { return (x & 0xfu) * 0x00204081u & 0x01010101u; }

__global__ void __launch_bounds__(kThreads)
    pack_tiles(const BoolTensor* tensors, const int64_t* first_tiles, int64_t count, int64_t tiles, uint32_t* bits) {
  for_each_tile(tensors, first_tiles, count, tiles, [&](const BoolTensor& tensor, int64_t begin, int64_t end) {
    const bool aligned = run_aligned(tensor.bools);
    auto* halves = reinterpret_cast<uint16_t*>(bits + tensor.first_block * kWordsPerBlock);
    for (int64_t at = begin + threadIdx.x * kRun; at < end; at += kThreads * kRun) {
      uint32_t half = 0;
      if (aligned && at + kRun <= tensor.numel) {
        const uint4 x = *reinterpret_cast<const uint4*>(tensor.bools + at);
        half = pack4(x.x) | pack4(x.y) << 4 | pack4(x.z) << 8 | pack4(x.w) << 12;
      } else {
#pragma unroll
        for (int i = 0; i < kRun; i++) {
          if (at + i < tensor.numel) half |= (tensor.bools[at + i] & 1u) << i;
        }
      }
      halves[at / kRun] = static_cast<uint16_t>(half);
    }
  });
}

__global__ void __launch_bounds__(kThreads) unpack_tiles(const BoolTensor* tensors, const int64_t* first_tiles,
                                                         int64_t count, int64_t tiles, const uint32_t* bits) {
  for_each_tile(tensors, first_tiles, count, tiles, [&](const BoolTensor& tensor, int64_t begin, int64_t end) {
    const bool aligned = run_aligned(tensor.bools);
    const auto* halves = reinterpret_cast<const uint16_t*>(bits + tensor.first_block * kWordsPerBlock);
    for (int64_t at = begin + threadIdx.x * kRun; at < end && at < tensor.numel; at += kThreads * kRun) {
      const uint32_t half = halves[at / kRun];
      if (aligned && at + kRun <= tensor.numel) {
        *reinterpret_cast<uint4*>(tensor.bools + at) = {unpack4(half), unpack4(half >> 4), unpack4(half >> 8),
                                                        unpack4(half >> 12)};
      } else {
#pragma unroll
        for (int i = 0; i < kRun; i++) {
          if (at + i < tensor.numel) tensor.bools[at + i] = half >> i & 1u;
        }
      }
    }
  });
}

// The word of a mask that begins at an element.
__device__ __forceinline__ uint32_t expanded_word(const UnitTensor& tensor, const uint32_t* unit_bits, int64_t begin) {
  if (begin >= tensor.numel) return 0;
  const int count = tensor.numel - begin < 32 ? static_cast<int>(tensor.numel - begin) : 32;
  const int64_t unit = begin / tensor.length;
  // All units that reach into this word have their bits in one word: where a word of units begins, one of elements
  // does.
  uint32_t selected = unit_bits[unit / 32] >> (unit % 32);
  uint32_t result = 0;
  int64_t left = (unit + 1) * tensor.length - begin;  // elements of the unit from here on
  for (int bit = 0; bit < count; selected >>= 1, left = tensor.length) {
    const int run = left < count - bit ? static_cast<int>(left) : count - bit;
    if (selected & 1u) result |= 0xffffffffu >> (32 - run) << bit;
    bit += run;
  }
  return result;
}

__global__ void __launch_bounds__(kThreads)
    expand_tiles(const UnitTensor* tensors, const int64_t* first_tiles, int64_t count, int64_t tiles,
                 const uint32_t* unit_bits, uint32_t* bits) {
  for_each_tile(tensors, first_tiles, count, tiles, [&](const UnitTensor& tensor, int64_t begin, int64_t end) {
    const uint32_t* from = unit_bits + tensor.first_unit_block * kWordsPerBlock;
    uint32_t* words = bits + tensor.first_block * kWordsPerBlock;
    for (int64_t word = begin / 32 + threadIdx.x; word < end / 32; word += kThreads) {
      words[word] = expanded_word(tensor, from, word * 32);
    }
  });
}

template <class Bools>
std::vector<BoolTensor> bool_tensors(Bools* const* bools, const int64_t* numels, int64_t count) {
  std::vector<BoolTensor> tensors;
  int64_t first_block = 0;
  for (int64_t t = 0; t < count; t++) {
    tensors.push_back({{numels[t], first_block}, const_cast<uint8_t*>(bools[t])});
    first_block += block_count(numels[t]);
  }
  return tensors;
}

constexpr int kWarps = kThreads / kWarp;
constexpr int kBlocksPerWarp = 4;

// rank[b + 1] = the set bits of block b: a warp for each block, a lane for each of its words, several blocks at once.
__global__ void __launch_bounds__(kThreads) count_bits(const uint32_t* bits, int64_t blocks, int64_t* rank) {
  static_assert(kWordsPerBlock == kWarp);
  if (blockIdx.x == 0 && threadIdx.x == 0) rank[0] = 0;
  const int64_t stride = int64_t{gridDim.x} * kWarps * kBlocksPerWarp;
  for (int64_t begin = (int64_t{blockIdx.x} * kWarps + warp_id()) * kBlocksPerWarp; begin < blocks; begin += stride) {
    uint32_t words[kBlocksPerWarp];
#pragma unroll
    for (int b = 0; b < kBlocksPerWarp; b++) {
      words[b] = begin + b < blocks ? bits[(begin + b) * kWordsPerBlock + lane_id()] : 0;
    }
#pragma unroll
    for (int b = 0; b < kBlocksPerWarp; b++) {
      const int set = warp_sum(__popc(words[b]));
      if (lane_id() == b && begin + b < blocks) rank[begin + b + 1] = set;
    }
  }
}

}  // namespace

int pack_bits(const uint8_t* const* bools, const int64_t* numels, int64_t count, uint32_t* bits,
              const Allocate& allocate, void* stream) {
  return launch_tiles(pack_tiles, bool_tensors(bools, numels, count), allocate, stream, bits);
}

int unpack_bits(const uint32_t* bits, const int64_t* numels, int64_t count, uint8_t* const* bools,
                const Allocate& allocate, void* stream) {
  return launch_tiles(unpack_tiles, bool_tensors(bools, numels, count), allocate, stream, bits);
}

int expand_units(const uint32_t* unit_bits, const int64_t* numels, const int64_t* units, int64_t count, uint32_t* bits,
                 const Allocate& allocate, void* stream) {
  std::vector<UnitTensor> tensors;
  int64_t first_block = 0, first_unit_block = 0;
  for (int64_t t = 0; t < count; t++) {
    tensors.push_back({{numels[t], first_block}, units[t] == 0 ? 0 : numels[t] / units[t], first_unit_block});
    first_block += block_count(numels[t]);
    first_unit_block += block_count(units[t]);
  }
  return launch_tiles(expand_tiles, tensors, allocate, stream, unit_bits, bits);
}

int rank(const uint32_t* bits, int64_t blocks, int64_t* rank, const Allocate& allocate, void* stream) {
  constexpr int64_t kPerThreadBlock = kWarps * kBlocksPerWarp;
  const int64_t work = std::max<int64_t>(1, (blocks + kPerThreadBlock - 1) / kPerThreadBlock);
  AIMFAIR_TRY(launch_persistent(count_bits, work, kThreads, stream, bits, blocks, rank));
  return inclusive_scan(rank + 1, blocks, allocate, stream);
}

}  // namespace aimfair::cuda
