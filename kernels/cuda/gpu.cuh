// What differs between a GPU and the host, on which tests run the same kernels (shim/simt.h).
//
// A kernel takes one structure by value, which Rust lays out alike, and uses no shared memory but the dynamic one. Compilers
// are told not to fuse multiplications and additions by themselves, so that both give the same bits.
#pragma once
#ifdef REMPART_SHIM
#include "shim/simt.h"
#else

#include <stdint.h>

#define DEVICE __device__ __forceinline__
// A kernel `name` of arguments `a`; bounds are the most threads of a block and, where registers are to be saved, the blocks
// that a multiprocessor shall have room for.
#define KERNEL(name, Args, ...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(const __grid_constant__ Args a)

extern __shared__ uint4 shared_memory[];

DEVICE void* shared() { return shared_memory; }
DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
template <class T> DEVICE T shuffle_xor(T x, int mask) { return __shfl_xor_sync(~0u, x, mask); }

// Adds to a number that other threads add to as well, and gives what it was. Only whole numbers: their sum knows no order.
DEVICE uint32_t add_atomic(uint32_t* to, uint32_t x) { return atomicAdd(to, x); }
DEVICE uint64_t add_atomic(uint64_t* to, uint64_t x) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(x));
}
// The upper 64 bits of a product of 128.
DEVICE uint64_t high_product(uint64_t x, uint64_t y) { return __umul64hi(x, y); }

DEVICE float from_f16(uint16_t bits) {
  float x;
  asm("{ .reg .b16 h; mov.b16 h, %1; cvt.f32.f16 %0, h; }" : "=f"(x) : "h"(bits));
  return x;
}

// Rounded to nearest, ties to even.
DEVICE uint16_t to_f16(float x) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

// The number itself, of which the compiler knows nothing: what is computed of it is not kept in registers from one turn of a loop
// to the next.
DEVICE uint32_t opaque(uint32_t x) {
  asm("" : "+r"(x));
  return x;
}

// No load of what follows is moved before this.
DEVICE void loads_end() { asm volatile("" ::: "memory"); }

// 2^x, within two units in the last place; 0 for -infinity.
DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// d = c + a b of 16 x 32 and 32 x 8 whole numbers of 8 bits, every element of c being `c`; fragments as the PTX ISA lays them
// out, here and below.
DEVICE void mma_16_8_32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int32_t c) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c));
}

// As above of 16 x 16 and 16 x 8.
DEVICE void mma_16_8_16(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, int32_t c) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%7,%7,%7};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a0), "r"(a1), "r"(b), "r"(c));
}

// d += a b of 16 x 16 and 16 x 8 numbers in bf16, two in a word, the first one in its low half.
DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// As above in f16.
DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Copies 16 bytes to shared memory in the background, or zeros where `real` is false.
DEVICE void copy_16(void* to, const void* from, bool real) {
  uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(real ? 16 : 0));
}
DEVICE void copies_end_group() { asm volatile("cp.async.commit_group;"); }
// Waits until at most N groups of copies are under way.
template <int N> DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N)); }

#endif

// Generations before 9.0, and those since 10.0, have registers for less of what a compiler would do ahead. GENERATION says which
// one the host is to stand for.
#ifdef __CUDA_ARCH__
constexpr int kGeneration = __CUDA_ARCH__;
#elif defined(GENERATION)
constexpr int kGeneration = GENERATION;
#else
constexpr int kGeneration = 900;
#endif
constexpr bool kOld = kGeneration < 900, kYoung = kGeneration >= 1000;

DEVICE uint32_t bits_of(float x) {
  union { float x; uint32_t bits; } both = {x};
  return both.bits;
}
DEVICE float from_bits(uint32_t bits) {
  union { uint32_t bits; float x; } both = {bits};
  return both.x;
}
DEVICE float from_bf16(uint16_t bits) { return from_bits(uint32_t(bits) << 16); }
// Rounded to nearest, ties to even; what is not a number stays none.
DEVICE uint16_t to_bf16(float x) {
  uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}
DEVICE uint32_t pair_bf16(float low, float high) { return to_bf16(low) | uint32_t(to_bf16(high)) << 16; }
DEVICE uint32_t pair_f16(float low, float high) { return to_f16(low) | uint32_t(to_f16(high)) << 16; }

// Words that are read at once.
struct alignas(16) Words4 {
  uint32_t w[4];
};
struct alignas(8) Words2 {
  uint32_t w[2];
};

template <class T> DEVICE T load(const uint8_t* bytes) { return *reinterpret_cast<const T*>(bytes); }

DEVICE uint32_t lane() { return threadIdx.x % 32; }
DEVICE uint32_t warp() { return threadIdx.x / 32; }

// The sum, or the largest, over the lanes of a warp, the same for each.
DEVICE float warp_sum(float x) {
  for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}
template <class T> DEVICE T warp_max(T x) {
  for (int mask = 16; mask > 0; mask /= 2) {
    T other = shuffle_xor(x, mask);
    x = x > other ? x : other;
  }
  return x;
}

// The sum over the threads of a block, whole warps, the same for each; `scratch` has a number for each warp.
DEVICE float block_sum(float x, float* scratch) {
  x = warp_sum(x);
  sync_block();
  if (lane() == 0) scratch[warp()] = x;
  sync_block();
  float sum = 0;
  for (uint32_t i = 0; i < blockDim.x / 32; ++i) sum += scratch[i];
  return sum;
}

// The largest likewise.
DEVICE uint32_t block_max(uint32_t x, uint32_t* scratch) {
  x = warp_max(x);
  sync_block();
  if (lane() == 0) scratch[warp()] = x;
  sync_block();
  for (uint32_t i = 0; i < blockDim.x / 32; ++i) x = scratch[i] > x ? scratch[i] : x;
  return x;
}

// The sum of squares of a block's share of numbers, the same whatever their place in memory: many loads are under way at once.
DEVICE float block_squares(const float* x, uint32_t len, float* scratch) {
  bool whole = reinterpret_cast<uintptr_t>(x) % 16 == 0;
  float sum = 0;
#pragma unroll 4
  for (uint32_t i = threadIdx.x * 4; i < len; i += blockDim.x * 4) {
    if (whole && i + 4 <= len) {
      auto four = *reinterpret_cast<const Words4*>(x + i);
      for (int j = 0; j < 4; ++j) sum = __fmaf_rn(from_bits(four.w[j]), from_bits(four.w[j]), sum);
    } else {
      for (uint32_t j = i; j < len && j < i + 4; ++j) sum = __fmaf_rn(x[j], x[j], sum);
    }
  }
  return block_sum(sum, scratch);
}

// How numbers become whole ones of 8 bits: what they are multiplied by, and what one of these counts.
struct Rounding {
  float factor, count;
};

// As `cpu::operand` has it, of numbers whose largest magnitude has these bits. One that is not finite makes the count none, so
// that nothing hides it.
DEVICE Rounding rounding(uint32_t magnitude) {
  constexpr float kLargest = 127.0f, kTiny = 1e-30f;
  float largest = from_bits(magnitude);
  if (magnitude >= 0x7f800000u) return Rounding{0, from_bits(0x7fc00000u)};
  if (largest < kTiny) return Rounding{0, 0};
  return Rounding{kLargest / largest, largest / kLargest};
}

// The whole number next to a number, ties to even.
DEVICE int32_t whole(float x, float factor) {
  constexpr float kRound = 12582912.0f;
  float product = factor == 0 ? 0 : __fmul_rn(x, factor);
  return int32_t(bits_of(__fadd_rn(product, kRound)) - bits_of(kRound));
}
