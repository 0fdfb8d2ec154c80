// Packed weights in the order in which the tensor cores take them; `cuda::panels` makes it of `rempart_kernels::Packed`.
//
// A panel is 16 rows. Along it 32 weights of each row make a group, a 16 x 32 operand of an `mma`: lane l holds the codes of
// rows l / 4 and l / 4 + 8, four at l % 4 * 4 and four at 16 + l % 4 * 4, and finds them side by side. Scales lie behind the
// panel's codes, in records, those of rows r and r + 8 side by side.
#pragma once
#include "product.cuh"

enum Scales { Half, HalfMin, Super16, Super8, Signed };

// A layout: bits of a code, how scales are kept, and what is subtracted from codes.
template <int BITS, Scales SCALES, int OFFSET> struct Format {
  static constexpr int bits = BITS;
  static constexpr Scales scales = SCALES;
  static constexpr int offset = OFFSET;
  static constexpr bool has_min = SCALES == HalfMin || SCALES == Super16 || SCALES == Super8;
  // Scales of a row in a group.
  static constexpr int halves = SCALES == Super16 || SCALES == Signed ? 2 : 1;
  static constexpr uint32_t group_bytes = 64 * BITS;
  static constexpr uint32_t record_groups = SCALES == Half || SCALES == HalfMin ? 1 : 8;
  // Of a record, for each row: scale and minimum in f16, then bytes that multiply them.
  static constexpr uint32_t head_bytes = has_min ? 4 : 2;
  static constexpr uint32_t factor_bytes = SCALES == Super8 || SCALES == Signed ? 16 : SCALES == Super16 ? 32 : 0;
  static constexpr uint32_t record_bytes = kPanel * (head_bytes + factor_bytes);
};

using Q4_0 = Format<4, Half, 8>;
using Q4_1 = Format<4, HalfMin, 0>;
using Q5_0 = Format<5, Half, 16>;
using Q5_1 = Format<5, HalfMin, 0>;
// Codes of 8 bits have lost their offset.
using Q8_0 = Format<8, Half, 0>;
using Q2K = Format<4, Super16, 0>;
using Q3K = Format<4, Signed, 4>;
using Q4K = Format<4, Super8, 0>;
using Q5K = Format<5, Super8, 0>;
using Q6K = Format<6, Signed, 32>;

DEVICE uint32_t byte_of(uint32_t word, uint32_t i) { return word >> (8 * i) & 0xff; }

// The lane's part of a group as it lies in memory.
template <class F> struct Codes {
  Words4 w;
};

template <class F> DEVICE Codes<F> load_codes(const uint8_t* group) {
  if (F::bits == 8) return {load<Words4>(group + lane() * 16)};
  auto nibbles = load<Words2>(group + lane() * 8);
  Codes<F> codes = {{{nibbles.w[0], nibbles.w[1], 0, 0}}};
  // Of 5 bits a word for each row, of 6 one for each lane.
  if (F::bits == 5) {
    codes.w.w[2] = load<uint32_t>(group + 256 + lane() / 4 * 4);
    codes.w.w[3] = load<uint32_t>(group + 256 + 32 + lane() / 4 * 4);
  }
  if (F::bits == 6) codes.w.w[2] = load<uint32_t>(group + 256 + lane() * 4);
  return codes;
}

// As an operand: a byte for each code, without its offset.
template <class F> DEVICE void unpack(const Codes<F>& codes, uint32_t (&a)[4]) {
  if (F::bits == 8) {
    for (int i = 0; i < 4; ++i) a[i] = codes.w.w[i];
    return;
  }
  for (int i = 0; i < 2; ++i) {
    a[i] = codes.w.w[i] & 0x0f0f0f0fu;
    a[i + 2] = codes.w.w[i] >> 4 & 0x0f0f0f0fu;
    if (F::bits == 5) {
      uint32_t fifths = codes.w.w[2 + i] >> lane() % 4;
      a[i] |= (fifths & 0x01010101u) << 4;
      a[i + 2] |= fifths & 0x10101010u;
    }
    if (F::bits == 6) {
      a[i] |= (codes.w.w[2] >> (2 * i) & 0x03030303u) << 4;
      a[i + 2] |= codes.w.w[2] >> (2 * i) & 0x30303030u;
    }
  }
  if (F::offset != 0)
    // No byte borrows from its neighbour, as its highest bit is set meanwhile.
    for (int i = 0; i < 4; ++i) a[i] = ((a[i] | 0x80808080u) - F::offset * 0x01010101u) ^ 0x80808080u;
}

// What a record says of the lane's two rows.
template <class F> struct Record {
  float scale[2], min[2];
  Words4 factors[2][F::factor_bytes == 32 ? 2 : 1];
};

template <class F> DEVICE Record<F> load_record(const uint8_t* record) {
  Record<F> r;
  uint32_t row = lane() / 4 * 2;
  if (F::has_min) {
    auto head = load<Words2>(record + row * 4);
    for (int i = 0; i < 2; ++i) r.scale[i] = from_f16(uint16_t(head.w[i])), r.min[i] = from_f16(uint16_t(head.w[i] >> 16));
  } else {
    auto head = load<uint32_t>(record + row * 2);
    r.scale[0] = from_f16(uint16_t(head)), r.scale[1] = from_f16(uint16_t(head >> 16));
    r.min[0] = r.min[1] = 0;
  }
  if (F::factor_bytes > 0)
    for (uint32_t i = 0; i < 2; ++i)
      for (uint32_t j = 0; j < F::factor_bytes / 16; ++j)
        r.factors[i][j] = load<Words4>(record + kPanel * F::head_bytes + (row + i) * F::factor_bytes + j * 16);
  return r;
}

// Scales and minima of the lane's two rows in a group.
template <class F> struct RowScales {
  float scale[2][F::halves], min[2][F::halves];
};

// Of group `part` of a record.
template <class F> DEVICE RowScales<F> row_scales(const Record<F>& record, uint32_t part) {
  RowScales<F> rows;
  for (int i = 0; i < 2; ++i)
    for (uint32_t half = 0; half < F::halves; ++half) {
      float scale = record.scale[i], min = record.min[i];
      // Bytes of scales come first, then those of minima.
      if (F::scales == Super8) {
        const Words4& f = record.factors[i][0];
        uint32_t scales = part < 4 ? f.w[0] : f.w[1], mins = part < 4 ? f.w[2] : f.w[3];
        scale = __fmul_rn(scale, float(byte_of(scales, part % 4)));
        // What is subtracted is added with the other sign.
        min = __fmul_rn(-min, float(byte_of(mins, part % 4)));
      }
      if (F::scales == Super16 || F::scales == Signed) {
        const Words4& f = record.factors[i][0];
        uint32_t two = part < 2 ? f.w[0] : part < 4 ? f.w[1] : part < 6 ? f.w[2] : f.w[3];
        uint32_t byte = byte_of(two, part % 2 * 2 + half);
        scale = __fmul_rn(scale, F::scales == Signed ? float(int8_t(byte)) : float(byte));
      }
      if (F::scales == Super16) {
        const Words4& f = record.factors[i][F::factor_bytes / 16 - 1];
        uint32_t two = part < 2 ? f.w[0] : part < 4 ? f.w[1] : part < 6 ? f.w[2] : f.w[3];
        min = __fmul_rn(-min, float(byte_of(two, part % 2 * 2 + half)));
      }
      rows.scale[i][half] = scale;
      rows.min[i][half] = min;
    }
  return rows;
}

// As above from memory, and no more of the record than it takes.
template <class F> DEVICE RowScales<F> read_row_scales(const uint8_t* record, uint32_t part) {
  if constexpr (F::factor_bytes == 0) {
    return row_scales<F>(load_record<F>(record), part);
  } else {
    RowScales<F> rows;
    for (uint32_t i = 0; i < 2; ++i) {
      uint32_t row = lane() / 4 * 2 + i;
      const uint8_t* factors = record + kPanel * F::head_bytes + row * F::factor_bytes + part * F::halves;
      float scale = from_f16(load<uint16_t>(record + row * F::head_bytes)), min = 0;
      if (F::has_min) min = from_f16(load<uint16_t>(record + row * F::head_bytes + 2));
      for (uint32_t half = 0; half < F::halves; ++half) {
        uint8_t byte = factors[half];
        rows.scale[i][half] = __fmul_rn(scale, F::scales == Signed ? float(int8_t(byte)) : float(byte));
        rows.min[i][half] = F::has_min ? __fmul_rn(-min, float(factors[F::factor_bytes / 2 + half])) : 0;
      }
    }
    return rows;
  }
}

// Row `row` of a panel, weight `i`: the number that the file's format defines.
template <class F> DEVICE float weight_at(const uint8_t* codes, const uint8_t* records, uint32_t row, uint32_t i) {
  const uint8_t* group = codes + uint64_t(i / kGroup) * F::group_bytes;
  uint32_t of = row % 8 * 4 + i % 16 / 4, upper = i % kGroup / 16, byte = i % 4;
  int code;
  if (F::bits == 8) {
    code = int8_t(group[of * 16 + (upper * 2 + row / 8) * 4 + byte]);
  } else {
    code = group[of * 8 + row / 8 * 4 + byte] >> (4 * upper) & 15;
    if (F::bits == 5) code |= (group[256 + row * 4 + byte] >> (i % kGroup / 4) & 1) << 4;
    if (F::bits == 6) code |= (group[256 + of * 4 + byte] >> (2 * (row / 8) + 4 * upper) & 3) << 4;
  }
  const uint8_t* record = records + uint64_t(i / kGroup / F::record_groups) * F::record_bytes;
  uint32_t place = row % 8 * 2 + row / 8, part = i / (kGroup / F::halves) % (8 * F::halves);
  const uint8_t* factors = record + kPanel * F::head_bytes + place * F::factor_bytes;
  float scale = from_f16(load<uint16_t>(record + place * F::head_bytes)), min = 0;
  if (F::has_min) min = from_f16(load<uint16_t>(record + place * F::head_bytes + 2));
  if (F::scales == Super8 || F::scales == Super16) {
    scale *= float(factors[part]);
    min = -min * float(factors[F::factor_bytes / 2 + part]);
  }
  if (F::scales == Signed) scale *= float(int8_t(factors[part]));
  return F::has_min ? float(code) * scale + min : float(code - F::offset) * scale;
}
