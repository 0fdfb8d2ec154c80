//! Random draws as a pure function of seed and position: no state to carry, save or replay.
//!
//! The mixing function is SplitMix64's finaliser (Steele, Lea, Flood: "Fast splittable pseudorandom number
//! generators", 2014), applied twice: once to spread the seed, once to the seed's stream at the position.

/// The odd constant of the golden ratio, SplitMix64's increment.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A bijection on 64 bits in which every input bit flips every output bit with a probability near one half.
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// 64 random bits for this position of this seed.
pub fn draw(seed: u64, position: u64) -> u64 {
    let stream = mix(seed.wrapping_add(GAMMA));
    mix(stream.wrapping_add(position.wrapping_add(1).wrapping_mul(GAMMA)))
}

/// A number in [0, 1), a multiple of 2^-53, for this position of this seed.
pub fn uniform(seed: u64, position: u64) -> f64 {
    let bits = draw(seed, position) >> 11;
    bits as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// The seed of sequence `index` of a request. Index 0 keeps the request's seed, so that asking for more sequences
/// doesn't change the first.
pub fn sequence_seed(seed: u64, index: usize) -> u64 {
    if index == 0 {
        seed
    } else {
        draw(!seed, index as u64)
    }
}
