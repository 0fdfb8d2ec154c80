// Causal attention of ragged rows over the paged cache on the tensor cores in bf16, online softmax (arXiv:2205.14135) with
// sums in f32.
//
// Sixteen rows of queries, of consecutive tokens and the heads that share a key head, go through the keys in splits of kSplit
// positions, each from an empty state; the splits are merged from first to last. So a token's result is the same bits whatever
// chunk, batch or kernel computes it. `attend_few` gives every split a warp of its own and leaves parts for `attend_merge`:
// bound by memory, 4 context kv_heads d bytes a token of decoding in bf16. `attend_many` has the warps of a block walk over
// the same keys, copied once for their 64 rows of queries (of heads of 256 read by each): 4 d operations for each pair of a
// row and a position.
#include "attention_bf16.cuh"
#include "attention_int8.cuh"

// Scores of the tile's rows and a chunk's keys, of positions begin .. begin + kChunk<D>, those before `end`, become weights;
// `kept` says how much of the sums before is kept. Groups of keys are `at`.
template <class C, int D, bool CAPPED, bool STAGED>
DEVICE void weigh_chunk(State<D>& state, float (&scores)[kGroups<D>][2][4], float (&kept)[2], const uint32_t* q,
                        const AttentionArgs& a, const Tile& tile, const void* keys, const uint64_t (&at)[kGroups<D>],
                        uint32_t begin, uint32_t end) {
  C::template score_keys<D, STAGED>(scores, q, keys, at);
  float largest[2] = {state.largest[0], state.largest[1]};
  mask_scores<D, CAPPED>(scores, largest, a, tile, begin, end);
  for (int i = 0; i < 2; ++i) {
    kept[i] = largest[i] == -INFINITY ? 0 : exp2_fast(state.largest[i] - largest[i]);
    state.largest[i] = largest[i];
  }
  float weights[2] = {};
  weigh<D>(scores, weights, largest);
  for (int i = 0; i < 2; ++i) state.weights[i] = __fmaf_rn(state.weights[i], kept[i], weights[i]);
}

// Where the cache has a chunk's groups.
template <int D>
DEVICE void groups_at(uint64_t (&at)[kGroups<D>], const AttentionArgs& a, const Tile& tile, uint32_t kv_head, uint32_t begin,
                      uint32_t end) {
#pragma unroll
  for (uint32_t g = 0; g < kGroups<D>; ++g) {
    // Groups behind the end are those of the last position: what they give is masked.
    uint32_t position = begin + g * 16 < end ? begin + g * 16 : end - 1;
    at[g] = group_at(a, tile.sequence, kv_head, position);
  }
}

// Takes the tile's rows over a chunk where the cache has it.
template <class C, int D, bool CAPPED>
DEVICE void attend_chunk(State<D>& state, const uint32_t* q, const AttentionArgs& a, const Tile& tile, uint32_t kv_head,
                         uint32_t begin, uint32_t end) {
  uint64_t at[kGroups<D>];
  groups_at<D>(at, a, tile, kv_head, begin, end);
  float scores[kGroups<D>][2][4] = {}, kept[2];
  weigh_chunk<C, D, CAPPED, false>(state, scores, kept, q, a, tile, a.keys, at, begin, end);
  C::template add_values<D>(state.sums, kept, scores, a.values, at, begin, end);
}

// Adds up the weights of a row, of which each of its four lanes has a part.
template <int D> DEVICE void sum_weights(State<D>& state) {
  for (int i = 0; i < 2; ++i)
    for (int mask = 1; mask < 4; mask *= 2) state.weights[i] += shuffle_xor(state.weights[i], mask);
}

// Takes the rows over one split.
template <class C, int D, bool CAPPED>
DEVICE void attend_split(State<D>& state, const uint32_t* q, const AttentionArgs& a, const Tile& tile, uint32_t kv_head,
                         uint32_t split) {
  clear(state);
  uint32_t end = tile.sequence.context;
  for (uint32_t begin = split * kSplit; begin < (split + 1) * kSplit && begin < end; begin += kChunk<D>)
    attend_chunk<C, D, CAPPED>(state, q, a, tile, kv_head, begin, end);
  sum_weights(state);
}

template <int D>
DEVICE float* part_at(const AttentionArgs& a, const Tile& tile, uint32_t kv_head, uint32_t split, uint32_t row) {
  uint32_t splits = (tile.sequence.context + kSplit - 1) / kSplit, all = tile.sequence.tokens * tile.group;
  uint32_t rows = all < kRows ? all : kRows, number = tile.first_row / kRows;
  uint64_t own = ((uint64_t(number) * a.kv_heads + kv_head) * splits + split) * rows + row;
  return a.parts + (tile.sequence.first_part + own) * (D + 2);
}

// Warp w of block (tile, kv_head, z) takes split 4 z + w.
//
// A token of decoding: reads 4 context kv_heads d bytes, 4 context heads d operations, of which tiles of 16 rows make up to 16
// kv_heads / heads times as many. 32 tokens at 8,192 with 32 heads and 8 key heads of 128: 1.07 GB and 17 G operations, so 321 us
// on an H100 and 1,243 on an L40S, by memory; parts add 3 %. In 8 bits 2.1 bytes instead of 4: 571 MB, so 170 and 660 us.
template <class C, int D, bool CAPPED> DEVICE void attend_few(const AttentionArgs& a) {
  Tile tile = tile_at(a, blockIdx.x);
  uint32_t kv_head = blockIdx.y, split = blockIdx.z * (blockDim.x / 32) + warp(), first, end;
  splits_of(a, tile, kRows, first, end);
  if (split < first || split >= end) return;
  auto q = static_cast<uint32_t*>(shared()) + warp() * kRows * D / 2;
  load_queries<C, D>(q, a, tile, kv_head);
  State<D> state;
  attend_split<C, D, CAPPED>(state, q, a, tile, kv_head, split);
  // Read again, so that no registers hold it meanwhile.
  tile = tile_at(a, opaque(blockIdx.x));
  for (uint32_t half = 0; half < 2; ++half) {
    if (!is_row(tile, lane() / 4 + half * 8)) continue;
    float* row = part_at<D>(a, tile, kv_head, split, lane() / 4 + half * 8);
#pragma unroll
    for (int t = 0; t < D / 8; ++t) {
      row[t * 8 + lane() % 4 * 2] = state.sums[t][half * 2];
      row[t * 8 + lane() % 4 * 2 + 1] = state.sums[t][half * 2 + 1];
    }
    if (lane() % 4 == 0) row[D] = state.largest[half], row[D + 1] = state.weights[half];
  }
}

// Block (tile, kv_head) merges the parts; a warp takes every fourth row.
//
// Reads 4 (d + 2) bytes for each split of a row, writes 4 d for each row. The case above has 64 splits: 35 MB, so 10 us on an
// H100 and 40 on an L40S.
template <int D> DEVICE void attend_merge(const AttentionArgs& a) {
  Tile tile = tile_at(a, blockIdx.x);
  uint32_t kv_head = blockIdx.y, first, end;
  splits_of(a, tile, kRows, first, end);
  for (uint32_t row = warp(); row < kRows && is_row(tile, row); row += blockDim.x / 32) {
    float sums[D / 32] = {}, largest = -INFINITY, weights = 0;
    for (uint32_t split = first; split < end; ++split) {
      const float* part = part_at<D>(a, tile, kv_head, split, row);
      Merge m = merge(largest, part[D]);
      largest = m.largest;
      weights = merged(m, weights, part[D + 1]);
#pragma unroll
      for (int i = 0; i < D / 32; ++i) sums[i] = merged(m, sums[i], part[i * 32 + lane()]);
    }
    float* out = a.out + place_of(a, tile, kv_head, row, D);
#pragma unroll
    for (int i = 0; i < D / 32; ++i) out[i * 32 + lane()] = sums[i] / weights;
  }
}

// Whether `attend_many` has keys and values of a chunk in shared memory; heads of 256 leave no room there on cards with 100 KB.
template <int D> constexpr bool kStaged = D <= 128;
template <class C, int D> constexpr uint32_t kStageBytes = kStaged<D> ? kGroups<D> * C::template kGroupBytes<D> : 0;

// Whether a warp's totals over splits are in registers, so that cards with 100 KB of shared memory have room for two blocks;
// otherwise in shared memory: of heads of 64 there is enough, of others there are not the registers.
template <class C, int D, bool CAPPED> constexpr bool kTotalsInRegisters = D == 128 && C::kBits == 16 && !CAPPED;

// Starts the copies of a chunk's keys or values, of positions before `end`; zeros for groups behind it.
template <class C, int D, bool KEYS>
DEVICE void fill_stage(uint8_t* stage, const AttentionArgs& a, const Tile& tile, uint32_t kv_head, uint32_t begin, uint32_t end) {
  constexpr uint32_t bytes = C::template kGroupBytes<D>;
#pragma unroll 1
  for (uint32_t g = 0; g < kGroups<D>; ++g) {
    bool real = begin + g * 16 < end;
    auto from = static_cast<const uint8_t*>(KEYS ? a.keys : a.values);
    from += group_at(a, tile.sequence, kv_head, real ? begin + g * 16 : end - 1) * bytes;
    for (uint32_t i = threadIdx.x; i < bytes / 16; i += blockDim.x)
      copy_16(stage + g * bytes + (KEYS ? C::template staged_key<D>(i) : i) * 16, from + i * 16, real);
  }
  copies_end_group();
}

// The lane's part of a warp's totals over splits.
template <int D, bool IN_REGISTERS> struct Totals {
  float largest[2], weights[2], sums[D / 8][4];
  DEVICE float& sum(int t, int i) { return sums[t][i]; }
};
template <int D> struct Totals<D, false> {
  float largest[2], weights[2];
  float* sums;
  DEVICE float& sum(int t, int i) { return sums[t * 128 + lane() * 4 + i]; }
};

// Adds a split; nothing was there before the first.
template <int D, bool IN_REGISTERS>
DEVICE void add_split(Totals<D, IN_REGISTERS>& totals, const State<D>& state, bool is_first) {
  Merge m[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    m[i] = merge(totals.largest[i], state.largest[i]);
    totals.largest[i] = m[i].largest;
    totals.weights[i] = merged(m[i], totals.weights[i], state.weights[i]);
  }
#pragma unroll
  for (int t = 0; t < D / 8; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      totals.sum(t, i) = merged(m[i / 2], is_first ? 0 : totals.sum(t, i), state.sums[t][i]);
}

// A block takes four tiles of a sequence, a warp each, over the splits that any of them sees. Of a chunk, values are copied to
// shared memory while keys are multiplied, and the next one's keys while values are. Tiles behind the sequence's rows copy alone.
//
// 4 d operations for each pair of a row of queries and a position it sees, 4 d kv_heads bytes of keys and values for each
// position and block, from the second-level cache. 2,048 tokens of 2,048 with 32 heads of 128: 34 G operations, so 35 us on an
// H100 and 95 on an L40S, by tensor cores that never wait.
template <class C, int D, bool CAPPED> DEVICE void attend_many(const AttentionArgs& a) {
  uint32_t kv_head = blockIdx.y, warps = blockDim.x / 32;
  // The first of the block's tiles has rows.
  Tile lead = tile_at(a, blockIdx.x * warps), tile = tile_at(a, blockIdx.x * warps + warp());
  auto keys = static_cast<uint8_t*>(shared()), values = keys + kStageBytes<C, D>;
  auto q = reinterpret_cast<uint32_t*>(values + kStageBytes<C, D>) + warp() * kRows * D / 2;
  Totals<D, kTotalsInRegisters<C, D, CAPPED>> totals;
  if constexpr (!kTotalsInRegisters<C, D, CAPPED>)
    totals.sums = reinterpret_cast<float*>(values + kStageBytes<C, D>) + (warps * kRows * D / 2 + warp() * kRows * D);
  for (int i = 0; i < 2; ++i) totals.largest[i] = -INFINITY, totals.weights[i] = 0;
  // A tile without rows sees no split, but takes part in copies and barriers.
  uint32_t first = 0, end = 0, block_first, block_end;
  uint32_t limit = splits_of(a, lead, warps * kRows, block_first, block_end);
  if constexpr (kStaged<D>) fill_stage<C, D, true>(keys, a, lead, kv_head, block_first * kSplit, limit);
  if (is_row(tile, 0)) {
    load_queries<C, D>(q, a, tile, kv_head);
    splits_of(a, tile, kRows, first, end);
  }
  for (uint32_t split = block_first; split < block_end; ++split) {
    bool own = split >= first && split < end;
    State<D> state;
    clear(state);
    for (uint32_t begin = split * kSplit; begin < (split + 1) * kSplit && begin < limit; begin += kChunk<D>) {
      if constexpr (kStaged<D>) {
        float scores[kGroups<D>][2][4] = {}, kept[2];
        uint64_t at[kGroups<D>];
#pragma unroll
        for (uint32_t g = 0; g < kGroups<D>; ++g) at[g] = g;
        // This chunk's keys are there, and nobody adds the last one's values any more.
        copies_wait<0>();
        sync_block();
        fill_stage<C, D, false>(values, a, lead, kv_head, begin, limit);
        if (own) weigh_chunk<C, D, CAPPED, true>(state, scores, kept, q, a, tile, keys, at, begin, limit);
        // Its values are there, and nobody multiplies its keys any more.
        copies_wait<0>();
        sync_block();
        if (begin + kChunk<D> < limit) fill_stage<C, D, true>(keys, a, lead, kv_head, begin + kChunk<D>, limit);
        if (own) C::template add_values<D>(state.sums, kept, scores, values, at, begin, limit);
      } else if (own) {
        attend_chunk<C, D, CAPPED>(state, q, a, tile, kv_head, begin, limit);
      }
    }
    if (!own) continue;
    sum_weights(state);
    add_split(totals, state, split == first);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t row = lane() / 4 + half * 8;
    if (!is_row(tile, row)) continue;
    float* out = a.out + place_of(a, tile, kv_head, row, D) + lane() % 4 * 2;
#pragma unroll
    for (int t = 0; t < D / 8; ++t)
      for (int i = 0; i < 2; ++i) out[t * 8 + i] = totals.sum(t, half * 2 + i) / totals.weights[half];
  }
}

// Bounds of attend_many by the width of heads, and the blocks that a multiprocessor shall have room for, one where none are
// named: to make room for more of them the compiler would keep registers in memory.
#define MANY_BOUNDS_64 128, 3
#define MANY_BOUNDS_128 128, 2
#define MANY_BOUNDS_256 128
#define MANY_BOUNDS_int8_64 128, 2
#define MANY_BOUNDS_int8_128 128, 2
#define MANY_BOUNDS_int8_256 128

// With and without a cap on scores: few models have one, and its code is long.
#define ATTENTION_OF(Cache, cache, D)                                                                          \
  KERNEL(attend_few_##cache##D, AttentionArgs, 128) { attend_few<Cache, D, false>(a); }                        \
  KERNEL(attend_few_capped_##cache##D, AttentionArgs, 128) { attend_few<Cache, D, true>(a); }                  \
  KERNEL(attend_many_##cache##D, AttentionArgs, MANY_BOUNDS_##cache##D) { attend_many<Cache, D, false>(a); }          \
  KERNEL(attend_many_capped_##cache##D, AttentionArgs, MANY_BOUNDS_##cache##D) { attend_many<Cache, D, true>(a); }
#define ATTENTION(D)                  \
  ATTENTION_OF(Bf16Cache, , D)        \
  ATTENTION_OF(Int8Cache, int8_, D)   \
  KERNEL(attend_merge_##D, AttentionArgs, 128) { attend_merge<D>(a); }

// Tests may compile fewer.
#ifndef WIDTHS_OF_HEADS
#define WIDTHS_OF_HEADS(X) X(64) X(128) X(256)
#endif
WIDTHS_OF_HEADS(ATTENTION)
