// The scheduler of fibers behind simt.h, and the entry that tests call.
#include "simt.h"

namespace simt {

thread_local Fiber* current = nullptr;
thread_local Index block_index, thread_index, block_size, grid_size;
thread_local std::vector<char> shared_bytes;

namespace {

struct Copy {
  void* to;
  unsigned char bytes[16];
};

struct Thread {
  Fiber fiber;
  uint32_t exchanges = 0;
  // Groups of copies under way, the last of them still open.
  std::vector<std::vector<Copy>> copies = std::vector<std::vector<Copy>>(1);
};

thread_local ucontext_t scheduler;
thread_local std::vector<Thread> threads;
thread_local std::vector<Exchange> exchanges;
thread_local const std::function<void()>* body = nullptr;

Thread& self() { return threads[current->index]; }

void give_way() { swapcontext(&current->context, &scheduler); }

void enter() {
  (*body)();
  current->state = State::Done;
  give_way();
}

void start(uint32_t index) {
  Thread& thread = threads[index];
  thread.exchanges = 0;
  thread.copies.assign(1, {});
  Fiber& fiber = thread.fiber;
  fiber.index = index;
  fiber.state = State::Ready;
  if (!fiber.stack) fiber.stack = static_cast<char*>(std::aligned_alloc(64, kStack));
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
}

// Lets the lanes of each warp go on that have all come to the same place; whether any may.
bool release_warps(uint32_t count) {
  bool any = false;
  for (uint32_t first = 0; first < count; first += 32) {
    uint32_t end = std::min(count, first + 32), waiting = 0, live = 0;
    for (uint32_t i = first; i < end; ++i) {
      live += threads[i].fiber.state != State::Done;
      waiting += threads[i].fiber.state == State::AtWarp;
    }
    if (waiting == 0) continue;
    if (waiting != live) continue;
    for (uint32_t i = first; i < end; ++i)
      if (threads[i].fiber.state == State::AtWarp) threads[i].fiber.state = State::Ready;
    any = true;
  }
  return any;
}

// The order in which ready threads run: 0 forwards, 1 backwards, others a random one that changes with each round.
void shuffle(std::vector<uint32_t>& order, uint32_t kind, uint64_t& random) {
  if (kind < 2) return;
  for (size_t i = order.size() - 1; i > 0; --i) {
    random ^= random << 13, random ^= random >> 7, random ^= random << 17;
    std::swap(order[i], order[random % (i + 1)]);
  }
}

void run_block(uint32_t count, uint32_t kind) {
  std::vector<uint32_t> order(count);
  for (uint32_t i = 0; i < count; ++i) order[i] = kind == 1 ? count - 1 - i : i;
  uint64_t random = kind * 0x9E3779B97F4A7C15ull + 1;
  for (;;) {
    shuffle(order, kind, random);
    bool ran = false;
    for (uint32_t i : order) {
      if (threads[i].fiber.state != State::Ready) continue;
      current = &threads[i].fiber;
      thread_index = Index{i, 0, 0};
      swapcontext(&scheduler, &current->context);
      ran = true;
    }
    ran |= release_warps(count);
    uint32_t done = 0, at_block = 0;
    for (uint32_t i = 0; i < count; ++i) {
      done += threads[i].fiber.state == State::Done;
      at_block += threads[i].fiber.state == State::AtBlock;
    }
    if (done == count) return;
    if (at_block == count) {
      for (uint32_t i = 0; i < count; ++i) threads[i].fiber.state = State::Ready;
      ran = true;
    }
    if (!ran) fail("threads wait at different barriers");
  }
}

}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "simt: %s (block %u, %u, %u)\n", what, block_index.x, block_index.y, block_index.z);
  std::abort();
}

void wait_block() {
  current->state = State::AtBlock;
  give_way();
}

void wait_warp() {
  current->state = State::AtWarp;
  give_way();
}

unsigned char (*exchange(const void* mine, size_t bytes))[64] {
  if (bytes > 64) fail("an exchange of more than 64 bytes");
  auto& slots = exchanges[current->index / 32].slots[self().exchanges++ % 2];
  std::memcpy(slots[current->index % 32], mine, bytes);
  wait_warp();
  return slots;
}

}  // namespace simt

void copy_16(void* to, const void* from, bool real) {
  simt::Copy copy = {to, {}};
  if (real) std::memcpy(copy.bytes, from, 16);
  simt::self().copies.back().push_back(copy);
}

void copies_end_group() { simt::self().copies.emplace_back(); }

void copies_wait_for(int groups) {
  auto& all = simt::self().copies;
  // The last one is still open.
  while (all.size() > size_t(groups) + 1) {
    for (auto& copy : all.front()) std::memcpy(copy.to, copy.bytes, 16);
    all.erase(all.begin());
  }
}

// Runs a kernel to its end. Not 0 where there is none of this name, or where it cannot be started so.
extern "C" int simt_launch(const char* name, const uint32_t* grid, uint32_t block, uint32_t shared, uint32_t order,
                           const void* args, size_t args_bytes) {
  using namespace simt;
  auto found = kernels().find(name);
  if (found == kernels().end() || found->second.args_bytes != args_bytes) return 1;
  if (block == 0 || block % 32 != 0 || block > found->second.threads_max) return 2;
  const Kernel& kernel = found->second;
  std::function<void()> call = [&] { kernel.call(args); };
  body = &call;
  block_size = Index{block, 1, 1};
  grid_size = Index{grid[0], grid[1], grid[2]};
  if (threads.size() < block) threads.resize(block);
  exchanges.resize(block / 32);
  for (uint32_t z = 0; z < grid[2]; ++z)
    for (uint32_t y = 0; y < grid[1]; ++y)
      for (uint32_t x = 0; x < grid[0]; ++x) {
        block_index = Index{x, y, z};
        // Numbers that are none, so that what was not written shows.
        shared_bytes.assign(shared + 16, char(0xff));
        for (uint32_t i = 0; i < block; ++i) start(i);
        run_block(block, order);
      }
  return 0;
}
