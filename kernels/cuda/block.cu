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

// Rows of heads that are rotated.
struct RotatedArgs {
  const float* x;        // rows of heads * d, `stride` apart
  const float* weight;   // [d] of a norm of each head before, or null
  const float* factors;  // [heads * d] that multiply the results, or null
  uint64_t stride;
  uint32_t heads;
  float eps;
};

struct RopeArgs {
  RotatedArgs q, k;
  const float* v;             // rows of k.heads * d, `v_stride` apart
  uint64_t v_stride;
  const uint32_t* positions;  // [n]
  const float* inv_freq;      // [d / 2], or null where keys are stored as they are
  float* out;                 // [n, q.heads * d]
  const uint32_t* slots;      // [n]
  void* keys;                 // as attention_bf16.cuh or attention_int8.cuh has them
  void* values;
  uint32_t n, d, block_size;
  float attention_factor;
  uint32_t interleaved;  // pairs (2 i, 2 i + 1) instead of (i, i + d / 2)
  uint32_t pad;
};

// Gives `to(i, number)` the numbers of a head, of which each lane has some: rotated, where there are angles.
template <class To> DEVICE void rotate(const RopeArgs& a, const RotatedArgs& of, uint32_t token, uint32_t head, To to) {
  const float* x = of.x + token * of.stride + uint64_t(head) * a.d;
  if (!a.inv_freq) {
    for (uint32_t i = lane(); i < a.d; i += 32) to(i, x[i]);
    return;
  }
  float scale = 1;
  if (of.weight) {
    float sum = 0;
    for (uint32_t i = lane(); i < a.d; i += 32) sum = __fmaf_rn(x[i], x[i], sum);
    scale = 1.0f / sqrtf(warp_sum(sum) / float(a.d) + of.eps);
  }
  for (uint32_t pair = lane(); pair < a.d / 2; pair += 32) {
    uint32_t i = a.interleaved ? 2 * pair : pair, j = a.interleaved ? i + 1 : pair + a.d / 2;
    float first = x[i], second = x[j];
    if (of.weight) first *= scale * of.weight[i], second *= scale * of.weight[j];
    float angle = float(a.positions[token]) * a.inv_freq[pair];
    float c = cosf(angle) * a.attention_factor, s = sinf(angle) * a.attention_factor;
    float turned[2] = {first * c - second * s, second * c + first * s};
    if (of.factors) turned[0] *= of.factors[head * a.d + i], turned[1] *= of.factors[head * a.d + j];
    to(i, turned[0]);
    to(j, turned[1]);
  }
}

// What a warp computes: a head of a token's queries, keys or values; of the latter two also their place in the cache.
struct Head {
  uint32_t token, head, position;
  uint64_t group;
  bool is_query, is_key;
};

// False for warps behind the last head.
DEVICE bool find_head(const RopeArgs& a, Head& head) {
  uint32_t all = a.q.heads + 2 * a.k.heads;
  uint64_t number = uint64_t(blockIdx.x) * (blockDim.x / 32) + warp();
  if (number >= uint64_t(a.n) * all) return false;
  head.token = number / all, head.head = number % all;
  head.is_query = head.head < a.q.heads;
  if (head.is_query) return true;
  head.head -= a.q.heads;
  head.is_key = head.head < a.k.heads;
  if (!head.is_key) head.head -= a.k.heads;
  uint32_t slot = a.slots[head.token], block = slot / a.block_size;
  head.group = (uint64_t(block) * a.k.heads + head.head) * (a.block_size / 16) + slot % a.block_size / 16;
  head.position = slot % 16;
  return true;
}

DEVICE void rotate_query(const RopeArgs& a, const Head& head) {
  float* out = a.out + (uint64_t(head.token) * a.q.heads + head.head) * a.d;
  rotate(a, a.q, head.token, head.head, [&](uint32_t i, float x) { out[i] = x; });
}

DEVICE const float* values_of(const RopeArgs& a, const Head& head) {
  return a.v + head.token * a.v_stride + uint64_t(head.head) * a.d;
}

// Queries are rotated, keys are rotated and stored with the values, in bf16: a warp a head, n d (8 heads + 12 kv_heads) bytes.
// 512 tokens with 32 and 8 heads of 128: 23 MB, so 6.9 us on an H100 and 27 on an L40S.
KERNEL(rope, RopeArgs, 256) {
  Head head;
  if (!find_head(a, head)) return;
  if (head.is_query) {
    rotate_query(a, head);
  } else if (head.is_key) {
    auto keys = static_cast<uint16_t*>(a.keys) + (head.group * 16 + head.position) * a.d;
    rotate(a, a.k, head.token, head.head, [&](uint32_t i, float x) { keys[i] = to_bf16(x); });
  } else {
    auto values = static_cast<uint16_t*>(a.values);
    const float* x = values_of(a, head);
    for (uint32_t i = lane(); i < a.d; i += 32) values[(head.group * a.d + i) * 16 + head.position] = to_bf16(x[i]);
  }
}

// As above in 8 bits, d being a multiple of 64; each warp has d floats of shared memory. n d (8 heads + 10.1 kv_heads) bytes: for
// the same 512 tokens 22 MB, so 6.6 us on an H100 and 26 on an L40S.
KERNEL(rope_int8, RopeArgs, 256) {
  Head head;
  if (!find_head(a, head)) return;
  if (head.is_query) {
    rotate_query(a, head);
    return;
  }
  const float* x = values_of(a, head);
  if (head.is_key) {
    float* rotated = static_cast<float*>(shared()) + warp() * a.d;
    rotate(a, a.k, head.token, head.head, [&](uint32_t i, float x) { rotated[i] = x; });
    sync_warp();
    x = rotated;
  }
  auto records = static_cast<uint8_t*>(head.is_key ? a.keys : a.values) + head.group * (a.d / kPart) * kPartBytes;
  for (uint32_t part = 0; part < a.d / kPart; ++part) {
    float two[2] = {x[part * kPart + lane()], x[part * kPart + lane() + 32]};
    uint32_t magnitudes[2] = {bits_of(two[0]) & 0x7fffffffu, bits_of(two[1]) & 0x7fffffffu};
    auto [factor, count] = rounding(warp_max(magnitudes[0] > magnitudes[1] ? magnitudes[0] : magnitudes[1]));
    uint8_t* record = records + part * kPartBytes;
    if (lane() == 0) reinterpret_cast<float*>(record)[head.position] = count;
    for (uint32_t half = 0; half < 2; ++half) {
      uint32_t dim = half * 32 + lane();
      uint32_t place = head.is_key ? key_place(head.position, dim) : value_place(head.position, dim);
      record[kScalesBytes + place] = uint8_t(whole(two[half], factor) + int32_t(kZero));
    }
  }
}
