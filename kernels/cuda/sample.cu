// A token for each row of logits, and what it was worth. server/engine/src/sampling is the specification, and its order of steps
// is kept. A block a row, so that a row's result depends on nothing else (docs/adr/0024).
//
// Weights are the host's, bit for bit. Their sums are whole numbers of 2^-43, which have no order: 2^20 tokens of weights up to 1
// stay below 2^63. What is cut off of weights is less than 2^-43 each, where the best one's is 1. The last of some best tokens is
// found by histograms of three parts of the key, and among equal keys by counting tokens from the first on.
//
// Bytes a token: 4 to look for the best; 12 for top_k; 8 to weigh; 12 for top_p; 4 to draw. With log-probabilities 4, and 20
// for a list. Operations: some 45 to weigh, 10 in each other look. A row has one multiprocessor, with 128 operations and some
// 32 bytes a cycle. 128k tokens with top_k and top_p: 5.2 MB and 16 million operations, so 164,000 and 128,000 cycles, of which
// some pass at the same time: 94 to 167 us on an H100 at 1.75 GHz, 66 to 117 on an L40S at 2.5 GHz, for one row as for 132 or
// 142. Greedy: 16,000 cycles, so 9.4 and 6.6 us.
#include "gpu.cuh"

constexpr uint32_t kNone = ~0u;
constexpr uint32_t kBins = 2048, kTopMax = 128;
// What a row asks for.
constexpr uint32_t kScore = 1, kGreedy = 2, kLogprobs = 4, kNucleus = 8, kMasked = 16;
// Of an edit, beside how often the output has the token.
constexpr uint32_t kBiased = 1u << 31, kSeen = 1u << 30, kBanned = 1u << 29, kCount = kBanned - 1;

// A change of one logit. Those of a row are in order of tokens; several of one token are made one after the other.
struct Edit {
  uint32_t token;
  float bias;  // of a token's first edit, once it is made: the logit as it was
  uint32_t marks;
};

struct SampleRow {
  uint64_t share;    // where in the sum of weights the token lies, in 2^-64 of it
  uint64_t nucleus;  // top_p, in 2^-64
  float temperature, min_p, repetition, frequency, presence;
  uint32_t top_k;  // or 0
  uint32_t flags;
  uint32_t token;                   // that is scored
  uint32_t first_edit, edits;       // among all edits
  uint32_t first_word, words;       // of the mask
  uint32_t slot;                    // of the weights, or none: in place of the logits
  uint32_t top, first_top;          // how many of the best are listed, and where
  uint32_t pad;
};

struct Sampled {
  uint32_t token;  // or none
  uint32_t rank;
  float max, chosen;  // logits
  uint64_t sum;       // of e^(logit - max), in 2^-43
  uint32_t top;       // entries of the list
  uint32_t pad;
};

struct Listed {
  uint32_t token;
  float logit;
};

struct SampleArgs {
  float* logits;  // [rows, vocab], which become scratch space
  const SampleRow* rows;
  Edit* edits;
  const uint32_t* masks;
  float* weights;    // [slots, vocab]
  Sampled* sampled;  // [rows]
  Listed* listed;
  uint32_t vocab, pad;
};

DEVICE float minus_infinity() { return from_bits(0xff800000u); }

// Neither a NaN nor plus infinity.
DEVICE float sound(float x) {
  if (x != x) return minus_infinity();
  return x > from_bits(0x7f7fffffu) ? from_bits(0x7f7fffffu) : x;
}

// Lower for the greater number; the two zeros have one.
DEVICE uint32_t key_of(float x) {
  uint32_t bits = bits_of(__fadd_rn(x, 0.0f));
  return bits >> 31 ? bits : ~bits & 0x7fffffffu;
}
DEVICE float value_of(uint32_t key) { return from_bits(key >> 31 ? key : ~key & 0x7fffffffu); }
// The key of minus infinity: better ones may be chosen.
constexpr uint32_t kExcluded = 0xff800000u;

// What is not worse than the last of some best tokens.
struct Cut {
  uint32_t key, token;
  uint64_t amount;  // of all of them
  DEVICE bool keeps(uint32_t other_key, uint32_t other) const {
    return other_key < key || (other_key == key && other <= token);
  }
};

// A block's shared memory.
struct Room {
  uint64_t* bins;  // [kBins]
  uint64_t* sums;  // [32]
  uint64_t* list;  // [kTopMax]
  uint32_t* len;
};

DEVICE Room room() {
  auto at = static_cast<uint64_t*>(shared());
  return {at, at + kBins, at + kBins + 32, reinterpret_cast<uint32_t*>(at + kBins + 32 + kTopMax)};
}

DEVICE uint64_t shuffle_xor_64(uint64_t x, int mask) {
  uint32_t low = shuffle_xor(uint32_t(x), mask), high = shuffle_xor(uint32_t(x >> 32), mask);
  return uint64_t(high) << 32 | low;
}

DEVICE uint64_t warp_total(uint64_t x) {
  for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor_64(x, mask);
  return x;
}

// Of numbers of all threads the sum, and the least.
DEVICE uint64_t block_total(uint64_t x, uint64_t* sums) {
  x = warp_total(x);
  sync_block();
  if (lane() == 0) sums[warp()] = x;
  sync_block();
  uint64_t total = 0;
  for (uint32_t i = 0; i < blockDim.x / 32; ++i) total += sums[i];
  return total;
}
DEVICE uint64_t block_least(uint64_t x, uint64_t* least) {
  for (int mask = 16; mask > 0; mask /= 2) {
    uint64_t other = shuffle_xor_64(x, mask);
    x = other < x ? other : x;
  }
  sync_block();
  if (lane() == 0) least[warp()] = x;
  sync_block();
  x = least[0];
  for (uint32_t i = 1; i < blockDim.x / 32; ++i) x = least[i] < x ? least[i] : x;
  return x;
}

// The first of `len` places up to which the amounts are more than `point`, of which is left what goes into that place; all
// amounts are more than `point` together.
template <class Amount> DEVICE uint32_t walk(uint32_t len, uint64_t& point, uint64_t* sums, const Amount& amount) {
  uint32_t begin = 0, warps = blockDim.x / 32;
  while (len > 32) {
    uint32_t span = (len + 32 * warps - 1) / (32 * warps) * 32;
    uint32_t from = warp() * span, to = from + span < len ? from + span : len;
    uint64_t sum = 0;
#pragma unroll 4
    for (uint32_t i = from + lane(); i < to; i += 32) sum += amount(begin + i);
    sum = warp_total(sum);
    sync_block();
    if (lane() == 0) sums[warp()] = sum;
    sync_block();
    uint32_t part = 0;
    while (part + 1 < warps && point >= sums[part]) point -= sums[part++];
    begin += part * span;
    len = len - part * span < span ? len - part * span : span;
  }
  for (uint64_t here; --len > 0 && point >= (here = amount(begin)); ++begin) point -= here;
  return begin;
}

DEVICE void clear_bins(const Room& room) {
  sync_block();
  for (uint32_t i = threadIdx.x; i < kBins; i += blockDim.x) room.bins[i] = 0;
  sync_block();
}

// The best tokens whose amounts are more than `point` together, as few as possible. `entries` gives a token's key and amount, and
// the amount of every token of a key that has any; all amounts are more than `point`.
template <class Entries> DEVICE Cut select_best(const Entries& entries, uint32_t len, uint64_t point, const Room& room) {
  uint64_t target = point;
  uint32_t key = 0;
  for (uint32_t above = 32, shift = 21;;) {
    clear_bins(room);
#pragma unroll 4
    for (uint32_t token = threadIdx.x; token < len; token += blockDim.x) {
      uint32_t own = entries.key(token);
      bool near = above == 32 || (own ^ key) >> above == 0;
      uint64_t amount = near ? entries.amount(own) : 0;
      if (amount != 0) add_atomic(&room.bins[own >> shift & ((1u << (above - shift)) - 1)], amount);
    }
    sync_block();
    key |= walk(kBins, point, room.sums, [&](uint32_t bin) { return room.bins[bin]; }) << shift;
    if (shift == 0) break;
    above = shift, shift = shift == 21 ? 10 : 0;
  }
  // Equal keys are all of the last bin: the lowest tokens of them.
  uint64_t amount = entries.amount(key), before = target - point, equals = room.bins[key & 1023] / amount, last = point / amount;
  Cut cut = {key, kNone, before + (last + 1) * amount};
  if (last + 1 < equals)
    cut.token = walk(len, last, room.sums, [&](uint32_t token) { return uint64_t(entries.key(token) == key); });
  return cut;
}

// Logits as they may be chosen from.
struct Logits {
  const float* at;
  const uint32_t* mask;  // or null
  uint32_t words;
  DEVICE uint32_t key(uint32_t token) const { return key_of((*this)[token]); }
  DEVICE float operator[](uint32_t token) const {
    float x = sound(at[token]);
    if (mask == nullptr) return x;
    bool allowed = token / 32 < words && (mask[token / 32] >> token % 32 & 1) != 0;
    return allowed ? x : minus_infinity();
  }
};

// The best token of a row, and of a thread's share of it.
struct Best {
  uint64_t token;  // behind its key
  uint32_t count;  // tokens that are not excluded
  uint32_t threads, own;
};

DEVICE Best best_of(const Logits& logits, uint32_t vocab, const Room& room) {
  uint32_t own = kNone, at = 0, count = 0;
#pragma unroll 8
  for (uint32_t token = threadIdx.x; token < vocab; token += blockDim.x) {
    uint32_t key = logits.key(token);
    if (key < kExcluded) ++count;
    if (key < kExcluded && key < own) own = key, at = token;
  }
  uint64_t token = block_least(uint64_t(own) << 32 | at, room.sums);
  uint64_t counts = block_total(uint64_t(own != kNone) << 32 | count, room.sums);
  return {token, uint32_t(counts), uint32_t(counts >> 32), own};
}

// Each token that is not excluded counts one.
struct Counted {
  Logits logits;
  uint32_t last_bin;
  DEVICE uint32_t key(uint32_t token) const { return logits.key(token); }
  DEVICE uint64_t amount(uint32_t key) const { return key < kExcluded && key >> 21 <= last_bin; }
};

// The `count` best tokens, of which there are as many.
DEVICE Cut best_tokens(const Logits& logits, const Best& best, uint32_t count, uint32_t vocab, const Room& room) {
  // Where `count` threads have a token that good, no worse one is among the best: few are left to be counted, which would else be
  // in few bins.
  uint32_t last_bin = kBins - 1;
  if (count <= best.threads) {
    clear_bins(room);
    if (best.own != kNone) add_atomic(&room.bins[best.own >> 21], uint64_t(1));
    sync_block();
    uint64_t point = count - 1;
    last_bin = walk(kBins, point, room.sums, [&](uint32_t bin) { return room.bins[bin]; });
  }
  return select_best(Counted{logits, last_bin}, vocab, count - 1, room);
}

// e^x for x of at most 0, as the host computes it (softmax.rs).
DEVICE float weight_of(float x) {
  constexpr float kUnderflow = -87.0f, kRound = 12582912.0f, kLog2e = 1.44269504f, kHigh = 0.693359375f, kLow = -2.12194442e-4f;
  float clamped = x > kUnderflow ? x : kUnderflow;
  float shifted = __fadd_rn(__fmul_rn(clamped, kLog2e), kRound), whole = __fadd_rn(shifted, -kRound);
  float rest = __fadd_rn(__fadd_rn(clamped, -__fmul_rn(whole, kHigh)), -__fmul_rn(whole, kLow));
  float sum = 1.0f / 5040;
  for (float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    sum = __fadd_rn(__fmul_rn(sum, rest), coefficient);
  uint32_t exponent = bits_of(shifted) - bits_of(kRound) + 127;
  return x < kUnderflow ? 0 : __fmul_rn(sum, from_bits(exponent << 23));
}

// A weight in 2^-43.
DEVICE uint64_t fixed(float weight) { return uint64_t(__fmul_rn(weight, 8796093022208.0f)); }

// Weights relative to the best token's, of what is kept; their sum.
DEVICE uint64_t weigh(const Logits& logits, const Cut& cut, float max, const SampleRow& row, float* weights, uint32_t vocab,
                      const Room& room) {
  uint64_t sum = 0;
  // Some threads may still look for the cut in the logits, whose place weights take.
  sync_block();
#pragma unroll 2
  for (uint32_t token = threadIdx.x; token < vocab; token += blockDim.x) {
    float x = logits[token];
    float weight = cut.keeps(key_of(x), token) ? weight_of(__fadd_rn(x, -max) / row.temperature) : 0;
    if (weight < row.min_p) weight = 0;
    weights[token] = weight;
    sum += fixed(weight);
  }
  return block_total(sum, room.sums);
}

// Tokens count their weight; those that hold less than `least` are not needed.
struct Weighed {
  const float* weights;
  uint64_t least;
  DEVICE uint32_t key(uint32_t token) const { return key_of(weights[token]); }
  DEVICE uint64_t amount(uint32_t key) const {
    uint64_t amount = fixed(value_of(key));
    return amount >= least ? amount : 0;
  }
};

// The fewest best tokens that hold the share `nucleus` of `total`, and one at least.
DEVICE Cut nucleus_of(const float* weights, uint64_t total, uint64_t nucleus, uint32_t vocab, const Room& room) {
  uint64_t target = high_product(nucleus, total) + (nucleus * total != 0);
  // All tokens below an equal part of what may be dropped hold less than that.
  uint64_t least = (total - target) / vocab;
  return select_best(Weighed{weights, least}, vocab, target > 0 ? target - 1 : 0, room);
}

// Makes a row's edits, or takes them back.
DEVICE void edit(float* logits, Edit* edits, const SampleRow& row, bool back) {
  for (uint32_t i = threadIdx.x; i < row.edits; i += blockDim.x) {
    uint32_t token = edits[i].token;
    if (i > 0 && edits[i - 1].token == token) continue;
    float before = logits[token], x = sound(before);
    if (back) {
      logits[token] = edits[i].bias;
      continue;
    }
    for (uint32_t j = i; j < row.edits && edits[j].token == token; ++j) {
      uint32_t marks = edits[j].marks, count = marks & kCount;
      if (marks & kBiased) x = sound(__fadd_rn(x, edits[j].bias));
      if (marks & kSeen) x = sound(x > 0 ? x / row.repetition : __fmul_rn(x, row.repetition));
      if (count > 0) x = sound(__fadd_rn(__fadd_rn(x, -__fmul_rn(row.frequency, float(count))), -row.presence));
      if (marks & kBanned) x = minus_infinity();
    }
    edits[i].bias = before;
    logits[token] = x;
  }
  sync_block();
}

// The next token, or none where all are excluded.
DEVICE uint32_t choose(const SampleArgs& a, const SampleRow& row, const Logits& logits, const Best& best, float* weights,
                       const Room& room) {
  if (best.count == 0) return kNone;
  if (row.flags & kGreedy) return uint32_t(best.token);
  Cut cut = {kNone, kNone, 0};
  if (row.top_k > 0 && row.top_k < best.count) cut = best_tokens(logits, best, row.top_k, a.vocab, room);
  float max = value_of(uint32_t(best.token >> 32));
  uint64_t total = weigh(logits, cut, max, row, weights, a.vocab, room);
  cut = {kNone, kNone, total};
  if (row.flags & kNucleus) cut = nucleus_of(weights, total, row.nucleus, a.vocab, room);
  uint64_t point = high_product(row.share, cut.amount);
  return walk(a.vocab, point, room.sums, [&](uint32_t token) {
    float weight = weights[token];
    return cut.keeps(key_of(weight), token) ? fixed(weight) : 0;
  });
}

// The best tokens in order. Each is put where as many others are better.
DEVICE uint32_t list_best(const SampleArgs& a, const SampleRow& row, const Logits& logits, const Best& best, const Room& room) {
  uint32_t count = row.top < best.count ? row.top : best.count;
  if (count == 0) return 0;
  Cut cut = best_tokens(logits, best, count, a.vocab, room);
  if (threadIdx.x == 0) *room.len = 0;
  sync_block();
#pragma unroll 4
  for (uint32_t token = threadIdx.x; token < a.vocab; token += blockDim.x) {
    uint32_t key = logits.key(token);
    if (key < kExcluded && cut.keeps(key, token)) room.list[add_atomic(room.len, 1u)] = uint64_t(key) << 32 | token;
  }
  sync_block();
  for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
    uint32_t place = 0;
    for (uint32_t j = 0; j < count; ++j) place += room.list[j] < room.list[i];
    a.listed[row.first_top + place] = {uint32_t(room.list[i]), value_of(uint32_t(room.list[i] >> 32))};
  }
  return count;
}

// What is told of a token: its place among all, and what its probability is made of.
DEVICE Sampled rate(const SampleArgs& a, const SampleRow& row, const Logits& logits, const Best& best, uint32_t token,
                    const Room& room) {
  float max = value_of(uint32_t(best.token >> 32)), chosen = token < a.vocab ? logits[token] : minus_infinity();
  Cut own = {key_of(chosen), token, 0};
  uint64_t sum = 0, rank = 0;
#pragma unroll 2
  for (uint32_t other = threadIdx.x; other < a.vocab; other += blockDim.x) {
    float x = logits[other];
    sum += fixed(weight_of(__fadd_rn(x, -max)));
    rank += own.keeps(key_of(x), other);
  }
  sum = block_total(sum, room.sums);
  rank = block_total(rank, room.sums);
  // One behind the vocabulary has not counted itself.
  if (token >= a.vocab) ++rank;
  return {token, uint32_t(rank), max, chosen, sum, list_best(a, row, logits, best, room), 0};
}

KERNEL(sample, SampleArgs, 1024) {
  const SampleRow& row = a.rows[blockIdx.x];
  float* at = a.logits + uint64_t(blockIdx.x) * a.vocab;
  Room rooms = room();
  Logits raw = {at, nullptr, 0};
  Best best = best_of(raw, a.vocab, rooms);
  uint32_t token = kNone;
  if (best.count > 0 && row.flags & kScore) token = row.token;
  else if (best.count > 0) {
    Edit* edits = a.edits + row.first_edit;
    edit(at, edits, row, false);
    Logits edited = {at, row.flags & kMasked ? a.masks + row.first_word : nullptr, row.words};
    bool same = row.edits == 0 && !(row.flags & kMasked);
    float* weights = row.slot == kNone ? at : a.weights + uint64_t(row.slot) * a.vocab;
    token = choose(a, row, edited, same ? best : best_of(edited, a.vocab, rooms), weights, rooms);
    if (row.flags & kLogprobs) sync_block(), edit(at, edits, row, true);
  }
  Sampled sampled = {token, 0, 0, 0, 0, 0, 0};
  if (token != kNone && row.flags & kLogprobs) sampled = rate(a, row, raw, best, token, rooms);
  if (threadIdx.x == 0) a.sampled[blockIdx.x] = sampled;
}
