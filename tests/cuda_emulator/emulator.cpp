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
constexpr unsigned kMostSleeps = 10'000;  // in sequence, of all blocks

// A thread, and what it waits for.
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

struct Block {
  unsigned index;
  Thread threads[kMaxThreads];
  unsigned warp_waiting[kMaxThreads / 32];  // lanes in a collective
  unsigned at_barrier, ended;
  unsigned ready[kMaxThreads], first_ready, ready_count;  // threads that can go on: a ring, entered at the end
  std::vector<char> shared;                               // its variables, while another block runs
};

// One launch runs at a time, whichever system thread asks.
std::mutex launching;
void (*body)(void*);
void* context;
auto& unbegun = *new std::vector<unsigned>;  // blocks, the next one last
auto& begun = *new std::vector<Block*>;      // and not ended: one, unless the launch is cooperative
size_t running;                              // of those
unsigned current;                            // thread of that block
bool cooperative;
unsigned sleeps;      // since a thread did something else
unsigned long waits;  // of all threads of the launch
Fiber launcher;       // the stack of the caller of launch

// For the next block or thread; never deleted.
auto& unused = *new std::vector<Block*>;
auto& resting = *new std::vector<Fiber*>;

enum class Order { forward, backward, random } order;
std::mt19937_64 random_bits;

Block& block() { return *begun[running]; }

unsigned& ready_at(unsigned place) { return block().ready[(block().first_ready + place) % kMaxThreads]; }

void make_ready(unsigned thread) { ready_at(block().ready_count++) = thread; }

unsigned take_ready() {
  const unsigned count = --block().ready_count;
  if (order == Order::backward) return ready_at(count);
  if (order == Order::random) std::swap(ready_at(0), ready_at(random_bits() % (count + 1)));
  const unsigned thread = ready_at(0);
  block().first_ready = (block().first_ready + 1) % kMaxThreads;
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
  const Thread* threads = block().threads;
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

// Not memset and memcpy: AddressSanitizer would find the red zones between the variables.
[[gnu::no_sanitize("address", "undefined")]] void poison_shared() {
  volatile char* at = __start_aimfair_shared;
  for (; __stop_aimfair_shared - at >= 8; at += 8) *reinterpret_cast<volatile uint64_t*>(at) = kPoison;
  for (; at < __stop_aimfair_shared; at++) *at = static_cast<char>(kPoison);
}

[[gnu::no_sanitize("address", "undefined")]] void exchange_shared(char* kept) {
  volatile char* at = __start_aimfair_shared;
  for (; __stop_aimfair_shared - at >= 8; at += 8, kept += 8) {
    const uint64_t value = *reinterpret_cast<volatile uint64_t*>(at);
    *reinterpret_cast<volatile uint64_t*>(at) = *reinterpret_cast<uint64_t*>(kept);
    *reinterpret_cast<uint64_t*>(kept) = value;
  }
  for (; at < __stop_aimfair_shared; at++, kept++) {
    const char value = *at;
    *at = *kept;
    *kept = value;
  }
}

// Begins the next block, if there is one that has not begun.
bool begin_block() {
  if (unbegun.empty()) return false;
  if (unused.empty()) unused.push_back(new Block);
  running = begun.size();
  begun.push_back(unused.back());
  unused.pop_back();
  Block& next = block();
  next.index = unbegun.back();
  unbegun.pop_back();
  std::fill_n(next.threads, blockDim.x, Thread{});
  std::fill_n(next.warp_waiting, kMaxThreads / 32, 0u);
  next.at_barrier = next.ended = next.first_ready = next.ready_count = 0;
  blockIdx.x = next.index;
  poison_shared();
  for (unsigned thread = 0; thread < blockDim.x; thread++) make_ready(thread);
  return true;
}

// Goes on with block `next`, once the shared variables of the running one are kept.
void resume_block(size_t next) {
  running = next;
  blockIdx.x = block().index;
  exchange_shared(block().shared.data());
}

// Goes on with another thread, with another block after the last one, with the launcher after the last block.
void give_way() {
  if (block().ready_count == 0) {
    if (block().ended != blockDim.x) fail_deadlock();
    unused.push_back(begun[running]);
    begun.erase(begun.begin() + static_cast<ptrdiff_t>(running));
    if (!begin_block()) {
      if (begun.empty()) {
        switch_to(&launcher);
        return;
      }
      resume_block(order == Order::random ? random_bits() % begun.size() : running % begun.size());
    }
  }
  Thread& next = block().threads[current = take_ready()];
  threadIdx.x = current;
  if (!next.fiber) {
    if (resting.empty()) resting.push_back(new_fiber());
    next.fiber = resting.back();
    resting.pop_back();
  }
  switch_to(next.fiber);
}

uint64_t wait() {
  Thread& own = block().threads[current];
  waits++;
  sleeps = 0;
  give_way();
  own.function = nullptr;
  return own.result;
}

void release_block() {
  Thread* threads = block().threads;
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
  block().at_barrier = 0;
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

}  // namespace

// A fiber runs one thread after another, for as long as the program lives.
void fiber_main() {
  for (;;) {
    body(context);
    Thread& thread = block().threads[current];
    thread.ended = true;
    thread.function = nullptr;
    block().ended++;
    sleeps = 0;
    resting.push_back(thread.fiber);
    give_way();
  }
}

void launch(unsigned grid_blocks, unsigned block_threads, bool is_cooperative, void (*new_body)(void*),
            void* new_context) {
  const std::lock_guard lock(launching);
  read_order();
  body = new_body;
  context = new_context;
  gridDim.x = grid_blocks;
  blockDim.x = block_threads;
  cooperative = is_cooperative;
  running_fiber = &launcher;
  waits = sleeps = 0;
  unbegun.resize(grid_blocks);
  std::iota(unbegun.begin(), unbegun.end(), 0u);
  if (order == Order::forward) std::reverse(unbegun.begin(), unbegun.end());
  if (order == Order::random) std::shuffle(unbegun.begin(), unbegun.end(), random_bits);
  begin_block();
  give_way();
  if (std::getenv("AIMFAIR_EMULATOR_TRACE")) {
    std::fprintf(stderr, "CUDA emulator: %u blocks of %u threads, %lu waits\n", grid_blocks, block_threads, waits);
  }
}

unsigned wait_for_block(const char* function, bool predicate, const Where& where) {
  Thread& thread = block().threads[current];
  thread.function = function;
  thread.where = where;
  thread.mask = 0;
  thread.value = predicate;
  if (++block().at_barrier == blockDim.x) release_block();
  return static_cast<unsigned>(wait());
}

void wait_for_other_blocks(const char* function, const Where& where) {
  if (!cooperative) fail_in(function, ": blocks wait for each other only in a cooperative launch", where);
  if (++sleeps > kMostSleeps) fail_in(function, ": the blocks wait for each other forever", where);
  Block& own = block();
  // After the others of its block, in every order.
  if (order == Order::backward) {
    own.first_ready = (own.first_ready + kMaxThreads - 1) % kMaxThreads;
    own.ready_count++;
    ready_at(0) = current;
  } else {
    make_ready(current);
  }
  if (own.ready_count == 1) {
    own.shared.resize(static_cast<size_t>(__stop_aimfair_shared - __start_aimfair_shared));
    exchange_shared(own.shared.data());
    if (!begin_block())
      resume_block(order == Order::random ? random_bits() % begun.size() : (running + 1) % begun.size());
  }
  give_way();
}

uint64_t wait_for_lanes(const char* function, Combine combine, unsigned mask, uint64_t value, unsigned source,
                        const Where& where) {
  const unsigned lane = current % 32, warp = current / 32, first = current - lane;
  if (!(mask >> lane & 1)) fail_in(function, ": this lane is not in the mask", where);
  if (combine == Combine::shuffle && !(mask >> source & 1)) {
    fail_in(function, ": reads from a lane that is not in the mask", where);
  }
  Block& of = block();
  Thread& thread = of.threads[current];
  thread = {thread.fiber, false, function, where, combine, mask, value, source, 0};
  of.warp_waiting[warp] |= 1u << lane;
  if ((of.warp_waiting[warp] & mask) == mask && lanes_have_met(of.threads + first, thread)) {
    of.warp_waiting[warp] &= ~mask;
    for (unsigned i = 0; i < 32; i++) {
      if (mask >> i & 1) of.threads[first + i].result = combined(of.threads + first, i);
    }
    for (unsigned i = 0; i < 32; i++) {
      if (mask >> i & 1) make_ready(first + i);
    }
  }
  return wait();
}

void fail(const char* problem, const Where& where) { fail_in("", problem, where); }

}  // namespace aimfair_emulator
