// Runs kernels on the host, for tests: a fiber for each thread of a block, blocks one after the other.
//
// Threads run until they wait for others, and who runs next is the test's choice: what a barrier is missing for shows as a
// wrong result in one of the orders. Shared memory is poisoned, as is what stands behind it; lanes of a warp that wait at
// different places, and barriers that some threads never reach, end the test. Copies in the background arrive as early or as
// late as they may.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <map>
#include <string>

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

extern thread_local Index block_index, thread_index, block_size, grid_size;
extern thread_local void* shared_memory;

// What threads do together. All but the last two are a warp's.
enum class Op { Sync, Shuffle, Mma8x32, Mma8x16, MmaBf16, MmaF16, Barrier, End };

// Gives way until all threads concerned are at this line. `operands` are the lane's, in which it finds its results.
void meet(Op op, void* operands, int line);

struct Shuffle {
  uint32_t value, mask;
};
// Fragments of one lane, as the PTX ISA lays them out.
struct MmaInt8 {
  uint32_t a[4], b[2];
  int32_t d[4];
};
struct Mma16 {
  uint32_t a[4], b[2];
  float d[4];
};

}  // namespace simt

#define threadIdx simt::thread_index
#define blockIdx simt::block_index
#define blockDim simt::block_size
#define gridDim simt::grid_size

inline void* shared() { return simt::shared_memory; }
inline void sync_block(int line = __builtin_LINE()) { simt::meet(simt::Op::Barrier, nullptr, line); }
inline void sync_warp(int line = __builtin_LINE()) { simt::meet(simt::Op::Sync, nullptr, line); }
template <class T> T shuffle_xor(T x, int mask, int line = __builtin_LINE()) {
  static_assert(sizeof(T) == 4, "a lane hands on one word");
  simt::Shuffle mine = {0, uint32_t(mask)};
  std::memcpy(&mine.value, &x, 4);
  simt::meet(simt::Op::Shuffle, &mine, line);
  std::memcpy(&x, &mine.value, 4);
  return x;
}

// Threads give way only where they meet.
template <class T> T add_atomic(T* to, T x) {
  T before = *to;
  *to = before + x;
  return before;
}
inline uint64_t high_product(uint64_t x, uint64_t y) { return uint64_t((unsigned __int128)(x) * y >> 64); }

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
// Byte i of the result is that of `low` and `high`, one after the other, which digit i says.
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t digits) {
  uint64_t both = uint64_t(high) << 32 | low;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= uint32_t(both >> 8 * (digits >> 4 * i & 7) & 0xff) << 8 * i;
  return out;
}
inline void loads_end() {}
inline uint32_t opaque(uint32_t x) { return x; }
inline float exp2_fast(float x) { return std::exp2(x); }

inline float from_f16(uint16_t bits) {
  uint32_t exponent = bits >> 10 & 31, fraction = bits & 1023;
  float x = exponent == 0    ? float(fraction) * 0x1p-24f
            : exponent == 31 ? (fraction ? NAN : INFINITY)
                             : float(fraction | 1024) * 0x1p-25f * float(uint32_t(1) << exponent);
  return bits >> 15 ? -x : x;
}

inline uint16_t to_f16(float x) {
  uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  float magnitude = std::fabs(x);
  if (std::isnan(x)) return sign | 0x7fff;
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  // What rounding carries over is the next exponent's first number.
  if (magnitude < 0x1p-14f) return sign | uint16_t(std::nearbyint(magnitude * 0x1p24f));
  int exponent;
  float fraction = std::frexp(magnitude, &exponent);
  return sign | uint16_t(((exponent + 14) << 10) + int(std::nearbyint(fraction * 2048.0f)) - 1024);
}

inline void mma_16_8_32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int32_t c,
                        int line = __builtin_LINE()) {
  simt::MmaInt8 mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c, c, c, c}};
  simt::meet(simt::Op::Mma8x32, &mine, line);
  std::memcpy(d, mine.d, sizeof d);
}
inline void mma_16_8_16(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, int32_t c, int line = __builtin_LINE()) {
  simt::MmaInt8 mine = {{a0, a1, 0, 0}, {b, 0}, {c, c, c, c}};
  simt::meet(simt::Op::Mma8x16, &mine, line);
  std::memcpy(d, mine.d, sizeof d);
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line = __builtin_LINE()) {
  simt::Mma16 mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {d[0], d[1], d[2], d[3]}};
  simt::meet(simt::Op::MmaBf16, &mine, line);
  std::memcpy(d, mine.d, sizeof d);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line = __builtin_LINE()) {
  simt::Mma16 mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {d[0], d[1], d[2], d[3]}};
  simt::meet(simt::Op::MmaF16, &mine, line);
  std::memcpy(d, mine.d, sizeof d);
}

void copy_16(void* to, const void* from, bool real);
void copies_end_group();
void copies_wait_for(uint32_t groups);
template <int N> void copies_wait() { copies_wait_for(N); }
