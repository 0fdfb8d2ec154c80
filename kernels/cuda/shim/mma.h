// What a warp computes together, from the operands of its 32 lanes: element by element as the PTX ISA lays fragments out.
#pragma once
#include "simt.h"

namespace simt {

// Row and column of element `i` of a lane's results.
inline uint32_t row_of(uint32_t lane, uint32_t i) { return lane / 4 + i / 2 * 8; }
inline uint32_t column_of(uint32_t lane, uint32_t i) { return lane % 4 * 2 + i % 2; }

inline void shuffle(void* const (&operands)[32]) {
  uint32_t values[32];
  for (uint32_t lane = 0; lane < 32; ++lane) values[lane] = static_cast<const Shuffle*>(operands[lane])->value;
  for (uint32_t lane = 0; lane < 32; ++lane) {
    auto& own = *static_cast<Shuffle*>(operands[lane]);
    own.value = values[(lane ^ own.mask) % 32];
  }
}

// 16 x K times K x 8 whole numbers of 8 bits, onto d.
template <uint32_t K> void multiply_int8(void* const (&operands)[32]) {
  int8_t bytes_a[16][K], bytes_b[8][K];
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const MmaInt8*>(operands[lane]);
    uint32_t row = lane / 4, k = lane % 4 * 4;
    for (uint32_t half = 0; half < K / 16; ++half) {
      std::memcpy(&bytes_a[row][half * 16 + k], &own.a[half * 2], 4);
      std::memcpy(&bytes_a[row + 8][half * 16 + k], &own.a[half * 2 + 1], 4);
      std::memcpy(&bytes_b[row][half * 16 + k], &own.b[half], 4);
    }
  }
  // Two bytes' worth, of which processors multiply many at once.
  int16_t a[16][K], b[8][K];
  for (uint32_t row = 0; row < 16; ++row)
    for (uint32_t k = 0; k < K; ++k) a[row][k] = bytes_a[row][k];
  for (uint32_t column = 0; column < 8; ++column)
    for (uint32_t k = 0; k < K; ++k) b[column][k] = bytes_b[column][k];
  int32_t products[16][8];
  for (uint32_t row = 0; row < 16; ++row)
    for (uint32_t column = 0; column < 8; ++column) {
      int32_t sum = 0;
      for (uint32_t k = 0; k < K; ++k) sum += int32_t(a[row][k]) * b[column][k];
      products[row][column] = sum;
    }
  for (uint32_t lane = 0; lane < 32; ++lane)
    for (uint32_t i = 0; i < 4; ++i)
      static_cast<MmaInt8*>(operands[lane])->d[i] += products[row_of(lane, i)][column_of(lane, i)];
}

inline double bf16_of(uint32_t word, uint32_t i) {
  uint32_t bits = i == 0 ? word << 16 : word & 0xffff0000u;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline double f16_of(uint32_t word, uint32_t i) { return from_f16(uint16_t(word >> (16 * i))); }

// 16 x 16 times 16 x 8 numbers of two bytes, of which a word holds two, onto d; a sum is rounded once.
inline void multiply_16(void* const (&operands)[32], double (*number)(uint32_t, uint32_t)) {
  double a[16][16], b[16][8], sums[16][8];
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const Mma16*>(operands[lane]);
    uint32_t row = lane / 4, k = lane % 4 * 2;
    for (uint32_t i = 0; i < 2; ++i) {
      a[row][k + i] = number(own.a[0], i), a[row + 8][k + i] = number(own.a[1], i);
      a[row][k + 8 + i] = number(own.a[2], i), a[row + 8][k + 8 + i] = number(own.a[3], i);
      b[k + i][row] = number(own.b[0], i), b[k + 8 + i][row] = number(own.b[1], i);
    }
    for (uint32_t i = 0; i < 4; ++i) sums[row_of(lane, i)][column_of(lane, i)] = double(own.d[i]);
  }
  for (uint32_t row = 0; row < 16; ++row)
    for (uint32_t k = 0; k < 16; ++k)
      for (uint32_t column = 0; column < 8; ++column) sums[row][column] += a[row][k] * b[k][column];
  for (uint32_t lane = 0; lane < 32; ++lane)
    for (uint32_t i = 0; i < 4; ++i)
      static_cast<Mma16*>(operands[lane])->d[i] = float(sums[row_of(lane, i)][column_of(lane, i)]);
}

}  // namespace simt
