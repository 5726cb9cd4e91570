#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <vector>

#include "aimfair/topk.h"
#include "cuda/launch.h"
#include "cuda/topk_score.h"
#include "cuda/warp.h"

// Mean scores of units on the device, added in the order of aimfair/topk.h. A thread block takes a tile at a time: some
// units of one tensor, or one span of a unit that is longer than that.
//
// A group of 16 threads sums a block, each of them one lane. Units of several blocks get as many groups, so that the
// thread block can add them; the spans of a longer unit are added by the thread block that finishes last. Units shorter
// than 16 elements share a group.

namespace aimfair::cuda {
namespace {

constexpr int kThreads = kBlocksPerSpan * kBlockLanes;
constexpr int64_t kTile = 4 * kBlock;  // minimum of elements in a tile of short units

struct UnitTensor {
  ScoreTensor inputs;
  float* out = nullptr;
  int64_t units = 0;
  int64_t length = 0;
  int64_t units_per_tile = 0;              // if they are no longer than a span
  int64_t spans = 0;                       // of each unit
  int64_t first_unit = 0, first_span = 0;  // among those of all units longer than a span
  int threads = 0;                         // for each unit: a power of two
};

__device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ bool is_nan(float x) { return x != x; }

// Sum over each run of `width` neighbouring threads, at most 16 and a power of two, as the tree of aimfair/topk.h.
__device__ __forceinline__ double sum_of_neighbours(double value, int width) {
  for (int distance = width / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

__device__ __forceinline__ float mean(double sum, int64_t length) {
  return static_cast<float>(sum / static_cast<double>(length));
}

// A tile of short units.
struct Tile {
  ScoreTensor inputs;
  int64_t first;  // element
  int units, length;
  int threads;  // for each unit
  float* out;   // of the first unit
};

// Units of up to 16 elements: a thread takes one element of four units at once.
__device__ __forceinline__ bool tiny_units(const Tile& tile, const Score& spec) {
  const int lane = thread() % tile.threads, stride = kThreads / tile.threads;
  bool nan = false;
  for (int begin = 0; begin < tile.units; begin += 4 * stride) {
    const int unit = begin + thread() / tile.threads;
    const int64_t at = tile.first + unit * tile.length + lane;
    const auto has = [&](int i) { return unit + i * stride < tile.units && lane < tile.length; };
    const Four scores = score_of<Four>(tile.inputs, spec, [&](const float* from) {
      Four x;
#pragma unroll
      for (int i = 0; i < 4; i++) x.v[i] = has(i) ? from[at + i * stride * tile.length] : 0.0f;
      return x;
    });
#pragma unroll
    for (int i = 0; i < 4; i++) {
      double sum = 0;
      if (has(i)) {
        nan |= is_nan(scores.v[i]);
        sum += scores.v[i];
      }
      sum = sum_of_neighbours(sum, tile.threads);
      if (has(i) && lane == 0) {
        tile.out[unit + i * stride] = tile.length == 1 ? scores.v[i] : mean(sum, tile.length);
      }
    }
  }
  return nan;
}

// Sum of the n <= 1024 scores from `begin`, n <= 0 for none, over this thread's group; for each of its threads.
__device__ __forceinline__ double block_sum(const ScoreTensor& inputs, const Score& spec, int64_t begin, int n,
                                            bool* nan) {
  double sum = 0;
  for (int i = thread() % kBlockLanes; i < n; i += 4 * kBlockLanes) {
    const Four scores = score_of<Four>(inputs, spec, [&](const float* from) {
      Four x;
#pragma unroll
      for (int j = 0; j < 4; j++) x.v[j] = i + j * kBlockLanes < n ? from[begin + i + j * kBlockLanes] : 0.0f;
      return x;
    });
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (i + j * kBlockLanes < n) {
        *nan |= is_nan(scores.v[j]);
        sum += scores.v[j];
      }
    }
  }
  return sum_of_neighbours(sum, kBlockLanes);
}

// Sum of the n scores from `begin` over `groups` neighbouring groups, a power of two; for each of their threads.
__device__ __forceinline__ double span_sum(const ScoreTensor& inputs, const Score& spec, int64_t begin, int n,
                                           int groups, bool* nan) {
  constexpr int kSize = static_cast<int>(kBlock);
  const int group = thread() / kBlockLanes, first = group % groups * kSize;
  const double sum = block_sum(inputs, spec, begin + first, n - first < kSize ? n - first : kSize, nan);
  if (groups == 1) return sum;
  __shared__ double blocks[kBlocksPerSpan];
  __syncthreads();  // the sums of the previous call have been read
  if (thread() % kBlockLanes == 0) blocks[group] = sum;
  __syncthreads();
  return sum_of_neighbours(blocks[group / groups * groups + thread() % groups], groups);
}

// Units of 17 elements to one span.
__device__ __forceinline__ bool short_units(const Tile& tile, const Score& spec) {
  bool nan = false;
  for (int begin = 0; begin < tile.units; begin += kThreads / tile.threads) {
    const int unit = begin + thread() / tile.threads;
    const bool has = unit < tile.units;
    const double sum = span_sum(tile.inputs, spec, tile.first + (has ? unit * tile.length : 0), has ? tile.length : 0,
                                tile.threads / kBlockLanes, &nan);
    if (has && thread() % tile.threads == 0) tile.out[unit] = mean(sum, tile.length);
  }
  return nan;
}

// One span of a longer unit. `spans` are the sums of those of this tensor, `arrived` counts the ones of each unit.
__device__ __forceinline__ bool long_unit(const UnitTensor& tensor, const Score& spec, int64_t tile, double* spans,
                                          unsigned* arrived) {
  const int64_t unit = tile / tensor.spans, first = (tile - unit * tensor.spans) * kSpan, rest = tensor.length - first;
  bool nan = false;
  const double sum = span_sum(tensor.inputs, spec, unit * tensor.length + first,
                              static_cast<int>(rest < kSpan ? rest : kSpan), kBlocksPerSpan, &nan);
  if (thread() == 0) spans[tile] = sum;
  if (last_to_arrive(arrived + unit, static_cast<unsigned>(tensor.spans))) {
    static_assert(kSpanLanes == kThreads);
    __shared__ double lanes[kSpanLanes];
    double lane = 0;
#pragma unroll 4
    for (int64_t span = thread(); span < tensor.spans; span += kSpanLanes) lane += spans[unit * tensor.spans + span];
    lanes[thread()] = lane;
    for (int width = kSpanLanes / 2; width > 0; width /= 2) {
      __syncthreads();
      if (thread() < width) lanes[thread()] += lanes[thread() + width];
    }
    if (thread() == 0) tensor.out[unit] = mean(lanes[0], tensor.length);
  }
  return nan;
}

__global__ void __launch_bounds__(kThreads)
    score_units(const UnitTensor* tensors, const int64_t* first_tiles, int64_t count, int64_t tiles, Score spec,
                double* spans, unsigned* arrived, unsigned long long* nan_tensor) {
  for (int64_t i = blockIdx.x; i < tiles; i += gridDim.x) {
    const int64_t t = owner_of(first_tiles, count, i);
    const UnitTensor& tensor = tensors[t];
    const int64_t in_tensor = i - first_tiles[t];
    bool nan;
    if (tensor.spans > 1) {
      nan = long_unit(tensor, spec, in_tensor, spans + tensor.first_span, arrived + tensor.first_unit);
    } else {
      const int64_t begin = in_tensor * tensor.units_per_tile, rest = tensor.units - begin;
      const Tile tile = {tensor.inputs,
                         begin * tensor.length,
                         static_cast<int>(rest < tensor.units_per_tile ? rest : tensor.units_per_tile),
                         static_cast<int>(tensor.length),
                         tensor.threads,
                         tensor.out + begin};
      nan = tile.length <= kBlockLanes ? tiny_units(tile, spec) : short_units(tile, spec);
    }
    if (nan) atomicMin(nan_tensor, static_cast<unsigned long long>(t));
  }
}

int threads_for(int64_t length) {
  if (length <= kBlockLanes) return static_cast<int>(std::bit_ceil(static_cast<uint64_t>(length)));
  const int64_t blocks = std::min<int64_t>(block_count(length), kBlocksPerSpan);
  return kBlockLanes * static_cast<int>(std::bit_ceil(static_cast<uint64_t>(blocks)));
}

// The units of all tensors. *long_units and *long_spans count the units longer than a span, and the spans of those.
std::vector<UnitTensor> unit_table(const ScoreTensor* tensors, int64_t count, const int64_t* units, float* const* out,
                                   int64_t* long_units, int64_t* long_spans) {
  std::vector<UnitTensor> table;
  *long_units = *long_spans = 0;
  for (int64_t t = 0; t < count; t++) {
    UnitTensor tensor;
    tensor.inputs = tensors[t];
    tensor.out = out[t];
    if (tensors[t].numel > 0) {
      tensor.units = units[t];
      tensor.length = tensors[t].numel / units[t];
      tensor.spans = span_count(tensor.length);
      tensor.threads = threads_for(tensor.length);
      const int64_t at_once = kThreads / tensor.threads;
      tensor.units_per_tile = at_once * std::max<int64_t>(1, kTile / (at_once * tensor.length));
    }
    if (tensor.spans > 1) {
      tensor.first_unit = *long_units;
      tensor.first_span = *long_spans;
      *long_units += tensor.units;
      *long_spans += tensor.units * tensor.spans;
    }
    table.push_back(tensor);
  }
  return table;
}

}  // namespace

int unit_scores(const ScoreTensor* tensors, int64_t count, const Score& spec, const int64_t* units, float* const* out,
                const Allocate& allocate, void* stream, SelectResult* result) {
  *result = {};
  int64_t long_units, long_spans;
  const std::vector<UnitTensor> table = unit_table(tensors, count, units, out, &long_units, &long_spans);
  const std::vector<int64_t> first_tiles = first_units(count, [&](int64_t t) {
    const UnitTensor& tensor = table[static_cast<size_t>(t)];
    if (tensor.units == 0) return int64_t{0};
    return tensor.spans > 1 ? tensor.units * tensor.spans
                            : (tensor.units + tensor.units_per_tile - 1) / tensor.units_per_tile;
  });
  const int64_t tiles = first_tiles.back();
  if (tiles == 0) return cudaSuccess;

  Upload upload;
  const auto none = static_cast<unsigned long long>(count);
  const int64_t nan_at = upload.add(&none, 1), table_at = upload.add(table), tiles_at = upload.add(first_tiles);
  const int64_t arrived_at = upload.add_zeros<unsigned>(long_units);
  void* memory = allocate(upload.bytes() + long_spans * static_cast<int64_t>(sizeof(double)));
  if (!memory) return cudaErrorMemoryAllocation;
  AIMFAIR_TRY(upload.copy(memory, stream));
  auto* nan_tensor = array_at<unsigned long long>(memory, nan_at);
  AIMFAIR_TRY(launch_persistent(score_units, tiles, kThreads, stream, array_at<UnitTensor>(memory, table_at),
                                array_at<int64_t>(memory, tiles_at), count, tiles, spec,
                                array_at<double>(memory, upload.bytes()), array_at<unsigned>(memory, arrived_at),
                                nan_tensor));

  unsigned long long found = none;
  const auto queue = static_cast<cudaStream_t>(stream);
  AIMFAIR_TRY(cudaMemcpyAsync(&found, nan_tensor, sizeof found, cudaMemcpyDeviceToHost, queue));
  AIMFAIR_TRY(cudaStreamSynchronize(queue));
  if (found != none) result->nan_tensor = static_cast<int64_t>(found);
  return cudaSuccess;
}

}  // namespace aimfair::cuda
