// The scheduler of fibers behind simt.h, and the entries that tests call.
#include "simt.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include "fiber.h"
#include "mma.h"

namespace simt {

thread_local Index block_index, thread_index, block_size, grid_size;
thread_local void* shared_memory = nullptr;

namespace {

constexpr uint32_t kWarp = 32, kThreadsMax = 1024;

struct Copy {
  void* to;
  uint32_t group;
  unsigned char bytes[16];
};

struct Thread {
  Fiber fiber;
  // Where it waits, with what.
  Op op = Op::End;
  int line = 0;
  void* operands = nullptr;
  // Copies under way, and the number of the group that is open.
  std::vector<Copy> copies;
  uint32_t group = 0;
};

// Orders in which threads run: 0 forwards and 1 backwards, each warp as far as it gets, others at random.
class Order {
 public:
  explicit Order(uint32_t kind) : kind_(kind), random_(kind * 0x9E3779B97F4A7C15ull + 1) {}

  // One of the warps that may go on.
  uint32_t warp(uint32_t runnable) {
    if (kind_ == 0) return uint32_t(__builtin_ctz(runnable));
    if (kind_ == 1) return 31 - uint32_t(__builtin_clz(runnable));
    uint32_t skip = next() % uint32_t(__builtin_popcount(runnable));
    for (; skip > 0; --skip) runnable &= runnable - 1;
    return uint32_t(__builtin_ctz(runnable));
  }

  // Begins a round; `lane` then gives every lane once.
  void start_round() {
    if (kind_ < 2) return;
    step_ = next() | 1, first_ = next();
  }
  uint32_t lane(uint32_t i) const { return kind_ == 0 ? i : kind_ == 1 ? kWarp - 1 - i : (i * step_ + first_) % kWarp; }

  // Whether copies arrive at once rather than when they are waited for.
  bool copies_early() const { return kind_ % 2 == 1; }

 private:
  uint32_t next() {
    random_ ^= random_ << 13, random_ ^= random_ >> 7, random_ ^= random_ << 17;
    return uint32_t(random_ >> 32);
  }

  uint32_t kind_, step_ = 1, first_ = 0;
  uint64_t random_;
};

[[noreturn]] void fail(const char* what, int line = 0) {
  std::fprintf(stderr, "simt: %s (block %u, %u, %u, thread %u, line %d)\n", what, block_index.x, block_index.y, block_index.z,
               thread_index.x, line);
  std::abort();
}

// Dynamic shared memory of a block, poisoned before each, with guards behind it. AddressSanitizer has its own.
class SharedMemory {
 public:
  explicit SharedMemory(uint32_t bytes) : bytes_(bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, bytes + kGuard + 1) != 0) fail("no memory");
    memory_.reset(static_cast<unsigned char*>(memory));
    shared_memory = memory;
  }

  // Bytes that are numbers in no floating type, so that what was not written shows.
  void poison() { std::memset(memory_.get(), 0xff, bytes_ + kGuard); }
  void check() const {
    for (uint32_t i = 0; i < kGuard; ++i)
      if (memory_[bytes_ + i] != 0xff) fail("a write behind shared memory");
  }
  bool holds(const void* at, uint32_t bytes) const {
    auto offset = static_cast<const unsigned char*>(at) - memory_.get();
    return offset >= 0 && offset + int64_t(bytes) <= int64_t(bytes_);
  }

 private:
  struct Free {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };
#ifdef __SANITIZE_ADDRESS__
  static constexpr uint32_t kGuard = 0;
#else
  static constexpr uint32_t kGuard = 256;
#endif
  uint32_t bytes_;
  std::unique_ptr<unsigned char[], Free> memory_;
};

// What runs at present, on this thread of the host.
thread_local std::vector<std::unique_ptr<Thread>> threads;
thread_local Thread* current = nullptr;
thread_local const Kernel* kernel = nullptr;
thread_local const void* arguments = nullptr;
thread_local const SharedMemory* memory = nullptr;
thread_local bool copies_early = false;

// The life of a thread, once for each block.
void live() {
  for (;;) {
    kernel->call(arguments);
    meet(Op::End, nullptr, 0);
  }
}

// Runs the lanes of a warp up to where they wait next, which is the same place for all; does there what warps do.
Op run_warp(uint32_t warp, Order& order) {
  order.start_round();
  for (uint32_t i = 0; i < kWarp; ++i) {
    thread_index.x = warp * kWarp + order.lane(i);
    current = threads[thread_index.x].get();
    current->fiber.resume();
  }
  const Thread& first = *threads[warp * kWarp];
  void* operands[kWarp];
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    const Thread& thread = *threads[warp * kWarp + lane];
    thread_index.x = warp * kWarp + lane;
    if (thread.op != first.op || thread.line != first.line) fail("lanes of a warp wait at different places", thread.line);
    operands[lane] = thread.operands;
  }
  switch (first.op) {
    case Op::Shuffle: shuffle(operands); break;
    case Op::Mma8x32: multiply_int8<32>(operands); break;
    case Op::Mma8x16: multiply_int8<16>(operands); break;
    case Op::MmaBf16: multiply_16(operands, bf16_of); break;
    case Op::MmaF16: multiply_16(operands, f16_of); break;
    case Op::Sync:
    case Op::Barrier:
    case Op::End: break;
  }
  return first.op;
}

void run_block(uint32_t warps, Order& order) {
  // Warps that may go on, that wait at the barrier, and that have ended.
  uint32_t all = warps == 32 ? ~0u : (1u << warps) - 1, runnable = all, waiting = 0, ended = 0;
  int line = 0;
  while (ended != all) {
    if (runnable == 0) {
      if (ended != 0) fail("warps wait at a barrier that others never reach", line);
      runnable = waiting, waiting = 0;
    }
    uint32_t warp = order.warp(runnable);
    Op op = run_warp(warp, order);
    if (op == Op::End) {
      for (uint32_t lane = 0; lane < kWarp; ++lane)
        if (!threads[warp * kWarp + lane]->copies.empty()) fail("a thread ended before its copies");
      ended |= 1u << warp, runnable &= ~(1u << warp);
    }
    if (op == Op::Barrier) {
      int here = threads[warp * kWarp]->line;
      if (waiting != 0 && here != line) fail("warps wait at different barriers", here);
      line = here, waiting |= 1u << warp, runnable &= ~(1u << warp);
    }
  }
}

}  // namespace

void meet(Op op, void* operands, int line) {
  current->op = op, current->line = line, current->operands = operands;
  current->fiber.give_way();
}

}  // namespace simt

void copy_16(void* to, const void* from, bool real) {
  using namespace simt;
  if (!memory->holds(to, 16)) fail("a copy to what is not shared memory");
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
    fail("a copy of 16 bytes between addresses that are no multiples of 16");
  Copy copy = {to, current->group, {}};
  if (real) std::memcpy(copy.bytes, from, 16);
  if (copies_early) std::memcpy(to, copy.bytes, 16);
  else current->copies.push_back(copy);
}

void copies_end_group() { ++simt::current->group; }

void copies_wait_for(uint32_t groups) {
  using namespace simt;
  std::vector<Copy> later;
  for (const Copy& copy : current->copies) {
    if (copy.group + groups < current->group) std::memcpy(copy.to, copy.bytes, 16);
    else later.push_back(copy);
  }
  current->copies.swap(later);
}

// Runs a kernel to its end. Not 0 where there is none of this name, or where it cannot be started so.
extern "C" int simt_launch(const char* name, const uint32_t* grid, uint32_t block, uint32_t shared, uint32_t order,
                           const void* args, size_t args_bytes) {
  using namespace simt;
  auto found = kernels().find(name);
  if (found == kernels().end() || found->second.args_bytes != args_bytes) return 1;
  if (block == 0 || block % kWarp != 0 || block > found->second.threads_max || block > kThreadsMax) return 2;
  kernel = &found->second;
  arguments = args;
  block_size = Index{block, 1, 1};
  grid_size = Index{grid[0], grid[1], grid[2]};
  while (threads.size() < block) threads.push_back(std::make_unique<Thread>());
  for (uint32_t i = 0; i < block; ++i) threads[i]->fiber.start(live);
  SharedMemory own(shared);
  memory = &own;
  Order turns(order);
  copies_early = turns.copies_early();
  for (uint32_t z = 0; z < grid[2]; ++z)
    for (uint32_t y = 0; y < grid[1]; ++y)
      for (uint32_t x = 0; x < grid[0]; ++x) {
        block_index = Index{x, y, z};
        own.poison();
        run_block(block / kWarp, turns);
        own.check();
      }
  return 0;
}

// The name of kernel `number`, and the most threads that a block of it may have; null behind the last.
extern "C" const char* simt_kernel(size_t number, uint32_t* threads_max) {
  for (const auto& [name, kernel] : simt::kernels()) {
    if (number-- > 0) continue;
    *threads_max = kernel.threads_max;
    return name.c_str();
  }
  return nullptr;
}
