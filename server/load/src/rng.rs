//! Random numbers that a seed and a name give, the same on every machine.

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

/// What random numbers are for. Each use has numbers of its own, so that one more draw of one changes no other.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub(crate) enum Use {
    Prompt = 1,
    Prefix,
    Block,
    Length,
    Arrivals,
    Cancellations,
    Bootstrap,
    Order,
}

/// The generator of the `index`th thing of a kind.
pub(crate) fn of(seed: u64, used: Use, index: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ (used as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    rng.set_stream(index);
    rng
}
