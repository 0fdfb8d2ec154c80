// What a transformer block does between its products, in f32. All are bound by memory, with a few operations a number: the times
// said are bytes read and written over the bandwidth of an H100 SXM (3.35 TB/s) and of an L40S (864 GB/s), here and elsewhere,
// and operations over 989 and 362 T/s in bf16, 1,979 and 733 T/s in whole numbers of 8 bits. They are predictions.
#include "kv_int8.cuh"

struct NormArgs {
  const float* x;         // [n, d]
  const float* weight;    // [d]
  const float* residual;  // [n, d] that the result is added to, or null
  float* out;             // [n, d]
  uint32_t d;
  float eps;
};

// 12 n d bytes with a residual, 8 n d without: the second look at x finds it in a cache. 512 rows of 4096 with a residual: 25 MB,
// so 7.5 us on an H100 and 29 on an L40S.
KERNEL(rms_norm, NormArgs, 256) {
  auto scratch = static_cast<float*>(shared());
  uint64_t row = uint64_t(blockIdx.x) * a.d;
  float scale = 1.0f / sqrtf(block_squares(a.x + row, a.d, scratch) / float(a.d) + a.eps);
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < a.d; i += blockDim.x) {
    float x = a.x[row + i] * scale * a.weight[i];
    a.out[row + i] = a.residual ? a.residual[row + i] + x : x;
  }
}

struct GateArgs {
  const float* x;  // [n, 2 d]: gates, then what they open
  float* out;      // [n, d]
  uint64_t len;    // n d
  uint32_t d;
  uint32_t activation;  // SiLU, GELU, GELU by tanh, ReLU
};

DEVICE float activate(float x, uint32_t activation) {
  switch (activation) {
    case 0: return x / (1.0f + expf(-x));
    case 1: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case 2: return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    default: return x > 0 ? x : 0;
  }
}

// 12 n d bytes. 512 rows of 14336: 88 MB, so 26 us on an H100 and 102 on an L40S.
KERNEL(gate, GateArgs, 256) {
  uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= a.len) return;
  const float* x = a.x + i / a.d * 2 * a.d + i % a.d;
  a.out[i] = activate(x[0], a.activation) * x[a.d];
}

struct RopeArgs {
  const float* x;             // rows of heads * d, `stride` apart
  const uint32_t* positions;  // [n]
  const float* inv_freq;      // [d / 2]
  const float* weight;        // [d] of a norm of each head before, or null
  const float* factors;       // [heads * d] that multiply the results, or null
  float* out;                 // [n, heads * d]
  uint64_t stride;
  uint32_t n, heads, d;
  float eps, attention_factor;
  uint32_t interleaved;  // pairs (2 i, 2 i + 1) instead of (i, i + d / 2)
};

// A warp a head; 8 n heads d bytes. 512 rows of 32 heads of 128: 17 MB, so 5 us on an H100 and 19 on an L40S.
KERNEL(rope, RopeArgs, 256) {
  uint64_t number = uint64_t(blockIdx.x) * (blockDim.x / 32) + warp();
  if (number >= uint64_t(a.n) * a.heads) return;
  uint32_t token = number / a.heads, head = number % a.heads;
  const float* x = a.x + token * a.stride + uint64_t(head) * a.d;
  float scale = 1;
  if (a.weight) {
    float sum = 0;
    for (uint32_t i = lane(); i < a.d; i += 32) sum = __fmaf_rn(x[i], x[i], sum);
    scale = 1.0f / sqrtf(warp_sum(sum) / float(a.d) + a.eps);
  }
  float* out = a.out + number * a.d;
  for (uint32_t pair = lane(); pair < a.d / 2; pair += 32) {
    uint32_t i = a.interleaved ? 2 * pair : pair, j = a.interleaved ? i + 1 : pair + a.d / 2;
    float first = x[i], second = x[j];
    if (a.weight) first *= scale * a.weight[i], second *= scale * a.weight[j];
    float angle = float(a.positions[token]) * a.inv_freq[pair];
    float c = cosf(angle) * a.attention_factor, s = sinf(angle) * a.attention_factor;
    float turned[2] = {first * c - second * s, second * c + first * s};
    if (a.factors) turned[0] *= a.factors[head * a.d + i], turned[1] *= a.factors[head * a.d + j];
    out[i] = turned[0];
    out[j] = turned[1];
  }
}

struct WriteArgs {
  const float* k;         // rows of kv_heads * d, `k_stride` apart
  const float* v;         // as above, `v_stride` apart
  const uint32_t* slots;  // [n]
  void* keys;             // as attention_bf16.cuh or attention_int8.cuh has them
  void* values;
  uint64_t k_stride, v_stride;
  uint32_t kv_heads, d, block_size;
  uint32_t pad;
};

// Keys and values in bf16 where attention.cu reads them; a block a token, 12 kv_heads d bytes. 512 tokens with 8 heads of 128:
// 6.3 MB, so 1.9 us on an H100 and 7.3 on an L40S.
KERNEL(write_kv, WriteArgs, 256) {
  auto keys = static_cast<uint16_t*>(a.keys), values = static_cast<uint16_t*>(a.values);
  uint32_t slot = a.slots[blockIdx.x], block = slot / a.block_size, offset = slot % a.block_size;
  for (uint32_t i = threadIdx.x; i < a.kv_heads * a.d; i += blockDim.x) {
    uint32_t head = i / a.d, dim = i % a.d;
    uint64_t group = (uint64_t(block) * a.kv_heads + head) * (a.block_size / 16) + offset / 16;
    keys[(group * 16 + offset % 16) * a.d + dim] = to_bf16(a.k[blockIdx.x * a.k_stride + i]);
    values[(group * a.d + dim) * 16 + offset % 16] = to_bf16(a.v[blockIdx.x * a.v_stride + i]);
  }
}

// As above in 8 bits, d being a multiple of 64; a warp for each part of a head's keys or values. Reads 8 kv_heads d bytes and
// writes 2.1. 512 tokens with 8 heads of 128: 5.3 MB, so 1.6 us on an H100 and 6.1 on an L40S.
KERNEL(write_kv_int8, WriteArgs, 256) {
  uint32_t slot = a.slots[blockIdx.x], block = slot / a.block_size, position = slot % 16, parts = a.d / kPart;
  for (uint32_t i = warp(); i < 2 * a.kv_heads * parts; i += blockDim.x / 32) {
    bool is_key = i < a.kv_heads * parts;
    uint32_t part = i % parts, head = i / parts % a.kv_heads;
    const float* x = (is_key ? a.k + blockIdx.x * a.k_stride : a.v + blockIdx.x * a.v_stride) + head * a.d + part * kPart;
    float two[2] = {x[lane()], x[lane() + 32]};
    uint32_t magnitudes[2] = {bits_of(two[0]) & 0x7fffffffu, bits_of(two[1]) & 0x7fffffffu};
    auto [factor, count] = rounding(warp_max(magnitudes[0] > magnitudes[1] ? magnitudes[0] : magnitudes[1]));
    uint64_t group = (uint64_t(block) * a.kv_heads + head) * (a.block_size / 16) + slot % a.block_size / 16;
    uint8_t* record = static_cast<uint8_t*>(is_key ? a.keys : a.values) + (group * parts + part) * kPartBytes;
    if (lane() == 0) reinterpret_cast<float*>(record)[position] = count;
    for (uint32_t half = 0; half < 2; ++half) {
      uint32_t dim = half * 32 + lane(), place = is_key ? key_place(position, dim) : value_place(position, dim);
      record[kScalesBytes + place] = uint8_t(whole(two[half], factor) + int32_t(kZero));
    }
  }
}
