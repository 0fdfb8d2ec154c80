// Causal attention of ragged rows over the paged cache in bf16, on the tensor cores, online softmax (arXiv:2205.14135) with
// sums in f32.
//
// Sixteen rows of queries, of consecutive tokens and the heads that share a key head, go through the keys in splits of
// kSplit positions, each from an empty state; the splits are merged from first to last. So a token's result is the same
// bits whatever chunk, batch or kernel computes it. `attend_few` gives every split a warp of its own and leaves parts for
// `attend_merge`: bound by memory, 4 context kv_heads d bytes a token of decoding. `attend_many` has the warps of a block
// walk over the same keys for 64 rows of queries: 4 d operations for each pair of a row and a position.
//
// Keys are [blocks, kv_heads, block_size / 16, 16, d], values [.., d, 16]. The order in which a product runs over its inner
// dimension is free as long as both factors agree, so each lane reads 16 consecutive bytes of keys, and four consecutive
// positions of values.
#include "gpu.cuh"

constexpr uint32_t kSplit = 128, kRows = 16;
// Positions taken at once; heads of 256 leave registers for fewer.
template <int D> constexpr uint32_t kChunk = D > 128 ? 32 : 64;

// Rows of one sequence; a tile is kRows of its `tokens * group` pairs of a token and a head.
struct AttentionSequence {
  uint32_t table;       // first entry of its blocks among all
  uint32_t first;       // its first token among the batch's
  uint32_t tokens;
  uint32_t context;     // positions, these included
  uint32_t first_tile;  // number of its first tile
};

struct AttentionArgs {
  const float* q;  // [n, heads * d], from a multiple of 16 bytes on
  const uint16_t* keys;
  const uint16_t* values;
  const AttentionSequence* sequences;
  const uint32_t* tiles;  // [tiles]: the sequence of each
  const uint32_t* blocks;
  float* out;    // [n, heads * d]
  float* parts;  // [tiles, kv_heads, splits, part_rows, d + 2] of `attend_few`: sums, largest score, sum of weights
  uint32_t heads, kv_heads, block_size;
  uint32_t splits;  // most of any sequence
  uint32_t window;  // positions seen, 0 for all
  float scale;      // of products, times log2(e)
  float softcap;    // in units of log2(e), of the capped kernels
  uint32_t tiles_len;
  uint32_t part_rows;  // most of any tile
  uint32_t pad;
};

// The rows of a tile.
struct Tile {
  AttentionSequence sequence;
  uint32_t first_row;  // of tokens * group
  uint32_t group;      // heads that share a key head
};

DEVICE Tile tile_at(const AttentionArgs& a, uint32_t tile) {
  AttentionSequence sequence = a.sequences[a.tiles[tile]];
  return Tile{sequence, (tile - sequence.first_tile) * kRows, a.heads / a.kv_heads};
}

DEVICE bool is_row(const Tile& tile, uint32_t row) {
  return tile.first_row + row < tile.sequence.tokens * tile.group;
}
DEVICE uint32_t position_of(const Tile& tile, uint32_t row) {
  return tile.sequence.context - tile.sequence.tokens + (tile.first_row + row) / tile.group;
}
// Where a row's d numbers are in q and in out.
DEVICE uint64_t place_of(const AttentionArgs& a, const Tile& tile, uint32_t kv_head, uint32_t row, uint32_t d) {
  uint32_t number = tile.first_row + row;
  uint64_t token = tile.sequence.first + number / tile.group;
  return (token * a.heads + kv_head * tile.group + number % tile.group) * d;
}

// First and last split that any of a tile's rows sees.
DEVICE void splits_of(const AttentionArgs& a, const Tile& tile, uint32_t& first, uint32_t& end) {
  uint32_t rows = tile.sequence.tokens * tile.group - tile.first_row;
  uint32_t last = position_of(tile, rows < kRows ? rows - 1 : kRows - 1), from = position_of(tile, 0);
  first = a.window == 0 || from < a.window ? 0 : (from - a.window + 1) / kSplit;
  end = last / kSplit + 1;
}

// The lane's part of two rows, l / 4 and l / 4 + 8, of a split or of all splits so far.
template <int D> struct State {
  float sums[D / 8][4];
  float largest[2], weights[2];
};

template <int D> DEVICE void clear(State<D>& state) {
#pragma unroll
  for (int i = 0; i < D / 8; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) state.sums[i][j] = 0;
  for (int i = 0; i < 2; ++i) state.largest[i] = -INFINITY, state.weights[i] = 0;
}

// What two parts of a row are multiplied by where they are added; the same for every way in which they meet.
struct Merge {
  float largest, before, after;
};
DEVICE Merge merge(float before, float after) {
  float largest = before > after ? before : after;
  // Of rows that have seen nothing yet there is nothing to keep.
  if (largest == -INFINITY) return Merge{largest, 0, 0};
  return Merge{largest, exp2_fast(before - largest), exp2_fast(after - largest)};
}
DEVICE float merged(const Merge& m, float before, float after) {
  return __fmaf_rn(before, m.before, __fmul_rn(after, m.after));
}

// The group of 16 positions that begins at `position`, of a head.
DEVICE uint64_t group_at(const AttentionArgs& a, const AttentionSequence& sequence, uint32_t kv_head, uint32_t position) {
  uint64_t block = a.blocks[sequence.table + position / a.block_size];
  return (block * a.kv_heads + kv_head) * (a.block_size / 16) + position % a.block_size / 16;
}

// Queries of a tile in bf16 as the lanes take them: 32 dimensions of 16 rows in two steps, dimension 8 j + i of them being
// element i of lane j. [D / 32, 2, 32 lanes] of four words.
template <int D> DEVICE void load_queries(uint32_t* q, const AttentionArgs& a, const Tile& tile, uint32_t kv_head) {
#pragma unroll
  for (uint32_t i = 0; i < D / 32; ++i)
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      uint32_t row = lane() / 4 + half * 8;
      const float* from = a.q + place_of(a, tile, kv_head, is_row(tile, row) ? row : 0, D) + i * 32 + lane() % 4 * 8;
      Words4 eight[2] = {*reinterpret_cast<const Words4*>(from), *reinterpret_cast<const Words4*>(from + 4)};
      for (uint32_t j = 0; j < 4; ++j) {
        const uint32_t* two = eight[j / 2].w + j % 2 * 2;
        uint32_t pair = is_row(tile, row) ? pair_bf16(from_bits(two[0]), from_bits(two[1])) : 0;
        // Elements 0 to 3 are the first step's, 4 to 7 the second's; of a step the first two and the last two.
        q[((i * 2 + j / 2) * 32 + lane()) * 4 + j % 2 * 2 + half] = pair;
      }
    }
  sync_warp();
}

// Groups of positions that a chunk has.
template <int D> constexpr uint32_t kGroups = kChunk<D> / 16;

// Products of the tile's queries and the keys of a chunk, whose groups are `at`. Column c of the products with the two halves of
// a group is position 4 (c / 2) + c % 2, and that plus 2: a lane's four results are then of four consecutive positions.
template <int D>
DEVICE void score_keys(float (&scores)[kGroups<D>][2][4], const uint32_t* q, const uint16_t* keys,
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
        const uint16_t* from = keys + (at[g] * 16 + key + half * 2) * D + i * 32 + lane() % 4 * 8;
        auto k = *reinterpret_cast<const Words4*>(from);
        mma_bf16(scores[g][half], a0, k.w[0], k.w[1]);
        mma_bf16(scores[g][half], a1, k.w[2], k.w[3]);
      }
  }
}

// Scales and caps the scores of positions from `begin` on, hides what a row doesn't see, and raises the largest of each row.
template <int D, bool CAPPED>
DEVICE void mask_scores(float (&scores)[kGroups<D>][2][4], float (&largest)[2], const AttentionArgs& a, const Tile& tile,
                        uint32_t begin, uint32_t end) {
  // Last and first position that a row sees.
  uint32_t own[2], from[2];
  for (int i = 0; i < 2; ++i) {
    own[i] = position_of(tile, lane() / 4 + i * 8);
    from[i] = a.window == 0 || own[i] < a.window ? 0 : own[i] - a.window + 1;
  }
#pragma unroll
  for (uint32_t g = 0; g < kGroups<D>; ++g)
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t position = begin + g * 16 + lane() % 4 * 4 + half * 2 + i % 2;
        float score = scores[g][half][i] * a.scale;
        if (CAPPED) score = a.softcap * tanhf(score / a.softcap);
        bool seen = position <= own[i / 2] && position < end && position >= from[i / 2];
        scores[g][half][i] = seen ? score : -INFINITY;
        largest[i / 2] = scores[g][half][i] > largest[i / 2] ? scores[g][half][i] : largest[i / 2];
      }
  for (int i = 0; i < 2; ++i)
    // The lanes of a row are four neighbours.
    for (int mask = 1; mask < 4; mask *= 2) {
      float other = shuffle_xor(largest[i], mask);
      largest[i] = other > largest[i] ? other : largest[i];
    }
}

// Makes weights of scores, in bf16 as the product with values takes them, and adds them to `weights`.
template <int D>
DEVICE void weigh(uint32_t (&p)[kGroups<D>][4], float (&weights)[2], const float (&scores)[kGroups<D>][2][4],
                  const float (&largest)[2]) {
#pragma unroll
  for (uint32_t g = 0; g < kGroups<D>; ++g) {
    float w[2][4];
    for (uint32_t half = 0; half < 2; ++half)
      for (int i = 0; i < 4; ++i) {
        float score = scores[g][half][i];
        w[half][i] = score == -INFINITY ? 0 : exp2_fast(score - largest[i / 2]);
        weights[i / 2] += w[half][i];
      }
    p[g][0] = pair_bf16(w[0][0], w[0][1]);
    p[g][1] = pair_bf16(w[0][2], w[0][3]);
    p[g][2] = pair_bf16(w[1][0], w[1][1]);
    p[g][3] = pair_bf16(w[1][2], w[1][3]);
  }
}

// Adds a chunk's weighed values, of positions before `end`, to sums of which `kept` is kept.
template <int D>
DEVICE void add_values(float (&sums)[D / 8][4], const float (&kept)[2], const uint32_t (&p)[kGroups<D>][4],
                       const uint16_t* values, const uint64_t (&at)[kGroups<D>], uint32_t begin, uint32_t end) {
  // Values that were never written may be no numbers, and zero times such is none.
  uint32_t kept_bits[kGroups<D>][2];
#pragma unroll
  for (uint32_t g = 0; g < kGroups<D>; ++g)
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
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
      const uint16_t* from = values + (at[g] * D + t * 8 + lane() / 4) * 16 + lane() % 4 * 4;
      auto v = *reinterpret_cast<const Words2*>(from);
      mma_bf16(sums[t], p[g], v.w[0] & kept_bits[g][0], v.w[1] & kept_bits[g][1]);
    }
  }
}

// Takes the tile's rows over positions begin .. begin + kChunk<D>, those before `end`.
template <int D, bool CAPPED>
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
  score_keys<D>(scores, q, a.keys, at);
  float largest[2] = {state.largest[0], state.largest[1]};
  mask_scores<D, CAPPED>(scores, largest, a, tile, begin, end);
  float kept[2];
  for (int i = 0; i < 2; ++i) {
    kept[i] = largest[i] == -INFINITY ? 0 : exp2_fast(state.largest[i] - largest[i]);
    state.largest[i] = largest[i];
  }
  float weights[2] = {};
  uint32_t p[kGroups<D>][4];
  weigh<D>(p, weights, scores, largest);
  for (int i = 0; i < 2; ++i) state.weights[i] = __fmaf_rn(state.weights[i], kept[i], weights[i]);
  add_values<D>(state.sums, kept, p, a.values, at, begin, end);
}

// Takes the rows over one split.
template <int D, bool CAPPED>
DEVICE void attend_split(State<D>& state, const uint32_t* q, const AttentionArgs& a, const Tile& tile, uint32_t kv_head,
                         uint32_t split) {
  clear(state);
  uint32_t end = tile.sequence.context;
  for (uint32_t begin = split * kSplit; begin < (split + 1) * kSplit && begin < end; begin += kChunk<D>)
    attend_chunk<D, CAPPED>(state, q, a, tile, kv_head, begin, end);
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
// on an H100 and 1,243 on an L40S, by memory; parts add 3 %.
template <int D, bool CAPPED> DEVICE void attend_few(const AttentionArgs& a) {
  Tile tile = tile_at(a, blockIdx.x);
  uint32_t kv_head = blockIdx.y, split = blockIdx.z * (blockDim.x / 32) + warp(), first, end;
  splits_of(a, tile, first, end);
  if (split < first || split >= end) return;
  auto q = static_cast<uint32_t*>(shared()) + warp() * kRows * D / 2;
  load_queries<D>(q, a, tile, kv_head);
  State<D> state;
  attend_split<D, CAPPED>(state, q, a, tile, kv_head, split);
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
template <int D, bool CAPPED> DEVICE void attend_many(const AttentionArgs& a) {
  uint32_t number = blockIdx.x * (blockDim.x / 32) + warp(), kv_head = blockIdx.y;
  if (number >= a.tiles_len) return;
  Tile tile = tile_at(a, number);
  auto q = static_cast<uint32_t*>(shared()) + warp() * kRows * (D / 2 + D);
  auto totals = reinterpret_cast<float*>(q + kRows * D / 2) + lane() * 4;
  load_queries<D>(q, a, tile, kv_head);
  uint32_t first, end;
  splits_of(a, tile, first, end);
  float largest[2] = {-INFINITY, -INFINITY}, weights[2] = {};
  for (uint32_t split = first; split < end; ++split) {
    State<D> state;
    attend_split<D, CAPPED>(state, q, a, tile, kv_head, split);
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

// With and without a cap on scores: few models have one, and its code is long.
#define ATTENTION(D)                                                                             \
  KERNEL(attend_few_##D, AttentionArgs, 128) { attend_few<D, false>(a); }                        \
  KERNEL(attend_few_capped_##D, AttentionArgs, 128) { attend_few<D, true>(a); }                  \
  KERNEL(attend_many_##D, AttentionArgs, MANY_BOUNDS_##D) { attend_many<D, false>(a); }          \
  KERNEL(attend_many_capped_##D, AttentionArgs, MANY_BOUNDS_##D) { attend_many<D, true>(a); }    \
  KERNEL(attend_merge_##D, AttentionArgs, 128) { attend_merge<D>(a); }

// Tests may compile fewer.
#ifndef WIDTHS_OF_HEADS
#define WIDTHS_OF_HEADS(X) X(64) X(128) X(256)
#endif
WIDTHS_OF_HEADS(ATTENTION)
