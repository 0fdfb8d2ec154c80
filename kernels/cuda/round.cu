// Activations as products meet them, normalised before where asked for.
#include "gpu.cuh"

// What the norm multiplies a row by.
DEVICE float norm_scale(const float* x, const float* weight, uint32_t k, float eps) {
  auto scratch = static_cast<float*>(shared());
  return weight ? 1.0f / sqrtf(block_squares(x, k, scratch) / float(k) + eps) : 1;
}

struct RoundArgs {
  const float* x;       // rows of k, `stride` apart
  const float* weight;  // [k] of the norm, or null
  int8_t* codes;        // [rows, k], in the order of `place`
  float* scales;        // [k / 32, rows]
  float* shares;        // [k / 32, 3, rows]: scale times the sum of the numbers of a group, and of its halves
  uint64_t stride;
  uint32_t k;
  uint32_t rows;  // of the results; those behind the last of x are not written
  float eps;
  uint32_t pad;
};

// Where number i of a group lies: a lane of a product reads what meets lines j and j + 4 of a panel in one load.
DEVICE uint32_t place(uint32_t i) { return i / 4 % 4 * 8 + i / 16 * 4 + i % 4; }

// Whole numbers of 8 bits, as integer weights meet them: those of `cpu::operand`.
//
// Reads 4 n k bytes and writes 1.5 n k. 512 rows of 4096: 12 MB, so 3.4 us on an H100 and 13 on an L40S. Of few rows each has
// several blocks, which all sum its squares: then the start of a kernel is what bounds it, some 4 us on an H200.
KERNEL(round_rows, RoundArgs, 256) {
  uint32_t row = blockIdx.x;
  const float* x = a.x + row * a.stride;
  float scale = norm_scale(x, a.weight, a.k, a.eps);
  uint32_t step = gridDim.y * blockDim.x / 32;
#pragma unroll 2
  for (uint32_t group = blockIdx.y * blockDim.x / 32 + warp(); group < a.k / 32; group += step) {
    uint32_t i = group * 32 + lane();
    float value = a.weight ? x[i] * scale * a.weight[i] : x[i];
    uint32_t magnitude = warp_max(bits_of(value) & 0x7fffffffu);
    auto [factor, count] = rounding(magnitude);
    int32_t number = whole(value, factor);
    a.codes[uint64_t(row) * a.k + group * 32 + place(lane())] = int8_t(number);
    for (int mask = 8; mask > 0; mask /= 2) number += shuffle_xor(number, mask);
    int32_t other = shuffle_xor(number, 16);
    float* shares = a.shares + uint64_t(group) * 3 * a.rows + row;
    if (lane() == 0) a.scales[uint64_t(group) * a.rows + row] = count, shares[0] = __fmul_rn(count, float(number + other));
    if (lane() % 16 == 0) shares[(1 + lane() / 16) * a.rows] = __fmul_rn(count, float(number));
  }
}

struct Round16Args {
  const float* x;       // rows of k, `stride` apart
  const float* weight;  // [k] of the norm, or null
  uint32_t* out;        // [rows, 16 groups] of two numbers; those behind k are 0
  float* scales;        // [rows]: what rows in f16 were divided by; null for bf16
  uint64_t stride;
  uint32_t k;
  uint32_t groups;
  float eps;
  uint32_t pad;
};

// The power of two that brings the largest number of a row to 2^14 .. 2^15, where f16 ends at 2^16, and its inverse.
DEVICE float power_for(uint32_t largest, float& inverse) {
  uint32_t exponent = largest >> 23;
  // What is not finite is to show, and no inverse is too small to be one.
  if (exponent == 255) return inverse = 1;
  exponent = exponent < 32 ? 32 : exponent;
  inverse = from_bits((exponent - 14) << 23);
  return from_bits((268 - exponent) << 23);
}

// Numbers in bf16 or f16, as weights of 16 bits meet them.
//
// Reads 4 n k bytes, for f16 once more from a cache, and writes 2 n k. 512 rows of 4096: 13 MB, so 3.8 us on an H100 and 15 on an
// L40S.
KERNEL(round_rows_16, Round16Args, 256) {
  uint32_t row = blockIdx.x;
  const float* x = a.x + row * a.stride;
  float norm = norm_scale(x, a.weight, a.k, a.eps), power = 1;
  auto value = [&](uint32_t i) { return a.weight ? x[i] * norm * a.weight[i] : x[i]; };
  if (a.scales) {
    uint32_t largest = 0;
    for (uint32_t i = threadIdx.x; i < a.k; i += blockDim.x) {
      uint32_t magnitude = bits_of(value(i)) & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
    }
    float inverse;
    power = power_for(block_max(largest, static_cast<uint32_t*>(shared())), inverse);
    if (threadIdx.x == 0 && blockIdx.y == 0) a.scales[row] = inverse;
  }
  for (uint32_t pair = blockIdx.y * blockDim.x + threadIdx.x; pair < 16 * a.groups; pair += gridDim.y * blockDim.x) {
    float two[2] = {};
    for (uint32_t j = 0; j < 2 && 2 * pair + j < a.k; ++j) two[j] = __fmul_rn(value(2 * pair + j), power);
    a.out[uint64_t(row) * 16 * a.groups + pair] = a.scales ? pair_f16(two[0], two[1]) : pair_bf16(two[0], two[1]);
  }
}
