// x w^T with weights in bf16 or f16 on the tensor cores, sums in f32: `x` comes rounded to the same (round.cu).
//
// A panel is 16 rows of w; along it 32 numbers of each row make a group, row after row. The order in which a product runs over
// its inner dimension is free as long as both factors agree: lane l takes eight numbers at l % 4 * 8 of rows l / 4 and l / 4 + 8,
// and of row l / 4 of x, 16 bytes each, for two steps.
#include "product.cuh"

constexpr uint32_t kGroupBytes = kPanel * kGroup * 2;

// What is different about them. Rows of x in f16 are scaled, so that none is too large, by powers of two, which round nothing.
struct Bf16 {
  static constexpr bool scaled = false;
  static DEVICE float number(uint16_t bits) { return from_bf16(bits); }
  static DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_bf16(d, a, b0, b1); }
};
struct F16 {
  static constexpr bool scaled = true;
  static DEVICE float number(uint16_t bits) { return from_f16(bits); }
  static DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_f16(d, a, b0, b1); }
};

// The lane's numbers of a group, of its two rows.
struct Numbers {
  Words4 w[2];
};

DEVICE Numbers load_numbers(const uint8_t* group) {
  return {{load<Words4>(group + lane() * 16), load<Words4>(group + kGroupBytes / 2 + lane() * 16)}};
}

// Adds a group's products, 16 rows of w by 8 of x.
template <class F> DEVICE void add_numbers(float (&sums)[4], const Numbers& n, const Words4& x) {
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    uint32_t a[4] = {n.w[0].w[2 * step], n.w[1].w[2 * step], n.w[0].w[2 * step + 1], n.w[1].w[2 * step + 1]};
    F::mma(sums, a, x.w[2 * step], x.w[2 * step + 1]);
  }
}

// Takes the scales of the lane's columns, rows of x from `first_column` on, back from a strand: in all shapes before strands
// meet.
template <class F, int T, int P>
DEVICE void unscale(float (&sums)[P][T][4], const ProductArgs& a, uint32_t first_column) {
  if (!F::scaled) return;
#pragma unroll
  for (int t = 0; t < T; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t column = first_column + t * 8 + lane() % 4 * 2 + i % 2;
      float scale = column < a.n ? a.scales[column] : 0;
#pragma unroll
      for (int p = 0; p < P; ++p) sums[p][t][i] = __fmul_rn(sums[p][t][i], scale);
    }
}

// A block makes 16 P rows of w by 8 T of x, a warp a strand of them.
//
// Reads the weights' bytes once for every 8 T rows of x, 2 k bytes of each row of x from the second-level cache, and writes 4
// bytes a result; 2 n k rows operations, of tiles of 8 rows of x. 14336 x 4096 is 117 MB: 1 to 8 rows of x take 35 us on an H100
// and 136 on an L40S, and as 32 rows are 3.8 G operations, they take no longer, by memory.
template <class F, int T, int P> DEVICE void dense_few(const ProductArgs& a, uint32_t first_column) {
  uint32_t panels = panels_of(a);
  const uint8_t* numbers[P];
  find_panels<P>(numbers, a, blockIdx.x * P, panels);
  uint32_t begin = warp() * a.strand, end = begin + a.strand < a.groups ? begin + a.strand : a.groups;
  float sums[P][T][4] = {};
  // Groups whose loads are under way at once.
  [[maybe_unused]] constexpr int kAtOnce = T * P >= 8 ? 1 : T * P >= 4 ? 2 : 4;
#pragma unroll kAtOnce
  for (uint32_t group = begin; group < end; ++group) {
    Numbers w[P];
#pragma unroll
    for (int p = 0; p < P; ++p) w[p] = load_numbers(numbers[p] + uint64_t(group) * kGroupBytes);
#pragma unroll
    for (int t = 0; t < T; ++t) {
      // Tiles behind the last are computed like the first and not stored.
      uint32_t tile = first_column + t * 8 < a.padded ? first_column + t * 8 : first_column;
      auto x = load<Words4>(static_cast<const uint8_t*>(a.x) +
                            (uint64_t(tile + lane() / 4) * a.groups + group) * kGroup * 2 + lane() % 4 * 16);
#pragma unroll
      for (int p = 0; p < P; ++p) add_numbers<F>(sums[p][t], w[p], x);
    }
  }
  unscale<F, T, P>(sums, a, first_column);
  merge_strands<T, P>(sums, a, first_column, panels);
}

// Groups that `dense_many` has in shared memory at once, twice over, and bytes from a row of x to the next there.
constexpr uint32_t kDenseStage = 4, kDenseStageRow = kDenseStage * kGroup * 2 + 64;

// Starts the copies of groups `group` .. `group + kDenseStage` of the block's rows of x.
template <int T> DEVICE void fill_dense(uint8_t* stage, const ProductArgs& a, uint32_t first_column, uint32_t group) {
  constexpr uint32_t columns = kWarpsAcross * 8 * T, pieces = kDenseStage * 4;
  for (uint32_t i = threadIdx.x; i < columns * pieces; i += blockDim.x) {
    uint32_t column = i / pieces, piece = i % pieces;
    bool real = first_column + column < a.padded && group + piece / 4 < a.groups;
    auto from = static_cast<const uint8_t*>(a.x);
    if (real) from += (uint64_t(first_column + column) * a.groups + group) * kGroup * 2 + piece * 16;
    copy_16(stage + column * kDenseStageRow + piece * 16, from, real);
  }
  copies_end_group();
}

// A block makes kWarpsDown * kPanels * 16 rows of w by 2 * 8 T of x, a warp kPanels * 16 by 8 T.
//
// 2 n k rows operations; the weights' bytes once for every 16 T rows of x. 14336 x 4096 with 2,048 rows of x: 241 G operations,
// so 243 us on an H100 and 664 on an L40S, by tensor cores that never wait.
template <class F, int T> DEVICE void dense_many(const ProductArgs& a, uint32_t first_column) {
  constexpr uint32_t columns = kWarpsAcross * 8 * T, stage_bytes = columns * kDenseStageRow;
  auto stages = static_cast<uint8_t*>(shared());
  uint32_t own_column = warp() % kWarpsAcross * 8 * T;
  uint32_t first_panel = (blockIdx.y * kWarpsDown + warp() / kWarpsAcross) * kPanels, panels = panels_of(a);
  const uint8_t* numbers[kPanels];
  find_panels<kPanels>(numbers, a, first_panel, panels);
  float totals[kPanels][T][4] = {}, sums[kPanels][T][4] = {};
  // Weights come a group ahead.
  Numbers next[kPanels];
#pragma unroll
  for (uint32_t p = 0; p < kPanels; ++p) next[p] = load_numbers(numbers[p]);
  fill_dense<T>(stages, a, first_column, 0);
  for (uint32_t group = 0, number = 0; group < a.groups; group += kDenseStage, ++number) {
    if (group > 0 && group % a.strand == 0) {
      unscale<F, T, kPanels>(sums, a, first_column + own_column);
      end_strand<T>(totals, sums, group == a.strand);
    }
    bool more = group + kDenseStage < a.groups;
    if (more) fill_dense<T>(stages + (number + 1) % 2 * stage_bytes, a, first_column, group + kDenseStage);
    if (more) copies_wait<1>();
    else copies_wait<0>();
    sync_block();
    const uint8_t* stage = stages + number % 2 * stage_bytes + (own_column + lane() / 4) * kDenseStageRow + lane() % 4 * 16;
    for (uint32_t j = 0; j < kDenseStage && group + j < a.groups; ++j) {
      Numbers w[kPanels];
#pragma unroll
      for (uint32_t p = 0; p < kPanels; ++p) {
        w[p] = next[p];
        uint32_t ahead = group + j + 1 < a.groups ? group + j + 1 : group + j;
        next[p] = load_numbers(numbers[p] + uint64_t(ahead) * kGroupBytes);
      }
#pragma unroll
      for (int t = 0; t < T; ++t) {
        auto x = load<Words4>(stage + t * 8 * kDenseStageRow + j * kGroup * 2);
#pragma unroll
        for (uint32_t p = 0; p < kPanels; ++p) add_numbers<F>(sums[p][t], w[p], x);
      }
    }
    sync_block();
  }
  unscale<F, T, kPanels>(sums, a, first_column + own_column);
  end_strand<T>(totals, sums, a.groups <= a.strand);
  store_totals<T>(totals, a, first_panel, panels, first_column + own_column);
}

// As above with 8 tiles a warp. A generation that has not enough registers for that takes the two halves in turn, with the same
// bits as results.
template <class F> DEVICE void dense_many_8(const ProductArgs& a) {
  constexpr uint32_t columns = kWarpsAcross * 8 * 8;
  uint32_t first_column = blockIdx.x * columns;
  if constexpr (!kYoung) return dense_many<F, 8>(a, first_column);
#pragma unroll 1
  for (uint32_t half = first_column; half < first_column + columns && half < a.n; half += columns / 2)
    dense_many<F, 4>(a, half);
}

// A block a row: reads 2 bytes a number in pieces of 64, and writes 4. 512 rows of 4096: 13 MB, so 3.8 us on an H100 and 15 on an
// L40S.
template <class F> DEVICE void embed_dense(const EmbedArgs& a) {
  uint32_t id = a.ids[blockIdx.x];
  const uint8_t* numbers = a.panels + id / kPanel * a.panel_bytes + id % kPanel * kGroup * 2;
  for (uint32_t i = threadIdx.x; i < a.k; i += blockDim.x) {
    auto bits = load<uint16_t>(numbers + uint64_t(i / kGroup) * kGroupBytes + i % kGroup * 2);
    a.out[uint64_t(blockIdx.x) * a.k + i] = F::number(bits) * a.scale;
  }
}

#define DENSE(format)                                                                                          \
  KERNEL(product_few_1_1_##format, ProductArgs, 512, 2) { dense_few<format, 1, 1>(a, blockIdx.y * 8); }        \
  KERNEL(product_few_2_2_##format, ProductArgs, 512, 1) { dense_few<format, 2, 2>(a, blockIdx.y * 16); }       \
  KERNEL(product_few_4_2_##format, ProductArgs, 512, 1) { dense_few<format, 4, 2>(a, blockIdx.y * 32); }       \
  KERNEL(product_many_4_##format, ProductArgs, 256, 1) { dense_many<format, 4>(a, blockIdx.x * 64); }          \
  KERNEL(product_many_8_##format, ProductArgs, 256, 1) { dense_many_8<format>(a); }                            \
  KERNEL(embed_##format, EmbedArgs, 256) { embed_dense<format>(a); }

// Tests may compile fewer.
#ifndef DENSE_FORMATS
#define DENSE_FORMATS(X) X(Bf16) X(F16)
#endif
DENSE_FORMATS(DENSE)
