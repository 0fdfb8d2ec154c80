// What products have in common, whatever their weights are: how they are cut into blocks, and how a result is put together.
//
// A result is the same bits for any number of rows of x: a strand, a fixed run of groups, is added up from first to last, and so
// are the strands. `product_few` is bound by memory, a warp for each strand; `product_many`, with tiles of 128 rows of w by up to
// 128 of x, by arithmetic.
#pragma once
#include "gpu.cuh"

// Rows of a panel, and numbers of a group of each of them.
constexpr uint32_t kPanel = 16, kGroup = 32;

struct ProductPart {
  const uint8_t* panels;
  const float* bias;  // [rows], or null
  uint32_t rows;
  uint32_t column;       // of the first row's result
  uint32_t first_panel;  // among the panels of all parts
  uint32_t pad;
};

struct ProductArgs {
  const void* x;         // [padded, 32 groups] of 8 or of 16 bits, as round.cu leaves them, here and below
  const float* scales;   // [groups, padded] of whole numbers, [padded] of numbers in f16
  const float* shares;   // [groups, 3, padded] of whole numbers
  const float* addends;  // [n, width], or null
  float* out;            // [n, width]
  ProductPart parts[3];
  uint64_t panel_bytes;
  uint32_t parts_len;
  uint32_t n;
  uint32_t padded;  // n, up to a multiple of 8
  uint32_t groups;
  uint32_t width;
  uint32_t strand;  // groups of a strand, a multiple of 8
};

// The part that panel `panel` of all belongs to.
DEVICE const ProductPart& part_of(const ProductArgs& a, uint32_t panel) {
  uint32_t i = a.parts_len - 1;
  while (i > 0 && a.parts[i].first_panel > panel) --i;
  return a.parts[i];
}

DEVICE void store(const ProductArgs& a, const ProductPart& part, uint32_t row, uint32_t column, float sum) {
  if (row >= part.rows || column >= a.n) return;
  uint64_t at = uint64_t(column) * a.width + part.column + row;
  if (part.bias) sum += part.bias[row];
  if (a.addends) sum += a.addends[at];
  a.out[at] = sum;
}

// Floats from a row of x to the next in shared memory, so that lanes write to different banks.
constexpr uint32_t kSums = kPanel + 4;

// The codes of P panels from `first` on; behind the last one come its own, whose results are computed and not stored.
template <uint32_t P>
DEVICE void find_panels(const uint8_t* (&codes)[P], const ProductArgs& a, uint32_t first, uint32_t panels) {
#pragma unroll
  for (uint32_t p = 0; p < P; ++p) {
    uint32_t panel = first + p < panels ? first + p : panels - 1;
    const ProductPart& part = part_of(a, panel);
    codes[p] = part.panels + (panel - part.first_panel) * a.panel_bytes;
  }
}
DEVICE uint32_t panels_of(const ProductArgs& a) {
  const ProductPart& last = a.parts[a.parts_len - 1];
  return last.first_panel + (last.rows + kPanel - 1) / kPanel;
}

// Adds up the strands of a block, first to last, and stores the results.
template <int T, int P>
DEVICE void merge_strands(const float (&sums)[P][T][4], const ProductArgs& a, uint32_t first_column, uint32_t panels) {
  // [strands, P, 8 T, kSums]
  auto strands = static_cast<float*>(shared());
#pragma unroll
  for (int p = 0; p < P; ++p)
#pragma unroll
    for (int t = 0; t < T; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t column = t * 8 + lane() % 4 * 2 + i % 2, row = lane() / 4 + i / 2 * 8;
        strands[((warp() * P + p) * 8 * T + column) * kSums + row] = sums[p][t][i];
      }
  sync_block();
  for (uint32_t i = threadIdx.x; i < P * 8 * T * kPanel; i += blockDim.x) {
    const float* from = strands + i / kPanel * kSums + i % kPanel;
    float sum = *from;
    for (uint32_t strand = 1; strand < blockDim.x / 32; ++strand) sum += from[strand * P * 8 * T * kSums];
    uint32_t panel = blockIdx.x * P + i / (8 * T * kPanel);
    if (panel >= panels) continue;
    const ProductPart& part = part_of(a, panel);
    store(a, part, (panel - part.first_panel) * kPanel + i % kPanel, first_column + i / kPanel % (8 * T), sum);
  }
}

// Warps along the rows of w and of x, and panels of a warp.
constexpr uint32_t kWarpsDown = 4, kWarpsAcross = 2, kPanels = 2;

// Ends a strand: its sums are added to the totals, the first ones are the totals.
template <int T>
DEVICE void end_strand(float (&totals)[kPanels][T][4], float (&sums)[kPanels][T][4], bool first) {
#pragma unroll
  for (uint32_t p = 0; p < kPanels; ++p)
#pragma unroll
    for (int t = 0; t < T; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        totals[p][t][i] = first ? sums[p][t][i] : totals[p][t][i] + sums[p][t][i];
        sums[p][t][i] = 0;
      }
}

template <int T>
DEVICE void store_totals(const float (&totals)[kPanels][T][4], const ProductArgs& a, uint32_t first_panel, uint32_t panels,
                         uint32_t first_column) {
#pragma unroll
  for (uint32_t p = 0; p < kPanels; ++p) {
    if (first_panel + p >= panels) continue;
    const ProductPart& part = part_of(a, first_panel + p);
#pragma unroll
    for (int t = 0; t < T; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t row = (first_panel + p - part.first_panel) * kPanel + lane() / 4 + i / 2 * 8;
        uint32_t column = first_column + t * 8 + lane() % 4 * 2 + i % 2;
        store(a, part, row, column, totals[p][t][i]);
      }
  }
}

struct EmbedArgs {
  const uint8_t* panels;
  const uint32_t* ids;  // [n]
  float* out;           // [n, k]
  uint64_t panel_bytes;
  uint32_t k;
  float scale;
};
