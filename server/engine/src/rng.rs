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

#[cfg(test)]
mod tests {
    use super::*;

    /// The first outputs of the reference `SplitMix64` from the state 1234567.
    #[test]
    fn mix_is_split_mix_64() {
        let output = |step: u64| mix(1_234_567_u64.wrapping_add(step.wrapping_mul(GAMMA)));
        assert_eq!(output(1), 6_457_827_717_110_365_317);
        assert_eq!(output(2), 3_203_168_211_198_807_973);
        assert_eq!(output(3), 9_817_491_932_198_370_423);
    }

    #[test]
    fn draws_are_the_stream_of_the_mixed_seed() {
        let state = mix(99_u64.wrapping_add(GAMMA));
        assert_eq!(draw(99, 0), mix(state.wrapping_add(GAMMA)));
        assert_eq!(draw(99, 4), mix(state.wrapping_add(GAMMA.wrapping_mul(5))));
        assert_ne!(draw(0, 0), draw(0, u64::MAX - 1));
    }

    #[test]
    fn uniform_fills_the_unit_interval() {
        let draws: Vec<f64> = (0..10_000).map(|position| uniform(5, position)).collect();
        assert!(draws.iter().all(|draw| (0.0..1.0).contains(draw)));
        let mean = draws.iter().sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert!(draws.iter().any(|draw| *draw < 0.001) && draws.iter().any(|draw| *draw > 0.999));
    }

    #[test]
    fn sequences_of_a_request_have_seeds_of_their_own() {
        assert_eq!(sequence_seed(3, 0), 3);
        assert_eq!(sequence_seed(3, 2), draw(!3, 2));
        let seeds: std::collections::BTreeSet<u64> = (0..100)
            .flat_map(|seed| (0..100).map(move |index| sequence_seed(seed, index)))
            .collect();
        assert_eq!(seeds.len(), 10_000);
    }
}
