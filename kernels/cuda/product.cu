// x w^T with packed weights on the tensor cores, in whole numbers: `x` comes rounded (round.cu). A group's sum is exact; it is
// scaled and added to its strand's in f32. docs/performance.md has what was measured.
#include "packed.cuh"

// Of the lane's two columns, rows of x, in a group: scales, and what minima are multiplied by.
template <class F> struct ColumnScales {
  Words2 scale, share[F::halves];
};

// Adds a group's products, 16 rows of w by 8 of x, to `sums`.
template <class F>
DEVICE void add_group(float (&sums)[4], const uint32_t (&a)[4], const Words2& b, const RowScales<F>& rows,
                      const ColumnScales<F>& columns) {
  // A whole number below 2^22 added to these bits is that number plus 3 * 2^22 in f32.
  constexpr int32_t kOne = 0x4b400000;
  for (int half = 0; half < F::halves; ++half) {
    int32_t d[4];
    if (F::halves == 1) mma_16_8_32(d, a, b.w, kOne);
    else mma_16_8_16(d, a[half * 2], a[half * 2 + 1], b.w[half], kOne);
    for (int i = 0; i < 4; ++i) {
      float sum = __fadd_rn(from_bits(uint32_t(d[i])), -12582912.0f);
      float scale = __fmul_rn(rows.scale[i / 2][half], from_bits(columns.scale.w[i % 2]));
      sums[i] = __fmaf_rn(sum, scale, sums[i]);
      if (F::has_min) sums[i] = __fmaf_rn(rows.min[i / 2][half], from_bits(columns.share[half].w[i % 2]), sums[i]);
    }
  }
}

// Which of the three shares of a group the halves of a format take: the whole group's, or those of its halves.
template <class F> DEVICE uint32_t share_of(uint32_t half) { return F::halves == 1 ? 0 : 1 + half; }

// One tile of these formats, all groups of a record at once, has just the registers that it takes.
template <class F, int TILES>
constexpr bool kFits = TILES == 1 && !kYoung && !kOld && F::bits != 8 && F::offset != 8 && F::scales != Super16 &&
                       !(F::bits == 5 && F::scales == Super8);
// Groups whose loads `product_few` has under way at once for so many tiles of results, as far as there are registers.
template <class F, int TILES>
constexpr int kGroupsAtOnce = kFits<F, TILES>                                                                 ? 8
                              : TILES >= 8 || (TILES >= 4 && (kYoung || F::scales == Super16))                ? 1
                              : kYoung && (F::bits == 5 || F::scales == Signed)                               ? 1
                              : kYoung || kOld || TILES >= 4                                                  ? 2
                                                                                                              : 4;

// Codes and scales of the lane's columns in a tile of x, from memory.
template <class F>
DEVICE void load_columns(Words2& codes, ColumnScales<F>& columns, const ProductArgs& a, uint32_t tile, uint32_t group) {
  auto x = static_cast<const uint8_t*>(a.x) + (uint64_t(tile + lane() / 4) * a.groups + group) * kGroup +
           lane() % 4 * 8;
  uint32_t column = tile + lane() % 4 * 2;
  codes = load<Words2>(x);
  columns.scale = *reinterpret_cast<const Words2*>(a.scales + uint64_t(group) * a.padded + column);
  if (F::has_min)
    for (uint32_t half = 0; half < F::halves; ++half)
      columns.share[half] = *reinterpret_cast<const Words2*>(
          a.shares + (uint64_t(group) * 3 + share_of<F>(half)) * a.padded + column);
}

// A block makes 16 P rows of w by 8 T of x, a warp a strand of them.
//
// Reads the weights' bytes once for every 8 T rows of x, 1.5 k bytes of each row of x from the second-level cache, and writes 4
// bytes a result; 2 n k rows operations, of tiles of 8 rows of x. Q4_K of 14336 x 4096 is 34 MB: 1 to 8 rows of x take 10 us on
// an H100 and 39 on an L40S, and as 32 rows are 3.8 G operations, they take no longer, by memory.
template <class F, int T, int P> DEVICE void product_few(const ProductArgs& a, uint32_t first_column) {
  uint32_t panels = panels_of(a);
  const uint8_t* codes[P];
  find_panels<P>(codes, a, blockIdx.x * P, panels);
  uint64_t to_records = uint64_t(a.groups) * F::group_bytes;
  uint32_t begin = warp() * a.strand, end = begin + a.strand < a.groups ? begin + a.strand : a.groups;
  float sums[P][T][4] = {};
  [[maybe_unused]] constexpr int kAtOnce = kGroupsAtOnce<F, T * P>;
  // A record of several groups stays in registers, where those suffice.
  constexpr bool kHold = F::record_groups > 1 && F::scales != Super16 && T * P < 8;
  // Eight groups are a whole record of every format.
  for (uint32_t group = begin; group < end; group += 8) {
    uint64_t record = to_records + uint64_t(group / F::record_groups) * F::record_bytes;
    Record<F> records[P];
    if (kHold)
#pragma unroll
      for (int p = 0; p < P; ++p) records[p] = load_record<F>(codes[p] + record);
    auto one = [&](uint32_t i) {
      uint32_t w[P][4], here = kFits<F, T * P> ? group + i : opaque(group + i);
      RowScales<F> rows[P];
#pragma unroll
      for (int p = 0; p < P; ++p) {
        unpack<F>(load_codes<F>(codes[p] + uint64_t(here) * F::group_bytes), w[p]);
        const uint8_t* from = codes[p] + record + (F::record_groups > 1 ? 0 : i * F::record_bytes);
        rows[p] = kHold ? row_scales<F>(records[p], i) : read_row_scales<F>(from, i);
      }
#pragma unroll
      for (int t = 0; t < T; ++t) {
        // Tiles behind the last are computed like the first and not stored.
        uint32_t tile = first_column + t * 8 < a.padded ? first_column + t * 8 : first_column;
        Words2 b;
        ColumnScales<F> columns;
        load_columns<F>(b, columns, a, tile, here);
#pragma unroll
        for (int p = 0; p < P; ++p) add_group<F>(sums[p][t], w[p], b, rows[p], columns);
      }
    };
    if (group + 8 <= end) {
#pragma unroll kAtOnce
      for (uint32_t i = 0; i < 8; ++i) one(i);
    } else {
      for (uint32_t i = 0; group + i < end; ++i) one(i);
    }
  }
  merge_strands<T, P>(sums, a, first_column, panels);
}

// As above with 4 tiles and 2 panels. A format whose scales leave too few registers for that takes two tiles after the other two,
// with the same bits as results.
template <class F> DEVICE void product_few_4_2(const ProductArgs& a) {
  uint32_t first_column = blockIdx.y * 32;
  if constexpr (F::scales != Super16 && !kYoung)
    return product_few<F, 4, 2>(a, first_column);
#pragma unroll 1
  for (uint32_t half = first_column; half < first_column + 32 && half < a.n; half += 16) {
    // The other half's strands have been added up.
    if (half > first_column) sync_block();
    product_few<F, 2, 2>(a, half);
  }
}

// Groups that `product_many` has in shared memory at once, twice over: a record of every format.
constexpr uint32_t kStage = 8;
// Bytes from a row of x to the next there: lanes of a warp then read from different banks.
constexpr uint32_t kStageRow = kStage * kGroup + 32;

// One of the two parts of shared memory.
template <int T> struct alignas(16) Stage {
  static constexpr uint32_t columns = kWarpsAcross * 8 * T;
  int8_t codes[columns * kStageRow];
  float scales[kStage][columns];
  float shares[kStage][2][columns];
};

// Starts the copies of groups `group` .. `group + kStage`.
template <class F, int T> DEVICE void fill(Stage<T>& stage, const ProductArgs& a, uint32_t first_column, uint32_t group) {
  constexpr uint32_t columns = Stage<T>::columns;
  for (uint32_t i = threadIdx.x; i < columns * kStage * 2; i += blockDim.x) {
    uint32_t column = i / (kStage * 2), piece = i % (kStage * 2);
    bool real = first_column + column < a.padded && group + piece / 2 < a.groups;
    auto from = static_cast<const int8_t*>(a.x);
    if (real) from += (uint64_t(first_column + column) * a.groups + group) * kGroup + piece * 16;
    copy_16(stage.codes + column * kStageRow + piece * 16, from, real);
  }
  // Rows of scales and of shares are whole pieces of 16 bytes: there are `padded`, a multiple of 8.
  constexpr uint32_t kinds = 1 + (F::has_min ? F::halves : 0);
  for (uint32_t i = threadIdx.x; i < kStage * kinds * columns / 4; i += blockDim.x) {
    uint32_t column = i % (columns / 4) * 4, j = i / (columns / 4) / kinds, kind = i / (columns / 4) % kinds;
    bool real = first_column + column < a.padded && group + j < a.groups;
    const float* from = a.scales;
    if (real && kind == 0) from = a.scales + uint64_t(group + j) * a.padded + first_column + column;
    if (real && kind > 0)
      from = a.shares + (uint64_t(group + j) * 3 + share_of<F>(kind - 1)) * a.padded + first_column + column;
    copy_16(kind == 0 ? &stage.scales[j][column] : &stage.shares[j][kind - 1][column], from, real);
  }
  copies_end_group();
}

// Codes and scales of the lane's columns in a tile of x, from shared memory.
template <class F, int T>
DEVICE void staged_columns(Words2& codes, ColumnScales<F>& columns, const Stage<T>& stage, uint32_t tile, uint32_t group) {
  codes = *reinterpret_cast<const Words2*>(stage.codes + (tile + lane() / 4) * kStageRow + group * kGroup + lane() % 4 * 8);
  uint32_t column = tile + lane() % 4 * 2;
  columns.scale = *reinterpret_cast<const Words2*>(&stage.scales[group][column]);
  if (F::has_min)
    for (int half = 0; half < F::halves; ++half)
      columns.share[half] = *reinterpret_cast<const Words2*>(&stage.shares[group][half][column]);
}

// A block makes kWarpsDown * kPanels * 16 rows of w by 2 * 8 T of x, a warp kPanels * 16 by 8 T.
//
// 2 n k rows operations in whole numbers, and three or, with minima, four in f32 for each result and group of 32; the weights'
// bytes once for every 16 T rows of x. Q4_K of 14336 x 4096 with 2,048 rows of x: 241 G operations, by the tensor cores 122 us on
// an H100 and 328 on an L40S; 15 G in f32, so that no less than 450 and 330 us are to be expected.
template <class F, int T> DEVICE void product_many(const ProductArgs& a, uint32_t first_column) {
  auto stages = static_cast<Stage<T>*>(shared());
  uint32_t own_column = warp() % kWarpsAcross * 8 * T;
  uint32_t first_panel = (blockIdx.y * kWarpsDown + warp() / kWarpsAcross) * kPanels, panels = panels_of(a);
  const uint8_t* codes[kPanels];
  find_panels<kPanels>(codes, a, first_panel, panels);
  float totals[kPanels][T][4] = {}, sums[kPanels][T][4] = {};
  [[maybe_unused]] constexpr int kAtOnce = F::halves == 2 && F::has_min ? 1 : F::bits == 5 ? 2 : 4;
  // Codes come a group ahead.
  Codes<F> next[kPanels];
#pragma unroll
  for (uint32_t p = 0; p < kPanels; ++p) next[p] = load_codes<F>(codes[p]);
  fill<F, T>(stages[0], a, first_column, 0);
  for (uint32_t group = 0, number = 0; group < a.groups; group += kStage, ++number) {
    if (group > 0 && group % a.strand == 0) end_strand<T>(totals, sums, group == a.strand);
    bool more = group + kStage < a.groups;
    if (more) fill<F, T>(stages[(number + 1) % 2], a, first_column, group + kStage);
    Record<F> records[kPanels];
    const uint8_t* at[kPanels];
#pragma unroll
    for (uint32_t p = 0; p < kPanels; ++p) {
      at[p] = codes[p] + uint64_t(a.groups) * F::group_bytes + uint64_t(group / F::record_groups) * F::record_bytes;
      if (F::record_groups > 1) records[p] = load_record<F>(at[p]);
    }
    if (more) copies_wait<1>();
    else copies_wait<0>();
    sync_block();
    const Stage<T>& stage = stages[number % 2];
    auto one = [&](uint32_t j) {
      uint32_t w[kPanels][4];
      RowScales<F> rows[kPanels];
#pragma unroll
      for (uint32_t p = 0; p < kPanels; ++p) {
        unpack<F>(next[p], w[p]);
        uint32_t ahead = group + j + 1 < a.groups ? group + j + 1 : group + j;
        next[p] = load_codes<F>(codes[p] + uint64_t(ahead) * F::group_bytes);
        rows[p] = row_scales<F>(F::record_groups > 1 ? records[p] : load_record<F>(at[p] + j * F::record_bytes), j);
      }
#pragma unroll
      for (int t = 0; t < T; ++t) {
        Words2 b;
        ColumnScales<F> columns;
        staged_columns<F, T>(b, columns, stage, own_column + t * 8, j);
#pragma unroll
        for (uint32_t p = 0; p < kPanels; ++p) add_group<F>(sums[p][t], w[p], b, rows[p], columns);
      }
    };
    if (group + kStage <= a.groups) {
#pragma unroll kAtOnce
      for (uint32_t j = 0; j < kStage; ++j) one(j);
    } else {
      for (uint32_t j = 0; group + j < a.groups; ++j) one(j);
    }
    sync_block();
  }
  end_strand<T>(totals, sums, a.groups <= a.strand);
  store_totals<T>(totals, a, first_panel, panels, first_column + own_column);
}

// As above with 8 tiles a warp. A generation that has not enough registers for that takes the two halves in turn, with the same
// bits as results.
template <class F> DEVICE void product_many_8(const ProductArgs& a) {
  uint32_t first_column = blockIdx.x * Stage<8>::columns;
  if constexpr (!kYoung) return product_many<F, 8>(a, first_column);
#pragma unroll 1
  for (uint32_t half = first_column; half < first_column + Stage<8>::columns && half < a.n; half += Stage<4>::columns)
    product_many<F, 4>(a, half);
}

#define PRODUCTS(format)                                                                               \
  KERNEL(product_few_1_1_##format, ProductArgs, 512, 2) { product_few<format, 1, 1>(a, blockIdx.y * 8); }  \
  KERNEL(product_few_2_2_##format, ProductArgs, 512, 1) { product_few<format, 2, 2>(a, blockIdx.y * 16); } \
  KERNEL(product_few_4_2_##format, ProductArgs, 512, 1) { product_few_4_2<format>(a); }                \
  KERNEL(product_many_4_##format, ProductArgs, 256, 1) { product_many<format, 4>(a, blockIdx.x * 64); } \
  KERNEL(product_many_8_##format, ProductArgs, 256, 1) { product_many_8<format>(a); }

// Tests may compile fewer.
#ifndef FORMATS
#define FORMATS(X) X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q8_0) X(Q2K) X(Q3K) X(Q4K) X(Q5K) X(Q6K)
#endif
FORMATS(PRODUCTS)

// A block a row.
//
// Writes 4 n k bytes and reads twice a row's codes, as two rows lie side by side, with their scales. 512 rows of 4096 in Q4_K:
// 11 MB, so 3 us on an H100 and 13 on an L40S.
template <class F> DEVICE void embed(const EmbedArgs& a) {
  uint32_t id = a.ids[blockIdx.x];
  const uint8_t* codes = a.panels + id / kPanel * a.panel_bytes;
  const uint8_t* records = codes + uint64_t(a.k / kGroup) * F::group_bytes;
  for (uint32_t i = threadIdx.x; i < a.k; i += blockDim.x)
    a.out[uint64_t(blockIdx.x) * a.k + i] = weight_at<F>(codes, records, id % kPanel, i) * a.scale;
}

#define EMBED(format) \
  KERNEL(embed_##format, EmbedArgs, 256) { embed<format>(a); }

FORMATS(EMBED)
