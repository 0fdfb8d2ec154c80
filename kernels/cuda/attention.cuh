// What attention computes, however keys and values are kept: tiles of queries, scores that are hidden, and how parts of a softmax
// are put together.
#pragma once
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
  uint32_t first_part;  // rows of parts before its own
};

struct AttentionArgs {
  const float* q;  // [n, heads * d], from a multiple of 16 bytes on
  const void* keys;  // as attention_bf16.cuh or attention_int8.cuh has them
  const void* values;
  const AttentionSequence* sequences;
  const uint32_t* tiles;  // [tiles]: the sequence of each; of `attend_many` whole blocks of tiles
  const uint32_t* blocks;
  float* out;    // [n, heads * d]
  // Of each sequence of `attend_few` [tiles, kv_heads, splits, rows of a tile, d + 2]: sums, largest score, sum of weights.
  float* parts;
  uint32_t heads, kv_heads, block_size;
  uint32_t window;  // positions seen, 0 for all
  float scale;      // of products, times log2(e)
  float softcap;    // in units of log2(e), of the capped kernels
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

// The first split that any of at most `rows_max` rows from the tile's first on sees, and the one behind the last; gives the first
// position that none of them sees.
DEVICE uint32_t splits_of(const AttentionArgs& a, const Tile& tile, uint32_t rows_max, uint32_t& first, uint32_t& end) {
  uint32_t rows = tile.sequence.tokens * tile.group - tile.first_row;
  uint32_t last = position_of(tile, rows < rows_max ? rows - 1 : rows_max - 1), from = position_of(tile, 0);
  first = a.window == 0 || from < a.window ? 0 : (from - a.window + 1) / kSplit;
  end = last / kSplit + 1;
  return last + 1;
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

// Queries of a tile in bf16 as the lanes take them: 32 dimensions of 16 rows in two steps, of which lane j has the eight from
// C::dimension on. [D / 32, 2, 32 lanes] of four words.
template <class C, int D> DEVICE void load_queries(uint32_t* q, const AttentionArgs& a, const Tile& tile, uint32_t kv_head) {
#pragma unroll
  for (uint32_t i = 0; i < D / 32; ++i)
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      uint32_t row = lane() / 4 + half * 8;
      const float* from = a.q + place_of(a, tile, kv_head, is_row(tile, row) ? row : 0, D) + C::dimension(i, lane() % 4);
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

// Makes weights of scores, and adds them to `weights`.
template <int D>
DEVICE void weigh(float (&scores)[kGroups<D>][2][4], float (&weights)[2], const float (&largest)[2]) {
#pragma unroll
  for (uint32_t g = 0; g < kGroups<D>; ++g)
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float score = scores[g][half][i];
        scores[g][half][i] = score == -INFINITY ? 0 : exp2_fast(score - largest[i / 2]);
        weights[i / 2] += scores[g][half][i];
      }
}
