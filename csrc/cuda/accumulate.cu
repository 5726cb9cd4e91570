#include "aimfair/accumulate.h"

#include "aimfair/mask.h"
#include "aimfair/numeric.h"
#include "cuda/element.h"
#include "cuda/launch.h"
#include "cuda/warp.h"

// accumulate: every tensor is cut into chunks, and thread blocks take one chunk after another. The norm of every
// chunk is kept; the thread block that finishes the last chunk of a tensor adds them in order, so that repeated runs
// and other devices give the same bits.

namespace aimfair::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kResident = 7;            // thread blocks per multiprocessor, which leaves 72 registers per thread
constexpr int64_t kChunk = 4 * kBlock;  // elements

// A plan in device memory, in this order. Gradients are apart because they may be others in every batch.
struct AccumulateTable {
  const AccumulateTensor* tensors;
  void* const* grads;
  const int64_t* first_chunks;  // count + 1 entries
  unsigned* arrived;            // chunks done, of each tensor
  double* chunk_norms;
  int64_t count;
  int64_t blocks;  // at least as many as there are chunks
};

constexpr int64_t grads_place(int64_t count) {
  return rounded_up(count * static_cast<int64_t>(sizeof(AccumulateTensor)));
}
constexpr int64_t first_chunks_place(int64_t count) {
  return grads_place(count) + rounded_up(count * static_cast<int64_t>(sizeof(void*)));
}
constexpr int64_t arrived_place(int64_t count) {
  return first_chunks_place(count) + rounded_up((count + 1) * static_cast<int64_t>(sizeof(int64_t)));
}
constexpr int64_t chunk_norms_place(int64_t count) {
  return arrived_place(count) + rounded_up(count * static_cast<int64_t>(sizeof(unsigned)));
}

// Calls use_four or use_one with the index of every element of [begin, end) that belongs to this thread: four elements
// at once if `four`, which all addresses must allow.
template <class UseFour, class UseOne>
__device__ __forceinline__ void for_each_element(int64_t begin, int64_t end, bool four, const UseFour& use_four,
                                                 const UseOne& use_one) {
  if (four) {
    int64_t at = begin + int64_t{threadIdx.x} * 4;
#pragma unroll 1
    for (; at + 4 <= end; at += kThreads * 4) use_four(at);
    for (; at < end; at++) use_one(at);  // in one thread: fewer than four are left
  } else {
    for (int64_t at = begin + threadIdx.x; at < end; at += kThreads) use_one(at);
  }
}

template <DType kDType>
struct Accumulate {
  using E = Element<kDType>;
  using T = typename E::type;
  const AccumulateTensor& tensor;
  const AccumulateOptions& options;
  const float& factor;
  double norm = 0;
  int bad = 0;

  __device__ __forceinline__ bool four_allowed() const {
    return four_aligned(tensor.grad, sizeof(typename E::four)) && four_aligned(tensor.sum, sizeof(float4)) &&
           four_aligned(tensor.square, sizeof(float4)) && four_aligned(tensor.second_sum, sizeof(float4));
  }

  // The value to add: 0 if the gradient is not finite.
  __device__ __forceinline__ float counted(float scaled) {
    const bool finite = (float_bits(scaled) & 0x7fffffffu) < 0x7f800000u;
    bad += !finite;
    return finite ? scaled : 0.0f;
  }

  __device__ __forceinline__ void four(int64_t at) {
    T* grad = static_cast<T*>(tensor.grad) + at;
    Four g = load_four<kDType>(grad), old_sum, old_square, old_second;
    if (tensor.sum) old_sum = load_four<DType::float32>(tensor.sum + at);
    if (tensor.square) old_square = load_four<DType::float32>(tensor.square + at);
    if (tensor.second_sum) old_second = load_four<DType::float32>(tensor.second_sum + at);
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      g.v[i] = counted(g.v[i] * factor);
      const float square = g.v[i] * g.v[i];
      squares += square;
      if (tensor.sum) old_sum.v[i] += options.weight * g.v[i];
      if (tensor.square) old_square.v[i] += square;
      if (tensor.second_sum) old_second.v[i] += options.second_weight * g.v[i];
    }
    if (tensor.sum) store_four<DType::float32>(tensor.sum + at, old_sum);
    if (tensor.square) store_four<DType::float32>(tensor.square + at, old_square);
    if (tensor.second_sum) store_four<DType::float32>(tensor.second_sum + at, old_second);
    if (options.zero_grads) store_four<kDType>(grad, Four{});
    norm += static_cast<double>(squares);
  }

  __device__ __forceinline__ void one(int64_t at) {
    T* grad = static_cast<T*>(tensor.grad) + at;
    const float g = counted(E::decode(*grad) * factor), square = g * g;
    if (tensor.sum) tensor.sum[at] += options.weight * g;
    if (tensor.square) tensor.square[at] += square;
    if (tensor.second_sum) tensor.second_sum[at] += options.second_weight * g;
    if (options.zero_grads) *grad = T{};
    norm += static_cast<double>(square);
  }

  __device__ __forceinline__ void range(int64_t begin, int64_t end) {
    for_each_element(begin, end, four_allowed(), [&](int64_t at) { four(at); }, [&](int64_t at) { one(at); });
  }
};

// Adds elements [begin, end); *norm and *bad are this thread's sum of squares and number of non-finite values.
template <DType kDType>
__device__ __forceinline__ void accumulate_range(const AccumulateTensor& tensor, const AccumulateOptions& options,
                                                 const float& factor, int64_t begin, int64_t end, double* norm,
                                                 int* bad) {
  Accumulate<kDType> work{tensor, options, factor};
  work.range(begin, end);
  *norm = work.norm;
  *bad = work.bad;
}

// What a thread block works on, in shared memory to save registers for the elements.
struct Chunk {
  AccumulateTensor tensor;
  int64_t owner;      // the tensor's place in the list
  int64_t first;      // chunk of the tensor
  int64_t of_tensor;  // chunks
};

// Finds the owner of a chunk; that of a chunk past the end is the last tensor. By warp 0.
__device__ __forceinline__ void take_chunk(const AccumulateTable& table, int64_t i, Chunk* chunk) {
  const int64_t t = owner_of(table.first_chunks, table.count, i);
  if (lane_id() != 0) return;
  chunk->tensor = table.tensors[t];
  chunk->tensor.grad = table.grads[t];
  chunk->owner = t;
  chunk->first = table.first_chunks[t];
  chunk->of_tensor = table.first_chunks[t + 1] - chunk->first;
}

__global__ void __launch_bounds__(kThreads, kResident)
    accumulate_chunks(AccumulateTable table, AccumulateOptions options, double* square_norms, int64_t* nonfinite) {
  __shared__ Chunk chunk;
  __shared__ float factor;
  if (threadIdx.x == 0) factor = gradient_factor(options.grad_scale);
  for (int64_t i = blockIdx.x; i < table.blocks; i += gridDim.x) {
    __syncthreads();  // all threads are done with the previous chunk
    if (warp_id() == 0) take_chunk(table, i, &chunk);
    __syncthreads();
    if (i - chunk.first >= chunk.of_tensor) break;  // past the end
    const int64_t begin = (i - chunk.first) * kChunk;
    const int64_t end = chunk.tensor.numel - begin < kChunk ? chunk.tensor.numel : begin + kChunk;
    double norm = 0;
    int bad = 0;
    switch (chunk.tensor.dtype) {
      case DType::float32:
        accumulate_range<DType::float32>(chunk.tensor, options, factor, begin, end, &norm, &bad);
        break;
      case DType::bfloat16:
        accumulate_range<DType::bfloat16>(chunk.tensor, options, factor, begin, end, &norm, &bad);
        break;
      case DType::float16:
        accumulate_range<DType::float16>(chunk.tensor, options, factor, begin, end, &norm, &bad);
        break;
    }
    if (bad) {
      atomicAdd(reinterpret_cast<unsigned long long*>(nonfinite + chunk.owner), static_cast<unsigned long long>(bad));
    }
    norm = block_sum<kThreads>(norm);
    if (chunk.of_tensor > 1) {
      if (threadIdx.x == 0) table.chunk_norms[i] = norm;
      if (!last_to_arrive(table.arrived + chunk.owner, static_cast<unsigned>(chunk.of_tensor))) continue;
      double total = 0;
      for (int64_t j = threadIdx.x; j < chunk.of_tensor; j += kThreads) {
        total += __ldcg(table.chunk_norms + chunk.first + j);
      }
      norm = block_sum<kThreads>(total);
    }
    if (threadIdx.x == 0) square_norms[chunk.owner] += norm;
  }
}

}  // namespace

int64_t accumulate_plan_bytes(int64_t count, int64_t blocks) {
  return chunk_norms_place(count) + blocks * static_cast<int64_t>(sizeof(double));
}

int make_accumulate_plan(const AccumulateTensor* tensors, int64_t count, void* memory, void* stream,
                         AccumulatePlan* plan) {
  const auto first_chunks =
      first_units(count, [&](int64_t t) { return tensors[t].numel / kChunk + (tensors[t].numel % kChunk != 0); });
  std::vector<void*> grads;
  *plan = {memory, count, 0};
  for (int64_t t = 0; t < count; t++) {
    grads.push_back(tensors[t].grad);
    plan->blocks += block_count(tensors[t].numel);
  }
  Upload upload;
  upload.add(tensors, count);
  upload.add(grads);
  upload.add(first_chunks);
  upload.add_zeros<unsigned>(count);
  return upload.copy(memory, stream);
}

int set_accumulate_grads(void* const* grads, int64_t count, void* memory, void* stream) {
  Upload upload;
  upload.add(grads, count);
  return upload.copy(array_at<char>(memory, grads_place(count)), stream);
}

int accumulate(const AccumulatePlan& plan, const AccumulateOptions& options, double* square_norms, int64_t* nonfinite,
               void* stream) {
  const AccumulateTable table{array_at<AccumulateTensor>(plan.memory, 0),
                              array_at<void*>(plan.memory, grads_place(plan.count)),
                              array_at<int64_t>(plan.memory, first_chunks_place(plan.count)),
                              array_at<unsigned>(plan.memory, arrived_place(plan.count)),
                              array_at<double>(plan.memory, chunk_norms_place(plan.count)),
                              plan.count,
                              plan.blocks};
  return launch_persistent(accumulate_chunks, plan.blocks, kThreads, stream, table, options, square_norms, nonfinite);
}

}  // namespace aimfair::cuda
