// Keys and values as whole numbers of 8 bits, in records of 16 positions of a head; a record is cut into parts of 64 dimensions.
// A part begins with its positions' scales; their codes, kZero above what they mean, follow in the order in which the lanes of
// attention_int8.cuh read them. The numbers are those of `cpu::records`, which has them in another order.
#pragma once
#include "gpu.cuh"

constexpr uint32_t kPart = 64, kZero = 128;
constexpr uint32_t kScalesBytes = 16 * 4, kPartBytes = kScalesBytes + 16 * kPart;

// Where a code is among those of its part: of keys 16 positions, 64 bytes each; of values 32 dimensions, and in these 16 bytes
// for each lane, which are four positions of four dimensions that are 8 apart.
DEVICE uint32_t key_place(uint32_t position, uint32_t dim) { return position * kPart + dim; }
DEVICE uint32_t value_place(uint32_t position, uint32_t dim) {
  return dim / 32 * 512 + (dim % 8 * 4 + position / 4) * 16 + dim / 8 % 4 * 4 + position % 4;
}
