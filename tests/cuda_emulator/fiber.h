#pragma once

#include <cstddef>

// Fibers: functions with a stack of their own that take turns on one system thread.

namespace aimfair_emulator {

struct Fiber {
  void* context = nullptr;       // saved while another one runs: the stack pointer, or a ucontext_t
  const void* bottom = nullptr;  // of the stack
  size_t size = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
};

// The one that runs. Set it to an empty Fiber to make one of the caller's own stack.
extern Fiber* running_fiber;

// A new one, which runs fiber_main when first switched to. It lives as long as the program.
Fiber* new_fiber();

// Goes on with another one; returns when another switches back. Returns at once if `next` is the running one.
void switch_to(Fiber* next);

// What fibers run: defined by the user, never returns.
[[noreturn]] void fiber_main();

}  // namespace aimfair_emulator
