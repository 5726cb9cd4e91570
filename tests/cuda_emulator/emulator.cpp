#include "emulator.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

#include "fiber.h"

// __shared__ variables: the linker gives the bounds of their section (absent if there are none).
extern "C" {
[[gnu::weak, gnu::visibility("hidden")]] extern char __start_aimfair_shared[], __stop_aimfair_shared[];
}

namespace aimfair_emulator {
namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr uint64_t kPoison = 0xa5a5a5a5a5a5a5a5;

// A thread of the running block, and what it waits for.
struct Thread {
  Fiber* fiber;  // null: not begun
  bool ended;
  const char* function;  // that it waits in; null: none
  Where where;
  Combine combine;
  unsigned mask;  // 0: the whole block
  uint64_t value;
  unsigned source;
  uint64_t result;
};

// One launch runs at a time, whichever system thread asks.
std::mutex launching;
void (*body)(void*);
void* context;
Thread threads[kMaxThreads];
unsigned warp_waiting[kMaxThreads / 32];  // lanes in a collective
unsigned current, at_barrier, ended;
unsigned long waits;                       // of all threads of the launch
Fiber launcher;                            // the stack of the caller of launch
auto& resting = *new std::vector<Fiber*>;  // fibers without a thread; never deleted, as they are not

// Threads that can go on: a ring, entered at the end.
unsigned ready[kMaxThreads], first_ready, ready_count;
enum class Order { forward, backward, random } order;
std::mt19937_64 random_bits;

unsigned& ready_at(unsigned place) { return ready[(first_ready + place) % kMaxThreads]; }

void make_ready(unsigned thread) { ready_at(ready_count++) = thread; }

unsigned take_ready() {
  ready_count--;
  if (order == Order::backward) return ready_at(ready_count);
  if (order == Order::random) std::swap(ready_at(0), ready_at(random_bits() % (ready_count + 1)));
  const unsigned thread = ready_at(0);
  first_ready = (first_ready + 1) % kMaxThreads;
  return thread;
}

[[noreturn]] void fail_in(const char* function, const char* problem, const Where& where) {
  std::fprintf(stderr, "CUDA emulator: block %u of %u, thread %u: %s%s at %s:%u in %s\n", blockIdx.x, gridDim.x,
               current, function, problem, where.file_name(), where.line(), where.function_name());
  std::abort();
}

bool waits_as(const Thread& a, const Thread& b) {
  return a.ended == b.ended && a.mask == b.mask && (!a.function || std::strcmp(a.function, b.function) == 0) &&
         (!a.function || (a.where.line() == b.where.line() && !std::strcmp(a.where.file_name(), b.where.file_name())));
}

// No thread can go on and not all have ended: says what each waits for.
[[noreturn]] void fail_deadlock() {
  std::fprintf(stderr, "CUDA emulator: block %u of %u: its %u threads cannot go on together\n", blockIdx.x, gridDim.x,
               blockDim.x);
  for (unsigned first = 0; first < blockDim.x; first++) {
    const Thread& thread = threads[first];
    const auto alike = [&](const Thread& other) { return waits_as(thread, other); };
    if (std::any_of(threads, threads + first, alike)) continue;
    std::fprintf(stderr, "  %ld threads from thread %u on ",
                 static_cast<long>(std::count_if(threads + first, threads + blockDim.x, alike)), first);
    if (thread.ended) {
      std::fprintf(stderr, "have ended\n");
      continue;
    }
    std::fprintf(stderr, "wait in %s", thread.function);
    if (thread.mask) std::fprintf(stderr, " with mask 0x%08x", thread.mask);
    std::fprintf(stderr, " at %s:%u in %s\n", thread.where.file_name(), thread.where.line(),
                 thread.where.function_name());
  }
  std::abort();
}

// Goes on with another thread, or with the launcher after the last one.
void give_way() {
  if (ready_count == 0) {
    if (ended != blockDim.x) fail_deadlock();
    switch_to(&launcher);
    return;
  }
  Thread& next = threads[current = take_ready()];
  threadIdx.x = current;
  if (!next.fiber) {
    if (resting.empty()) resting.push_back(new_fiber());
    next.fiber = resting.back();
    resting.pop_back();
  }
  switch_to(next.fiber);
}

uint64_t wait(Thread& thread) {
  waits++;
  give_way();
  thread.function = nullptr;
  return thread.result;
}

void release_block() {
  const Thread& arrived = threads[current];
  uint64_t count = 0;
  for (unsigned i = 0; i < blockDim.x; i++) {
    if (!waits_as(arrived, threads[i])) fail_deadlock();
    count += threads[i].value;
  }
  for (unsigned i = 0; i < blockDim.x; i++) {
    threads[i].result = count;
    make_ready(i);
  }
  at_barrier = 0;
}

uint64_t combined(const Thread* lanes, unsigned lane) {
  const Thread& own = lanes[lane];
  if (own.combine == Combine::nothing) return 0;
  if (own.combine == Combine::shuffle) return lanes[own.source].value;
  int64_t result = own.combine == Combine::least ? INT64_MAX : own.combine == Combine::greatest ? INT64_MIN : 0;
  for (unsigned other = 0; other < 32; other++) {
    if (!(own.mask >> other & 1)) continue;
    const int64_t value = static_cast<int64_t>(lanes[other].value);
    if (own.combine == Combine::ballot) {
      result |= int64_t{value != 0} << other;
    } else if (own.combine == Combine::sum) {
      result += value;
    } else {
      result = own.combine == Combine::least ? std::min(result, value) : std::max(result, value);
    }
  }
  return static_cast<uint64_t>(result);
}

// If the lanes of the mask wait together.
bool lanes_have_met(const Thread* lanes, const Thread& arrived) {
  for (unsigned lane = 0; lane < 32; lane++) {
    if (!(arrived.mask >> lane & 1)) continue;
    if (lanes[lane].mask != arrived.mask || std::strcmp(lanes[lane].function, arrived.function) != 0) return false;
  }
  return true;
}

void read_order() {
  const char* name = std::getenv("AIMFAIR_EMULATOR_ORDER");
  if (!name || !std::strcmp(name, "forward")) {
    order = Order::forward;
  } else if (!std::strcmp(name, "backward")) {
    order = Order::backward;
  } else {
    char* end;
    random_bits.seed(std::strtoull(name, &end, 10));
    if (end == name || *end) {
      std::fprintf(stderr, "CUDA emulator: AIMFAIR_EMULATOR_ORDER is '%s', expected forward, backward or a number\n",
                   name);
      std::abort();
    }
    order = Order::random;
  }
}

// Not memset: AddressSanitizer would find the red zones between the variables.
[[gnu::no_sanitize("address", "undefined")]] void poison_shared() {
  volatile char* at = __start_aimfair_shared;
  for (; __stop_aimfair_shared - at >= 8; at += 8) *reinterpret_cast<volatile uint64_t*>(at) = kPoison;
  for (; at < __stop_aimfair_shared; at++) *at = static_cast<char>(kPoison);
}

void run_block(unsigned block) {
  blockIdx.x = block;
  poison_shared();
  std::fill_n(threads, blockDim.x, Thread{});
  std::fill_n(warp_waiting, kMaxThreads / 32, 0u);
  at_barrier = ended = first_ready = ready_count = 0;
  for (unsigned thread = 0; thread < blockDim.x; thread++) make_ready(thread);
  give_way();
}

}  // namespace

// A fiber runs one thread after another, for as long as the program lives.
void fiber_main() {
  for (;;) {
    body(context);
    threads[current].ended = true;
    threads[current].function = nullptr;
    ended++;
    resting.push_back(threads[current].fiber);
    give_way();
  }
}

void launch(unsigned blocks, unsigned block_threads, void (*new_body)(void*), void* new_context) {
  const std::lock_guard lock(launching);
  read_order();
  body = new_body;
  context = new_context;
  gridDim.x = blocks;
  blockDim.x = block_threads;
  running_fiber = &launcher;
  waits = 0;
  if (order == Order::random) {
    std::vector<unsigned> shuffled(blocks);
    std::iota(shuffled.begin(), shuffled.end(), 0u);
    std::shuffle(shuffled.begin(), shuffled.end(), random_bits);
    for (const unsigned block : shuffled) run_block(block);
  } else {
    for (unsigned i = 0; i < blocks; i++) run_block(order == Order::forward ? i : blocks - 1 - i);
  }
  if (std::getenv("AIMFAIR_EMULATOR_TRACE")) {
    std::fprintf(stderr, "CUDA emulator: %u blocks of %u threads, %lu waits\n", blocks, block_threads, waits);
  }
}

unsigned wait_for_block(const char* function, bool predicate, const Where& where) {
  Thread& thread = threads[current];
  thread.function = function;
  thread.where = where;
  thread.mask = 0;
  thread.value = predicate;
  if (++at_barrier == blockDim.x) release_block();
  return static_cast<unsigned>(wait(thread));
}

uint64_t wait_for_lanes(const char* function, Combine combine, unsigned mask, uint64_t value, unsigned source,
                        const Where& where) {
  const unsigned lane = current % 32, warp = current / 32, first = current - lane;
  if (!(mask >> lane & 1)) fail_in(function, ": this lane is not in the mask", where);
  if (combine == Combine::shuffle && !(mask >> source & 1)) {
    fail_in(function, ": reads from a lane that is not in the mask", where);
  }
  Thread& thread = threads[current];
  thread = {thread.fiber, false, function, where, combine, mask, value, source, 0};
  warp_waiting[warp] |= 1u << lane;
  if ((warp_waiting[warp] & mask) == mask && lanes_have_met(threads + first, thread)) {
    warp_waiting[warp] &= ~mask;
    for (unsigned i = 0; i < 32; i++) {
      if (mask >> i & 1) threads[first + i].result = combined(threads + first, i);
    }
    for (unsigned i = 0; i < 32; i++) {
      if (mask >> i & 1) make_ready(first + i);
    }
  }
  return wait(thread);
}

void fail(const char* problem, const Where& where) { fail_in("", problem, where); }

}  // namespace aimfair_emulator
