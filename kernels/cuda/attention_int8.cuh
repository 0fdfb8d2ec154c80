// Keys and values in 8 bits, kv_int8.cuh: [blocks, kv_heads, block_size / 16, d / 64] parts. Codes are exact in bf16, so that
// products are as of such numbers; scales of keys multiply their results, those of values the weights before.
#pragma once
#include "attention.cuh"
#include "kv_int8.cuh"

// Four codes as numbers, two in a word. 2^23 and a code beside it are exact in f32, and what the code means is so in 8 bits: the
// upper half of the difference is the number in bf16.
DEVICE void widen(uint32_t codes, uint32_t (&pairs)[2]) {
  uint32_t x[4];
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i)
    x[i] = bits_of(__fadd_rn(from_bits(__byte_perm(codes, 0x4b000000u, 0x7440u + i)), -8388608.0f - float(kZero)));
  pairs[0] = __byte_perm(x[0], x[1], 0x7632u);
  pairs[1] = __byte_perm(x[2], x[3], 0x7632u);
}

struct Int8Cache {
  static constexpr int kBits = 8;
  template <int D> static constexpr uint32_t kGroupBytes = D / kPart * kPartBytes;

  // As they lie in the cache: eight lanes read 128 bytes in a row.
  template <int D> static DEVICE uint32_t staged_key(uint32_t i) { return i; }

  // The first of the eight dimensions that lane j of a row has of 32: of two such 16 follow each other.
  static DEVICE uint32_t dimension(uint32_t i, uint32_t j) { return i / 2 * kPart + j * 16 + i % 2 * 8; }

  template <int D> static DEVICE const uint8_t* part_at(const void* all, uint64_t group, uint32_t part) {
    return static_cast<const uint8_t*>(all) + (uint64_t(group) * (D / kPart) + part) * kPartBytes;
  }

  // As that of bf16.
  template <int D, bool STAGED>
  static DEVICE void score_keys(float (&scores)[kGroups<D>][2][4], const uint32_t* q, const void* keys,
                                const uint64_t (&at)[kGroups<D>]) {
    uint32_t column = lane() / 4, key = column / 2 * 4 + column % 2;
#pragma unroll 1
    for (uint32_t part = 0; part < D / kPart; ++part) {
      uint32_t a[4][4];
#pragma unroll
      for (uint32_t step = 0; step < 4; ++step) {
        auto four = *reinterpret_cast<const Words4*>(q + ((part * 4 + step) * 32 + lane()) * 4);
        for (int j = 0; j < 4; ++j) a[step][j] = four.w[j];
      }
#pragma unroll
      for (uint32_t g = 0; g < kGroups<D>; ++g) {
        const uint8_t* from = part_at<D>(keys, at[g], part);
        auto scales = load<Words4>(from + lane() % 4 * 16);
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
          auto k = load<Words4>(from + kScalesBytes + key_place(key + half * 2, lane() % 4 * 16));
          float products[4] = {};
#pragma unroll
          for (uint32_t step = 0; step < 4; ++step) {
            uint32_t b[2];
            widen(k.w[step], b);
            mma_bf16(products, a[step], b[0], b[1]);
          }
#pragma unroll
          for (uint32_t i = 0; i < 4; ++i)
            scores[g][half][i] = __fmaf_rn(products[i], from_bits(scales.w[half * 2 + i % 2]), scores[g][half][i]);
        }
      }
    }
  }

  // As that of bf16.
  template <int D>
  static DEVICE void add_values(float (&sums)[D / 8][4], const float (&kept)[2], const float (&weights)[kGroups<D>][2][4],
                                const void* values, const uint64_t (&at)[kGroups<D>], uint32_t begin, uint32_t end) {
#pragma unroll
    for (uint32_t part = 0; part < D / kPart; ++part) {
      uint32_t p[kGroups<D>][4];
#pragma unroll
      for (uint32_t g = 0; g < kGroups<D>; ++g) {
        // Places that are not the same as those of keys' scales are kept in no registers meanwhile.
        auto scales = load<Words4>(part_at<D>(values, at[g], part) + opaque(lane()) % 4 * 16);
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
          float w[4];
#pragma unroll
          for (uint32_t i = 0; i < 4; ++i) {
            // Scales that were never written may be no numbers, and zero times such is none.
            uint32_t position = begin + g * 16 + lane() % 4 * 4 + half * 2 + i % 2;
            w[i] = position < end ? __fmul_rn(weights[g][half][i], from_bits(scales.w[half * 2 + i % 2])) : 0;
          }
          p[g][half * 2] = pair_bf16(w[0], w[1]);
          p[g][half * 2 + 1] = pair_bf16(w[2], w[3]);
        }
      }
#pragma unroll
      for (uint32_t t = 0; t < kPart / 8; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[part * 8 + t][i] = __fmul_rn(sums[part * 8 + t][i], kept[i / 2]);
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half) {
#pragma unroll
        for (uint32_t g = 0; g < kGroups<D>; ++g) {
          const uint8_t* from = part_at<D>(values, at[g], part) + kScalesBytes;
          auto v = load<Words4>(from + value_place(lane() % 4 * 4, half * 32 + lane() / 4));
#pragma unroll
          for (uint32_t t = 0; t < 4; ++t) {
            uint32_t b[2];
            widen(v.w[t], b);
            mma_bf16(sums[part * 8 + half * 4 + t], p[g], b[0], b[1]);
          }
        }
      }
    }
  }
};
