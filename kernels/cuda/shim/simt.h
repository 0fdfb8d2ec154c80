// Runs kernels on the host, for tests: a fiber for each thread of a block, blocks one after the other.
//
// Shared memory is poisoned, every block starts with fresh fibers, and the order in which threads run between barriers is
// the test's choice: what a barrier is missing for shows as a wrong result in one of the orders. Threads that wait at
// different barriers end the test.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>
#include <ucontext.h>

#define DEVICE inline
#define KERNEL(name, Args, ...)                                                                              \
  static void name(const Args& a);                                                                           \
  static const simt::Registered name##_registered(                                                           \
      #name, {__VA_ARGS__}, sizeof(Args), [](const void* a) { name(*static_cast<const Args*>(a)); });        \
  static void name(const Args& a)

namespace simt {

struct Index {
  uint32_t x = 0, y = 0, z = 0;
};

struct Kernel {
  uint32_t threads_max;
  size_t args_bytes;
  void (*call)(const void*);
};

inline std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> all;
  return all;
}

struct Registered {
  Registered(const char* name, std::initializer_list<uint32_t> bounds, size_t args_bytes, void (*call)(const void*)) {
    kernels()[name] = Kernel{*bounds.begin(), args_bytes, call};
  }
};

enum class State { Ready, AtBlock, AtWarp, Done };

constexpr size_t kStack = 128 << 10;

struct Fiber {
  ucontext_t context;
  void* saved = nullptr;
  char* stack = nullptr;
  uint32_t index = 0;
  State state = State::Ready;
};

// What the lanes of a warp hand to each other: two sets, used in turn, so that a fast lane does not overwrite what a slow one
// still reads.
struct Exchange {
  alignas(16) unsigned char slots[2][32][64];
};

extern thread_local Fiber* current;
extern thread_local Index block_index, thread_index, block_size, grid_size;
extern thread_local std::vector<char> shared_bytes;

[[noreturn]] void fail(const char* what);
// Gives way until all threads of the block, or all lanes of the warp, have come here.
void wait_block();
void wait_warp();
// The slots of the warp, once every lane has filled its own.
unsigned char (*exchange(const void* mine, size_t bytes))[64];

template <class T> T lane_of(unsigned char (*slots)[64], uint32_t lane) {
  T x;
  std::memcpy(&x, slots[lane], sizeof(T));
  return x;
}

}  // namespace simt

#define threadIdx simt::thread_index
#define blockIdx simt::block_index
#define blockDim simt::block_size
#define gridDim simt::grid_size

inline void* shared() {
  auto at = reinterpret_cast<uintptr_t>(simt::shared_bytes.data());
  return reinterpret_cast<void*>((at + 15) & ~uintptr_t(15));
}
inline void sync_block() { simt::wait_block(); }
inline void sync_warp() { simt::wait_warp(); }
template <class T> T shuffle_xor(T x, int mask) {
  auto slots = simt::exchange(&x, sizeof(T));
  return simt::lane_of<T>(slots, (threadIdx.x % 32) ^ mask);
}

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float exp2_fast(float x) { return std::exp2(x); }

inline float from_f16(uint16_t bits) {
  int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float x = exponent == 0    ? std::ldexp(float(fraction), -24)
            : exponent == 31 ? (fraction ? NAN : INFINITY)
                             : std::ldexp(float(fraction | 1024), exponent - 25);
  return bits >> 15 ? -x : x;
}

namespace simt {
inline int8_t byte(uint32_t word, int i) { return int8_t(word >> (8 * i)); }
inline float half(uint32_t word, int i) {
  uint32_t bits = (i ? word >> 16 : word & 0xffff) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
// Fragments of one lane.
struct Fragments {
  uint32_t a[4], b[2];
};
}  // namespace simt

// Row and column of element `i` of a lane's results.
#define SIMT_ROW (threadIdx.x % 32 / 4 + (i >= 2 ? 8 : 0))
#define SIMT_COLUMN (threadIdx.x % 4 * 2 + (i & 1))

inline void mma_16_8_32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int32_t c) {
  simt::Fragments mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  auto slots = simt::exchange(&mine, sizeof mine);
  for (int i = 0; i < 4; ++i) {
    uint32_t row = SIMT_ROW, column = SIMT_COLUMN;
    d[i] = c;
    for (uint32_t k = 0; k < 32; ++k) {
      auto x = simt::lane_of<simt::Fragments>(slots, row % 8 * 4 + k % 16 / 4);
      auto y = simt::lane_of<simt::Fragments>(slots, column * 4 + k % 16 / 4);
      d[i] += simt::byte(x.a[row / 8 + k / 16 * 2], k % 4) * simt::byte(y.b[k / 16], k % 4);
    }
  }
}
inline void mma_16_8_16(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, int32_t c) {
  simt::Fragments mine = {{a0, a1, 0, 0}, {b, 0}};
  auto slots = simt::exchange(&mine, sizeof mine);
  for (int i = 0; i < 4; ++i) {
    uint32_t row = SIMT_ROW, column = SIMT_COLUMN;
    d[i] = c;
    for (uint32_t k = 0; k < 16; ++k) {
      auto x = simt::lane_of<simt::Fragments>(slots, row % 8 * 4 + k / 4);
      auto y = simt::lane_of<simt::Fragments>(slots, column * 4 + k / 4);
      d[i] += simt::byte(x.a[row / 8], k % 4) * simt::byte(y.b[0], k % 4);
    }
  }
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  simt::Fragments mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  auto slots = simt::exchange(&mine, sizeof mine);
  for (int i = 0; i < 4; ++i) {
    uint32_t row = SIMT_ROW, column = SIMT_COLUMN;
    double sum = d[i];
    for (uint32_t k = 0; k < 16; ++k) {
      auto x = simt::lane_of<simt::Fragments>(slots, row % 8 * 4 + k % 8 / 2);
      auto y = simt::lane_of<simt::Fragments>(slots, column * 4 + k % 8 / 2);
      sum += double(simt::half(x.a[row / 8 + k / 8 * 2], k % 2)) * simt::half(y.b[k / 8], k % 2);
    }
    d[i] = float(sum);
  }
}

// Copies arrive when they are waited for and no sooner, as they may on a device.
void copy_16(void* to, const void* from, bool real);
void copies_end_group();
void copies_wait_for(int groups);
template <int N> void copies_wait() { copies_wait_for(N); }
