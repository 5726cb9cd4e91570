#include "fiber.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace aimfair_emulator {

Fiber* running_fiber;

namespace {

constexpr size_t kStack = 256 << 10;  // bytes; the pages that are not touched cost nothing

Fiber* previous;  // the fiber that the running one came from

void before_switch(Fiber* next) {
  previous = running_fiber;
  running_fiber = next;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&previous->fake_stack, next->bottom, next->size);
#endif
}

// The bounds of the launcher's own stack are learned here, when it is first left.
void after_switch() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(running_fiber->fake_stack, &previous->bottom, &previous->size);
#endif
}

[[noreturn]] void begin() {
  after_switch();
  fiber_main();
}

}  // namespace

#if defined(__x86_64__)

// Saves the registers that a function must keep and the stack pointer, and loads those of another fiber.
extern "C" void aimfair_switch_stack(void** save, void* load);
asm(R"(
.text
.type aimfair_switch_stack, @function
aimfair_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size aimfair_switch_stack, .-aimfair_switch_stack
)");

namespace {

void prepare(Fiber* fiber, char* stack) {
  void** top = reinterpret_cast<void**>(stack + kStack);
  *--top = nullptr;  // no caller
  *--top = reinterpret_cast<void*>(&begin);
  for (int saved = 0; saved < 6; saved++) *--top = nullptr;
  fiber->context = top;
}

void exchange(Fiber* from, Fiber* to) { aimfair_switch_stack(&from->context, to->context); }

}  // namespace

#else

namespace {

void prepare(Fiber* fiber, char* stack) {
  auto* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = kStack;
  makecontext(context, &begin, 0);
  fiber->context = context;
}

void exchange(Fiber* from, Fiber* to) {
  if (!from->context) from->context = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(from->context), static_cast<ucontext_t*>(to->context));
}

}  // namespace

#endif

Fiber* new_fiber() {
  const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));  // below the stack: an overflow must not go unseen
  void* memory = mmap(nullptr, guard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, guard, PROT_NONE) != 0) {
    std::perror("CUDA emulator: no memory for a stack");
    std::abort();
  }
  auto* fiber = new Fiber;
  fiber->bottom = static_cast<char*>(memory) + guard;
  fiber->size = kStack;
  prepare(fiber, static_cast<char*>(memory) + guard);
  return fiber;
}

void switch_to(Fiber* next) {
  if (next == running_fiber) return;
  before_switch(next);
  exchange(previous, next);
  after_switch();
}

}  // namespace aimfair_emulator
