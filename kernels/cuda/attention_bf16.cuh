// Keys and values in bf16: keys [blocks, kv_heads, block_size / 16, 16, d], values [.., d, 16]. The order in which a product runs
// over its inner dimension is free as long as both factors agree, so each lane reads 16 consecutive bytes of keys, and four
// consecutive positions of values.
#pragma once
#include "attention.cuh"

struct Bf16Cache {
  static constexpr int kBits = 16;
  template <int D> static constexpr uint32_t kGroupBytes = 16 * D * 2;

  // Where 16 bytes of a group's keys are in shared memory: every other position has its halves of 128 bytes swapped, as eight
  // lanes read 64 bytes of two neighbours, which would be in the same banks.
  template <int D> static DEVICE uint32_t staged_key(uint32_t i) { return i ^ i / (D / 8) % 2 * 4; }

  // The first of the eight dimensions that lane j of a row has of 32.
  static DEVICE uint32_t dimension(uint32_t i, uint32_t j) { return i * 32 + j * 8; }

  // Products of the tile's queries and the keys of a chunk, whose groups are `at`. Column c of the products with the two halves
  // of a group is position 4 (c / 2) + c % 2, and that plus 2: a lane's four results are then of four consecutive positions.
  template <int D, bool STAGED>
  static DEVICE void score_keys(float (&scores)[kGroups<D>][2][4], const uint32_t* q, const void* keys,
                                const uint64_t (&at)[kGroups<D>]) {
    uint32_t column = lane() / 4, key = column / 2 * 4 + column % 2;
    // Loads that are under way at once, as far as there are registers.
    [[maybe_unused]] constexpr int kAtOnce = D > 128 ? 2 : kYoung ? 1 : D / 32;
#pragma unroll kAtOnce
    for (uint32_t i = 0; i < D / 32; ++i) {
      uint32_t a0[4], a1[4];
      auto first = *reinterpret_cast<const Words4*>(q + (i * 2 * 32 + lane()) * 4);
      auto second = *reinterpret_cast<const Words4*>(q + ((i * 2 + 1) * 32 + lane()) * 4);
      for (int j = 0; j < 4; ++j) a0[j] = first.w[j], a1[j] = second.w[j];
#pragma unroll
      for (uint32_t g = 0; g < kGroups<D>; ++g)
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
          // As `staged_key` has put them.
          uint64_t from = (at[g] * 16 + key + half * 2) * D + (STAGED ? i ^ key % 2 : i) * 32 + lane() % 4 * 8;
          auto k = *reinterpret_cast<const Words4*>(static_cast<const uint16_t*>(keys) + from);
          mma_bf16(scores[g][half], a0, k.w[0], k.w[1]);
          mma_bf16(scores[g][half], a1, k.w[2], k.w[3]);
        }
    }
  }

  // Adds a chunk's values, of positions before `end`, times their weights, to sums of which `kept` is kept.
  template <int D>
  static DEVICE void add_values(float (&sums)[D / 8][4], const float (&kept)[2], const float (&weights)[kGroups<D>][2][4],
                                const void* values, const uint64_t (&at)[kGroups<D>], uint32_t begin, uint32_t end) {
    // Values that were never written may be no numbers, and zero times such is none.
    uint32_t p[kGroups<D>][4], kept_bits[kGroups<D>][2];
#pragma unroll
    for (uint32_t g = 0; g < kGroups<D>; ++g)
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half) {
        const float(&w)[4] = weights[g][half];
        p[g][half * 2] = pair_bf16(w[0], w[1]);
        p[g][half * 2 + 1] = pair_bf16(w[2], w[3]);
        uint32_t position = begin + g * 16 + lane() % 4 * 4 + half * 2;
        kept_bits[g][half] = position + 2 <= end ? ~0u : position < end ? 0xffffu : 0;
      }
#pragma unroll
    for (uint32_t t = 0; t < D / 8; ++t) {
      if (kYoung && t % 4 == 0) loads_end();
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[t][i] = __fmul_rn(sums[t][i], kept[i / 2]);
#pragma unroll
      for (uint32_t g = 0; g < kGroups<D>; ++g) {
        uint64_t from = (at[g] * D + t * 8 + lane() / 4) * 16 + lane() % 4 * 4;
        auto v = *reinterpret_cast<const Words2*>(static_cast<const uint16_t*>(values) + from);
        mma_bf16(sums[t], p[g], v.w[0] & kept_bits[g][0], v.w[1] & kept_bits[g][1]);
      }
    }
  }
};
