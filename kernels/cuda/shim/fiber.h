// A fiber: a function with a stack of its own, which gives way to whoever resumed it.
#pragma once
#include <cstdint>
#include <cstdlib>

#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef __x86_64__
#error "fibers are written for x86-64"
#endif

// Saves what a function must leave as it was, and goes on where `to` was saved.
extern "C" void simt_switch(void** from, void* to);
asm(R"(
.pushsection .text
.hidden simt_switch
.globl simt_switch
.type simt_switch, @function
simt_switch:
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
.size simt_switch, .-simt_switch
.popsection
)");

namespace simt {

class Fiber {
 public:
  Fiber() {
    // The lowest page is never touched: a stack that overflows ends the process.
    void* memory = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE) != 0) std::abort();
    memory_ = static_cast<char*>(memory);
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() { munmap(memory_, kGuard + kStack); }

  // Makes it begin at `body`, which never returns, when it is resumed for the first time.
  void start(void (*body)()) {
    if (own_ != nullptr) return;
    body_ = body;
    auto top = reinterpret_cast<void**>(memory_ + kGuard + kStack);
    // As `simt_switch` leaves a stack: six registers and where to go on. A function begins 8 below a multiple of 16.
    top[-2] = reinterpret_cast<void*>(&enter);
    own_ = top - 8;
    starting_ = this;
  }

  void resume() {
    starting_ = this;
#ifdef __SANITIZE_ADDRESS__
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, memory_ + kGuard, kStack);
    simt_switch(&back_, own_);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    simt_switch(&back_, own_);
#endif
  }

  void give_way() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&fake_, below_, below_bytes_);
    simt_switch(&own_, back_);
    __sanitizer_finish_switch_fiber(fake_, &below_, &below_bytes_);
#else
    simt_switch(&own_, back_);
#endif
  }

 private:
  static void enter() {
    Fiber* self = starting_;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &self->below_, &self->below_bytes_);
#endif
    self->body_();
  }

  static constexpr size_t kStack = 128 << 10, kGuard = 4 << 10;
  static inline thread_local Fiber* starting_ = nullptr;

  char* memory_ = nullptr;
  void (*body_)() = nullptr;
  // Where it goes on, and where whoever resumed it does.
  void* own_ = nullptr;
  void* back_ = nullptr;
#ifdef __SANITIZE_ADDRESS__
  void* fake_ = nullptr;
  const void* below_ = nullptr;
  size_t below_bytes_ = 0;
#endif
};

}  // namespace simt
