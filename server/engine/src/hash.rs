//! The key of a cached block: a keyed 128-bit hash of everything up to and including its tokens.
//!
//! The round function is SipHash's (Aumasson, Bernstein 2012), with one round per word and three at the end, and
//! two outputs. A hit is verified against the tokens themselves, so a collision costs a miss and nothing else; the
//! secret key keeps clients from making collisions on purpose.

use crate::request::Token;
use crate::rng::mix;

/// Chained: the key of a block depends on the keys before it.
pub(crate) type BlockKey = u128;

/// Who may find a block again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Salt {
    /// Every request that was given this salt.
    Shared(u64),
    /// The sequences of one request (the number of its first sequence).
    Private(u64),
}

/// Hashes under one secret.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hasher {
    secret: [u64; 2],
}

impl Hasher {
    pub(crate) fn new(secret: u64) -> Self {
        Self {
            secret: [mix(secret), mix(secret ^ 0x5bd1_e995_7b7d_159f)],
        }
    }

    /// The key before the first block.
    pub(crate) fn root(&self, salt: Salt) -> BlockKey {
        let (domain, value) = match salt {
            Salt::Shared(value) => (1, value),
            Salt::Private(value) => (2, value),
        };
        let mut state = State::new(self.secret);
        state.absorb(domain);
        state.absorb(value);
        state.finish()
    }

    /// The key of a block of these tokens after `parent`.
    pub(crate) fn chain(&self, parent: BlockKey, tokens: &[Token]) -> BlockKey {
        let mut state = State::new(self.secret);
        state.absorb(parent as u64);
        state.absorb((parent >> 64) as u64);
        for pair in tokens.chunks(2) {
            let high = pair.get(1).map_or(u64::from(u32::MAX), |token| u64::from(*token));
            state.absorb(u64::from(pair[0]) | high << 32);
        }
        state.absorb(tokens.len() as u64);
        state.finish()
    }
}

struct State([u64; 4]);

impl State {
    fn new([k0, k1]: [u64; 2]) -> Self {
        Self([
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ])
    }

    fn absorb(&mut self, word: u64) {
        self.0[3] ^= word;
        self.round();
        self.0[0] ^= word;
    }

    fn round(&mut self) {
        let [a, b, c, d] = &mut self.0;
        *a = a.wrapping_add(*b);
        *c = c.wrapping_add(*d);
        *b = b.rotate_left(13) ^ *a;
        *d = d.rotate_left(16) ^ *c;
        *a = a.rotate_left(32);
        *c = c.wrapping_add(*b);
        *a = a.wrapping_add(*d);
        *b = b.rotate_left(17) ^ *c;
        *d = d.rotate_left(21) ^ *a;
        *c = c.rotate_left(32);
    }

    fn half(&mut self, marker: u64) -> u64 {
        self.0[2] ^= marker;
        for _ in 0..3 {
            self.round();
        }
        self.0[0] ^ self.0[1] ^ self.0[2] ^ self.0[3]
    }

    fn finish(mut self) -> u128 {
        let low = self.half(0xee);
        let high = self.half(0xdd);
        u128::from(high) << 64 | u128::from(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the paper's appendix: SipHash-2-4 of the bytes 0 to 14 under the key 0 to 15.
    #[test]
    fn the_round_is_that_of_siphash() {
        let mut state = State::new([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]);
        for word in [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908] {
            state.0[3] ^= word;
            state.round();
            state.round();
            state.0[0] ^= word;
        }
        state.0[2] ^= 0xff;
        (0..4).for_each(|_| state.round());
        assert_eq!(
            state.0.into_iter().fold(0, |all, word| all ^ word),
            0xa129_ca61_49be_45e5
        );
    }

    /// Computed from the description at the top by a separate program, which gives the paper's example too.
    #[test]
    fn keys_are_what_the_description_says() {
        let hasher = Hasher::new(0x4d);
        let root = hasher.root(Salt::Shared(7));
        assert_eq!(root, 0xe167_6c29_4c31_aabf_9d43_2d76_9e0b_8bfe);
        let private = hasher.root(Salt::Private(7));
        assert_eq!(private, 0x2fe4_b7c9_660b_97a3_d60a_59a0_6b82_25aa);
        let first = hasher.chain(root, &[3, 1, 4, 1, 5]);
        assert_eq!(first, 0x7474_0698_90ea_47ec_09c3_b7b6_8064_1c72);
        let second = hasher.chain(first, &[0, u32::MAX]);
        assert_eq!(second, 0x613d_bff5_467e_9cd9_662b_4ac3_5946_0ea9);
    }

    #[test]
    fn everything_that_goes_in_matters() {
        let hasher = Hasher::new(1);
        let roots = [
            hasher.root(Salt::Shared(0)),
            hasher.root(Salt::Shared(1)),
            hasher.root(Salt::Private(0)),
            hasher.root(Salt::Private(1)),
            Hasher::new(2).root(Salt::Shared(0)),
        ];
        let texts: [&[Token]; 10] = [
            &[],
            &[0],
            &[0, 0],
            &[0, 1],
            &[1, 0],
            &[1, 1],
            &[0, 0, 0],
            &[u32::MAX],
            &[0, u32::MAX],
            &[1, 0, 0],
        ];
        let mut keys: Vec<BlockKey> = roots.to_vec();
        for root in roots {
            keys.extend(texts.iter().map(|text| hasher.chain(root, text)));
            keys.push(hasher.chain(hasher.chain(root, &[0, 0]), &[0, 1]));
            keys.push(hasher.chain(hasher.chain(root, &[0, 1]), &[0, 0]));
        }
        let halves: std::collections::BTreeSet<u64> = keys
            .iter()
            .flat_map(|key| [*key as u64, (*key >> 64) as u64])
            .collect();
        assert_eq!(halves.len(), keys.len() * 2, "every half of every key is another");
    }

    /// Every input bit flips about half of the output bits.
    #[test]
    fn inputs_avalanche() {
        let hasher = Hasher::new(0x4d);
        let text = [3, 1, 4, 1, 5];
        let base = hasher.chain(0x1234, &text);
        let flipped = |key: BlockKey| (key ^ base).count_ones();
        let parents = (0..128).map(|bit| flipped(hasher.chain(0x1234 ^ 1 << bit, &text)));
        let tokens = (0..160).map(|bit| {
            let mut text = text;
            text[bit / 32] ^= 1 << (bit % 32);
            flipped(hasher.chain(0x1234, &text))
        });
        let secrets = (0..64).map(|bit| flipped(Hasher::new(0x4d ^ 1 << bit).chain(0x1234, &text)));
        let all: Vec<u32> = parents.chain(tokens).chain(secrets).collect();
        assert!(all.iter().all(|bits| (36..92).contains(bits)), "{all:?}");
        let mean = f64::from(all.iter().sum::<u32>()) / all.len() as f64;
        assert!((mean - 64.0).abs() < 1.0, "{mean}");
    }
}
