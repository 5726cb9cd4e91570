#include "aimfair/mask.h"

#include <cstring>
#include <vector>

#include "cpu/chunks.h"
#include "cpu/kernels.h"

namespace aimfair::cpu {
namespace {

constexpr int64_t kChunk = 64 * kBlock;  // elements

// First block of every tensor in the mask.
std::vector<int64_t> first_blocks(const int64_t* numels, int64_t count) {
  std::vector<int64_t> first(static_cast<size_t>(count) + 1);
  for (int64_t t = 0; t < count; t++) first[t + 1] = first[t] + block_count(numels[t]);
  return first;
}

Chunks chunks_of(const int64_t* numels, int64_t count) {
  return Chunks(count, kChunk, [&](int64_t t) { return numels[t]; });
}

// Eight bytes of 0 or 1 to eight bits, the first byte lowest.
uint32_t pack8(const uint8_t* bools) {
  uint64_t bytes;
  memcpy(&bytes, bools, 8);
  return static_cast<uint32_t>((bytes & 0x0101010101010101ull) * 0x0102040810204080ull >> 56);
}

void set_range(uint32_t* words, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end;) {
    const int64_t bit = i % 32, length = std::min<int64_t>(32 - bit, end - i);
    words[i / 32] |= static_cast<uint32_t>(((1ull << length) - 1) << bit);
    i += length;
  }
}

// One block of a tensor whose units are `length` elements long.
void expand_block(const uint32_t* unit_bits, int64_t begin, int64_t end, int64_t length, uint32_t* words) {
  for (int64_t unit = begin / length; unit * length < end; unit++) {
    if (unit_bits[unit / 32] >> (unit % 32) & 1) {
      set_range(words, std::max(unit * length, begin) - begin, std::min((unit + 1) * length, end) - begin);
    }
  }
}

}  // namespace

void rank(const uint32_t* bits, int64_t blocks, int64_t* rank, int threads) {
  constexpr int64_t kBlocksPerChunk = 256;
  const Kernels& kernel = kernels();
  rank[0] = 0;
  parallel_for((blocks + kBlocksPerChunk - 1) / kBlocksPerChunk, threads, [&](int64_t chunk) {
    const int64_t end = std::min(blocks, (chunk + 1) * kBlocksPerChunk);
    for (int64_t block = chunk * kBlocksPerChunk; block < end; block++) {
      rank[block + 1] = kernel.count_bits(bits + block * kWordsPerBlock, kWordsPerBlock);
    }
  });
  for (int64_t block = 0; block < blocks; block++) rank[block + 1] += rank[block];
}

void pack_bits(const uint8_t* const* bools, const int64_t* numels, int64_t count, uint32_t* bits, int threads) {
  const auto first = first_blocks(numels, count);
  const Chunks chunks = chunks_of(numels, count);
  parallel_for(chunks.count(), threads, [&](int64_t i) {
    const Chunk chunk = chunks[i];
    const uint8_t* from = bools[chunk.tensor];
    uint32_t* words = bits + first[chunk.tensor] * kWordsPerBlock;
    memset(words + chunk.begin / 32, 0, static_cast<size_t>(block_count(chunk.end - chunk.begin)) * kBlock / 8);
    int64_t at = chunk.begin;
    for (; at + 8 <= chunk.end; at += 8) words[at / 32] |= pack8(from + at) << (at % 32);
    for (; at < chunk.end; at++) words[at / 32] |= static_cast<uint32_t>(from[at] != 0) << (at % 32);
  });
}

void unpack_bits(const uint32_t* bits, const int64_t* numels, int64_t count, uint8_t* const* bools, int threads) {
  const auto first = first_blocks(numels, count);
  const Chunks chunks = chunks_of(numels, count);
  parallel_for(chunks.count(), threads, [&](int64_t i) {
    const Chunk chunk = chunks[i];
    const uint32_t* words = bits + first[chunk.tensor] * kWordsPerBlock;
    uint8_t* to = bools[chunk.tensor];
    for (int64_t at = chunk.begin; at < chunk.end; at++) to[at] = words[at / 32] >> (at % 32) & 1;
  });
}

void expand_units(const uint32_t* unit_bits, const int64_t* numels, const int64_t* units, int64_t count, uint32_t* bits,
                  int threads) {
  const auto first = first_blocks(numels, count), first_unit = first_blocks(units, count);
  const Chunks chunks = chunks_of(numels, count);
  parallel_for(chunks.count(), threads, [&](int64_t i) {
    const Chunk chunk = chunks[i];
    const uint32_t* from = unit_bits + first_unit[chunk.tensor] * kWordsPerBlock;
    uint32_t* words = bits + first[chunk.tensor] * kWordsPerBlock;
    const int64_t length = numels[chunk.tensor] / units[chunk.tensor];
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += kBlock) {
      memset(words + begin / 32, 0, kBlock / 8);
      expand_block(from, begin, std::min(begin + kBlock, chunk.end), length, words + begin / 32);
    }
  });
}

}  // namespace aimfair::cpu
