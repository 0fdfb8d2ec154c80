// Causal attention of ragged rows over the paged cache on the tensor cores in bf16, online softmax (arXiv:2205.14135) with
// sums in f32.
//
// Sixteen rows of queries, of consecutive tokens and the heads that share a key head, go through the keys in splits of
// kSplit positions, each from an empty state; the splits are merged from first to last. So a token's result is the same
// bits whatever chunk, batch or kernel computes it. `attend_few` gives every split a warp of its own and leaves parts for
// `attend_merge`: bound by memory, 4 context kv_heads d bytes a token of decoding in bf16. `attend_many` has the warps of a block
// walk over the same keys for 64 rows of queries: 4 d operations for each pair of a row and a position.
#include "attention_bf16.cuh"
#include "attention_int8.cuh"

// Takes the tile's rows over positions begin .. begin + kChunk<D>, those before `end`.
template <class C, int D, bool CAPPED>
DEVICE void attend_chunk(State<D>& state, const uint32_t* q, const AttentionArgs& a, const Tile& tile, uint32_t kv_head,
                         uint32_t begin, uint32_t end) {
  uint64_t at[kGroups<D>];
#pragma unroll
  for (uint32_t g = 0; g < kGroups<D>; ++g) {
    // Groups behind the end are those of the last position: what they give is masked.
    uint32_t position = begin + g * 16 < end ? begin + g * 16 : end - 1;
    at[g] = group_at(a, tile.sequence, kv_head, position);
  }
  float scores[kGroups<D>][2][4] = {};
  C::template score_keys<D>(scores, q, a.keys, at);
  float largest[2] = {state.largest[0], state.largest[1]};
  mask_scores<D, CAPPED>(scores, largest, a, tile, begin, end);
  float kept[2];
  for (int i = 0; i < 2; ++i) {
    kept[i] = largest[i] == -INFINITY ? 0 : exp2_fast(state.largest[i] - largest[i]);
    state.largest[i] = largest[i];
  }
  float weights[2] = {};
  weigh<D>(scores, weights, largest);
  for (int i = 0; i < 2; ++i) state.weights[i] = __fmaf_rn(state.weights[i], kept[i], weights[i]);
  C::template add_values<D>(state.sums, kept, scores, a.values, at, begin, end);
}

// Takes the rows over one split.
template <class C, int D, bool CAPPED>
DEVICE void attend_split(State<D>& state, const uint32_t* q, const AttentionArgs& a, const Tile& tile, uint32_t kv_head,
                         uint32_t split) {
  clear(state);
  uint32_t end = tile.sequence.context;
  for (uint32_t begin = split * kSplit; begin < (split + 1) * kSplit && begin < end; begin += kChunk<D>)
    attend_chunk<C, D, CAPPED>(state, q, a, tile, kv_head, begin, end);
  // A lane has summed the weights of its own positions.
  for (int i = 0; i < 2; ++i)
    for (int mask = 1; mask < 4; mask *= 2) state.weights[i] += shuffle_xor(state.weights[i], mask);
}

template <int D>
DEVICE float* part_at(const AttentionArgs& a, uint32_t tile, uint32_t kv_head, uint32_t split, uint32_t row) {
  return a.parts + (((uint64_t(tile) * a.kv_heads + kv_head) * a.splits + split) * a.part_rows + row) * (D + 2);
}

// Warp w of block (tile, kv_head, z) takes split 4 z + w.
//
// A token of decoding: reads 4 context kv_heads d bytes, 4 context heads d operations, of which tiles of 16 rows make up to 16
// kv_heads / heads times as many. 32 tokens at 8,192 with 32 heads and 8 key heads of 128: 1.07 GB and 17 G operations, so 321 us
// on an H100 and 1,243 on an L40S, by memory; parts add 3 %. In 8 bits 2.1 bytes instead of 4: 571 MB, so 170 and 660 us.
template <class C, int D, bool CAPPED> DEVICE void attend_few(const AttentionArgs& a) {
  Tile tile = tile_at(a, blockIdx.x);
  uint32_t kv_head = blockIdx.y, split = blockIdx.z * (blockDim.x / 32) + warp(), first, end;
  splits_of(a, tile, first, end);
  if (split < first || split >= end) return;
  auto q = static_cast<uint32_t*>(shared()) + warp() * kRows * D / 2;
  load_queries<C, D>(q, a, tile, kv_head);
  State<D> state;
  attend_split<C, D, CAPPED>(state, q, a, tile, kv_head, split);
  for (uint32_t half = 0; half < 2; ++half) {
    if (!is_row(tile, lane() / 4 + half * 8)) continue;
    float* row = part_at<D>(a, blockIdx.x, kv_head, split, lane() / 4 + half * 8);
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
  splits_of(a, tile, first, end);
  for (uint32_t row = warp(); row < kRows && is_row(tile, row); row += blockDim.x / 32) {
    float sums[D / 32] = {}, largest = -INFINITY, weights = 0;
    for (uint32_t split = first; split < end; ++split) {
      const float* part = part_at<D>(a, blockIdx.x, kv_head, split, row);
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

// A block takes four tiles, a warp each, over all of their splits; the totals are in shared memory.
//
// 4 d operations for each pair of a row of queries and a position it sees, 4 d kv_heads bytes of keys and values for each
// position and block, from the second-level cache. 2,048 tokens of 2,048 with 32 heads of 128: 34 G operations, so 35 us on an
// H100 and 95 on an L40S, by tensor cores that never wait.
template <class C, int D, bool CAPPED> DEVICE void attend_many(const AttentionArgs& a) {
  uint32_t number = blockIdx.x * (blockDim.x / 32) + warp(), kv_head = blockIdx.y;
  if (number >= a.tiles_len) return;
  Tile tile = tile_at(a, number);
  auto q = static_cast<uint32_t*>(shared()) + warp() * kRows * (D / 2 + D);
  auto totals = reinterpret_cast<float*>(q + kRows * D / 2) + lane() * 4;
  load_queries<C, D>(q, a, tile, kv_head);
  uint32_t first, end;
  splits_of(a, tile, first, end);
  float largest[2] = {-INFINITY, -INFINITY}, weights[2] = {};
  for (uint32_t split = first; split < end; ++split) {
    State<D> state;
    attend_split<C, D, CAPPED>(state, q, a, tile, kv_head, split);
    Merge m[2];
    for (int i = 0; i < 2; ++i) {
      m[i] = merge(largest[i], state.largest[i]);
      largest[i] = m[i].largest;
      weights[i] = merged(m[i], weights[i], state.weights[i]);
    }
#pragma unroll
    for (int t = 0; t < D / 8; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float* total = totals + t * 128 + i;
        *total = merged(m[i / 2], split == first ? 0 : *total, state.sums[t][i]);
      }
  }
  for (int half = 0; half < 2; ++half) {
    uint32_t row = lane() / 4 + half * 8;
    if (!is_row(tile, row)) continue;
    float* out = a.out + place_of(a, tile, kv_head, row, D) + lane() % 4 * 2;
#pragma unroll
    for (int t = 0; t < D / 8; ++t)
      for (int i = 0; i < 2; ++i) out[t * 8 + i] = totals[t * 128 + half * 2 + i] / weights[half];
  }
}

// Bounds of attend_many by the width of heads. For a data centre's Blackwell the compiler, left alone, keeps registers of heads
// of 64 in memory; told to leave room for three blocks it does not. For others it is the other way round.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000 && __CUDA_ARCH__ < 1100
#define MANY_BOUNDS_64 128, 3
#else
#define MANY_BOUNDS_64 128
#endif
#define MANY_BOUNDS_128 128
#define MANY_BOUNDS_256 128
// Of 8 bits for every generation: room for two blocks.
#define MANY_BOUNDS_int8_64 128, 2
#define MANY_BOUNDS_int8_128 128
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
