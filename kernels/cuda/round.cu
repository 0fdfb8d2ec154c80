// Activations as whole numbers of 8 bits, as integer weights meet them: the numbers of `cpu::operand`, normalised before
// where asked for.
//
// Reads 4 n k bytes and writes 1.5 n k. 512 rows of 4096: 12 MB, so 3.4 us on an H100 and 13 on an L40S. Of few rows each has
// several blocks, which all sum its squares: then the start of a kernel is what bounds it, some 4 us on an H200.
#include "gpu.cuh"

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

KERNEL(round_rows, RoundArgs, 256) {
  constexpr float kLargest = 127.0f, kTiny = 1e-30f, kRound = 12582912.0f;
  auto scratch = static_cast<float*>(shared());
  uint32_t row = blockIdx.x;
  const float* x = a.x + row * a.stride;
  float scale = a.weight ? 1.0f / sqrtf(block_squares(x, a.k, scratch) / float(a.k) + a.eps) : 1;
  uint32_t step = gridDim.y * blockDim.x / 32;
#pragma unroll 2
  for (uint32_t group = blockIdx.y * blockDim.x / 32 + warp(); group < a.k / 32; group += step) {
    uint32_t i = group * 32 + lane();
    float value = a.weight ? x[i] * scale * a.weight[i] : x[i];
    uint32_t magnitude = warp_max(bits_of(value) & 0x7fffffffu);
    float largest = from_bits(magnitude), factor = kLargest / largest, count = largest / kLargest;
    // A group with a number that is not finite gets a scale that is none, so that nothing hides it.
    if (magnitude >= 0x7f800000u) factor = 0, count = from_bits(0x7fc00000u);
    else if (largest < kTiny) factor = 0, count = 0;
    float product = factor == 0 ? 0 : __fmul_rn(value, factor);
    int32_t number = int32_t(bits_of(__fadd_rn(product, kRound)) - bits_of(kRound));
    a.codes[uint64_t(row) * a.k + group * 32 + place(lane())] = int8_t(number);
    for (int mask = 8; mask > 0; mask /= 2) number += shuffle_xor(number, mask);
    int32_t other = shuffle_xor(number, 16);
    float* shares = a.shares + uint64_t(group) * 3 * a.rows + row;
    if (lane() == 0) a.scales[uint64_t(group) * a.rows + row] = count, shares[0] = __fmul_rn(count, float(number + other));
    if (lane() % 16 == 0) shares[(1 + lane() / 16) * a.rows] = __fmul_rn(count, float(number));
  }
}
