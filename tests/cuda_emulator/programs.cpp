// Small kernels for test_emulator.py: the first argument names one, its results are printed as "name value value ...".

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/warp.h"

namespace {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, Arguments... arguments) {
  const cudaError_t error = aimfair::cuda::launch(kernel, blocks, static_cast<int>(threads), nullptr, arguments...);
  if (error != cudaSuccess) std::printf("launch_error %d\n", error);
}

template <class T>
void print(const char* name, const std::vector<T>& values) {
  std::printf("%s", name);
  for (const T& value : values) std::printf(" %s", std::to_string(value).c_str());
  std::printf("\n");
}

// Prints what `kernel` leaves in `count` elements that were zero.
template <class T>
void print_result(const char* name, void (*kernel)(T*), unsigned blocks, unsigned threads, size_t count) {
  std::vector<T> out(count);
  launch(kernel, blocks, threads, out.data());
  print(name, out);
}

__device__ int signed_value() { return static_cast<int>(threadIdx.x * 37 % 64) - 20; }
constexpr unsigned kAll = 0xffffffffu;

// -- collectives: 64 threads ------------------------------------------------------------------------------------------

__global__ void ballot(unsigned* out) { out[threadIdx.x] = __ballot_sync(kAll, threadIdx.x % 3 == 0); }
__global__ void any(int* out) { out[threadIdx.x] = __any_sync(kAll, threadIdx.x == 40); }
__global__ void all(int* out) { out[threadIdx.x] = __all_sync(kAll, threadIdx.x != 40); }
template <class T>
__global__ void shuffle(T* out) {
  out[threadIdx.x] = __shfl_sync(kAll, static_cast<T>(signed_value()), static_cast<int>(threadIdx.x) * 7);
}
template <class T>
__global__ void shuffle_up(T* out) {
  out[threadIdx.x] = __shfl_up_sync(kAll, static_cast<T>(signed_value()), 3);
}
template <class T>
__global__ void shuffle_down(T* out) {
  out[threadIdx.x] = __shfl_down_sync(kAll, static_cast<T>(signed_value()), 5);
}
template <class T>
__global__ void shuffle_xor(T* out) {
  out[threadIdx.x] = __shfl_xor_sync(kAll, static_cast<T>(signed_value()), 9);
}
template <class T>
__global__ void reduce_add(T* out) {
  out[threadIdx.x] = __reduce_add_sync(kAll, static_cast<T>(signed_value()));
}
template <class T>
__global__ void reduce_min(T* out) {
  out[threadIdx.x] = __reduce_min_sync(kAll, static_cast<T>(signed_value()));
}
template <class T>
__global__ void reduce_max(T* out) {
  out[threadIdx.x] = __reduce_max_sync(kAll, static_cast<T>(signed_value()));
}
__global__ void block_count(int* out) { out[threadIdx.x] = __syncthreads_count(threadIdx.x % 5 == 0); }
__global__ void block_or(int* out) { out[threadIdx.x] = __syncthreads_or(threadIdx.x == 63) * 2 + __syncthreads_or(0); }
__global__ void block_and(int* out) {
  out[threadIdx.x] = __syncthreads_and(1) * 2 + __syncthreads_and(threadIdx.x != 63);
}
// Lanes of one warp in two branches, each with its own mask.
__global__ void halves(unsigned* out) {
  if (threadIdx.x % 2) {
    out[threadIdx.x] = __reduce_add_sync(0xaaaaaaaau, threadIdx.x);
  } else {
    out[threadIdx.x] = __ballot_sync(0x55555555u, threadIdx.x % 4 == 0);
  }
}

void collectives() {
  print_result("ballot", ballot, 1, 64, 64);
  print_result("any", any, 1, 64, 64);
  print_result("all", all, 1, 64, 64);
  const auto shuffles = [](auto zero) {
    using T = decltype(zero);
    print_result("shuffle", shuffle<T>, 1, 64, 64);
    print_result("shuffle_up", shuffle_up<T>, 1, 64, 64);
    print_result("shuffle_down", shuffle_down<T>, 1, 64, 64);
    print_result("shuffle_xor", shuffle_xor<T>, 1, 64, 64);
  };
  shuffles(0);
  shuffles(int64_t{0});
  shuffles(0ll);
  shuffles(0.0f);
  shuffles(0.0);
  print_result("reduce_add", reduce_add<int>, 1, 64, 64);
  print_result("reduce_min", reduce_min<int>, 1, 64, 64);
  print_result("reduce_max", reduce_max<int>, 1, 64, 64);
  print_result("unsigned_reduce_add", reduce_add<unsigned>, 1, 64, 64);
  print_result("unsigned_reduce_min", reduce_min<unsigned>, 1, 64, 64);
  print_result("unsigned_reduce_max", reduce_max<unsigned>, 1, 64, 64);
  print_result("block_count", block_count, 1, 64, 64);
  print_result("block_or", block_or, 1, 64, 64);
  print_result("block_and", block_and, 1, 64, 64);
  print_result("halves", halves, 1, 64, 64);
}

// -- atomics and bits -------------------------------------------------------------------------------------------------

__global__ void atomics(int* out) {
  const int value = signed_value();
  atomicAdd(out + 0, value);
  atomicMin(out + 1, value);
  atomicMax(out + 2, value);
  atomicOr(out + 3, 1 << threadIdx.x % 32);
  atomicCAS(out + 4, static_cast<int>(threadIdx.x), static_cast<int>(threadIdx.x) + 1);  // counts only if in order
  atomicInc(reinterpret_cast<unsigned*>(out + 5), 9);
  atomicExch(out + 6, 7);
  atomicAnd(out + 7, value);
}

__global__ void bits(int64_t* out) {
  for (const int64_t value :
       {int64_t{__popc(0xf0f0u)}, int64_t{__popcll(0x0000f00000000000ull)}, int64_t{__ffs(0)}, int64_t{__ffs(0x50)},
        int64_t{__ffsll(1ll << 40)}, int64_t{__clz(0)}, int64_t{__clz(0x00ff0000)}, int64_t{__clzll(1)},
        int64_t{__brev(0x00000013u)}, int64_t{__funnelshift_l(0x80000001u, 2, 33)},
        int64_t{__funnelshift_r(0x80000001u, 3, 1)}, int64_t{__float_as_int(-0.0f)}, int64_t{__float_as_uint(1.0f)}}) {
    *out++ = value;
  }
}
__global__ void floats(double* out) {
  out[0] = __uint_as_float(0x40000000u);
  out[1] = min(NAN, 1.0f);
  out[2] = max(2.0, 3.0);
  out[3] = __fsqrt_rn(9.0f);
}

__global__ void nothing(int) {}

void values() {
  print_result("atomics", atomics, 1, 64, 8);
  print_result("bits", bits, 1, 1, 13);
  print_result("floats", floats, 1, 1, 4);
  std::vector<int> errors;
  for (const dim3 shape : {dim3(0, 32), dim3(1u << 31, 32), dim3(1, 0), dim3(1, 1025), dim3(1, 1024)}) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(shape.x);
    config.blockDim = dim3(shape.y);
    errors.push_back(cudaLaunchKernelEx(&config, nothing, 0));
    errors.push_back(cudaGetLastError());
    errors.push_back(cudaGetLastError());
  }
  print("launch_errors", errors);
}

// The current device before, inside, in another thread, and after: of a guard, of a second in it, and of one without a
// device.
void current_device() {
  std::vector<int> devices;
  const auto note = [&devices] {
    int device = -1;
    cudaGetDevice(&device);
    devices.push_back(device);
  };
  for (const int outer : {1, 0, 7}) {
    note();
    {
      const aimfair::cuda::CurrentDevice guard(outer);
      devices.push_back(guard.error());
      note();
      std::thread(note).join();
      {
        const aimfair::cuda::CurrentDevice inner(0);
        note();
      }
      note();
    }
    note();
  }
  print("devices", devices);
}

// -- grids and order --------------------------------------------------------------------------------------------------

__global__ void place(unsigned* out) {
  out[blockIdx.x * blockDim.x + threadIdx.x] += 1000 * blockIdx.x + threadIdx.x + 100000 * gridDim.x;
}
__device__ void note(unsigned* out) { out[atomicInc(out, ~0u) + 1] = blockIdx.x * blockDim.x + threadIdx.x; }
__global__ void sequence(unsigned* out) { note(out); }
__global__ void sequence_after_barrier(unsigned* out) {
  __syncthreads();
  note(out);
}

void grid() {
  print_result("place", place, 5, 96, 5 * 96);
  std::thread([] { print_result("place_in_another_system_thread", place, 5, 96, 5 * 96); }).join();
  print_result("sequence", sequence, 3, 64, 1 + 3 * 64);
  print_result("sequence_after_barrier", sequence_after_barrier, 3, 64, 1 + 3 * 64);
}

// The value of the next thread, through shared memory.
template <bool kBarrier>
__global__ void next_value(int* out) {
  __shared__ int values[64];
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = values[(threadIdx.x + 1) % 64];
}
// The sum of a warp, and then of the block; without the barrier the first warp does not wait for the others.
template <bool kBarrier>
__global__ void warp_sums(unsigned* out) {
  __shared__ unsigned sums[4];
  const unsigned sum = __reduce_add_sync(kAll, threadIdx.x);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  if (kBarrier) __syncthreads();
  if (threadIdx.x == 0) out[0] = sums[0] + sums[1] + sums[2] + sums[3];
}
__global__ void unset_shared(unsigned* out) {
  __shared__ unsigned word;
  __shared__ unsigned short half;
  out[2 * blockIdx.x] = word;
  out[2 * blockIdx.x + 1] = half;
  word = half = 1;
}

// -- cooperative launches ---------------------------------------------------------------------------------------------

// In every round all threads add the number of their block to a sum, which the last block to arrive completes; the next
// numbers depend on it.
constexpr int kRounds = 3;
__global__ void rounds(unsigned* out, aimfair::cuda::Meeting* meeting, unsigned* sums) {
  __shared__ unsigned own;
  if (threadIdx.x == 0) own = blockIdx.x + 1;
  for (int round = 0; round < kRounds; round++) {
    __syncthreads();
    atomicAdd(&sums[round], own);
    aimfair::cuda::meet(meeting, [&] {
      if (threadIdx.x == 0) sums[round] = 2 * (sums[round] + (round > 0 ? sums[round - 1] : 0));
    });
    if (threadIdx.x == 0) own = sums[round] % 7 + blockIdx.x;
  }
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = sums[kRounds - 1] + own;
}
__global__ void never(unsigned*, aimfair::cuda::Meeting* meeting, unsigned*) {
  if (blockIdx.x != 1) aimfair::cuda::meet(meeting, [] {});
}
__global__ void sleeps(unsigned*, aimfair::cuda::Meeting*, unsigned*) {
  if (threadIdx.x == 0) __nanosleep(1);
}

using Cooperative = void (*)(unsigned*, aimfair::cuda::Meeting*, unsigned*);

void print_cooperative(Cooperative kernel, unsigned blocks, bool cooperative = true) {
  std::vector<unsigned> out(64 * blocks);
  aimfair::cuda::Meeting meeting;
  unsigned sums[kRounds] = {};
  const cudaError_t error =
      cooperative ? aimfair::cuda::launch_cooperative(kernel, blocks, 64, nullptr, out.data(), &meeting, &sums[0])
                  : aimfair::cuda::launch(kernel, blocks, 64, nullptr, out.data(), &meeting, &sums[0]);
  std::printf("error %d\n", error);
  print("out", out);
}

// -- kernels that break the rules -------------------------------------------------------------------------------------

__global__ void divergent_barrier(int*) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void ended_before_barrier(int*) {
  if (threadIdx.x == 5) return;
  __syncthreads();
}
__global__ void barrier_against_collective(int*) {
  if (threadIdx.x < 32) __syncwarp();
  if (threadIdx.x == 40) __syncwarp();
  __syncthreads();
}
__global__ void missing_lane(int*) {
  if (threadIdx.x != 7) __ballot_sync(kAll, 1);
}
__global__ void lane_outside_mask(int*) { __syncwarp(0xfffffffeu); }
__global__ void shuffle_from_outside(int* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_down_sync(0xffffu, 1, 1);
}
__global__ void different_collectives(int* out) {
  if (threadIdx.x % 2) {
    out[threadIdx.x] = __any_sync(kAll, 1);
  } else {
    out[threadIdx.x] = __all_sync(kAll, 1);
  }
}
__global__ void different_masks(int*) { __syncwarp(threadIdx.x % 2 ? kAll : 0x55555555u); }
__global__ void other_width(int* out) { out[threadIdx.x] = __shfl_xor_sync(kAll, 1, 1, 16); }
__global__ void past_the_end(int* out) { out[threadIdx.x + 1] = 1; }
// Not inlined: the compiler sees no array, as in a kernel's helper, and only AddressSanitizer knows its end.
__device__ __noinline__ void put_after(int* values, unsigned count) { values[count] = 1; }
__global__ void past_shared(int*) {
  __shared__ int values[64];
  put_after(values, threadIdx.x + 1);
}
__global__ void past_local(int*) {
  int values[4] = {};
  __syncthreads();
  put_after(values, threadIdx.x % 5);
}
__global__ void misaligned(int* out) { *reinterpret_cast<int4*>(out + 1) = make_int4(1, 2, 3, 4); }

using Program = std::function<void()>;

Program breaking(void (*kernel)(int*)) {
  return [kernel] { print_result("out", kernel, 2, 64, 64); };
}

const std::map<std::string, Program> kPrograms = {
    {"collectives", collectives},
    {"values", values},
    {"current_device", current_device},
    {"grid", grid},
    {"next_value", [] { print_result("out", next_value<true>, 1, 64, 64); }},
    {"next_value_without_barrier", [] { print_result("out", next_value<false>, 1, 64, 64); }},
    {"warp_sums", [] { print_result("out", warp_sums<true>, 1, 128, 1); }},
    {"warp_sums_without_barrier", [] { print_result("out", warp_sums<false>, 1, 128, 1); }},
    {"rounds", [] { print_cooperative(rounds, 6); }},
    {"rounds_of_too_many", [] { print_cooperative(rounds, 7); }},
    {"never", [] { print_cooperative(never, 3); }},
    {"sleeps", [] { print_cooperative(sleeps, 2, false); }},
    {"unset_shared", [] { print_result("out", unset_shared, 2, 1, 4); }},
    {"divergent_barrier", breaking(divergent_barrier)},
    {"ended_before_barrier", breaking(ended_before_barrier)},
    {"barrier_against_collective", breaking(barrier_against_collective)},
    {"missing_lane", breaking(missing_lane)},
    {"lane_outside_mask", breaking(lane_outside_mask)},
    {"shuffle_from_outside", breaking(shuffle_from_outside)},
    {"different_collectives", breaking(different_collectives)},
    {"different_masks", breaking(different_masks)},
    {"other_width", breaking(other_width)},
    {"past_the_end", breaking(past_the_end)},
    {"past_shared", breaking(past_shared)},
    {"past_local", breaking(past_local)},
    {"misaligned", breaking(misaligned)},
};

}  // namespace

int main(int, char** arguments) { kPrograms.at(arguments[1])(); }
