//! Every kernel against the plain arithmetic, on random shapes: on the host in four orders of its threads, and on a card
//! where there is one.

#![allow(
    clippy::allow_attributes,
    clippy::many_single_char_names,
    clippy::needless_range_loop,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and names shapes and indices as papers do"
)]

mod attention;
mod block;
#[path = "../../tests/common/mod.rs"]
mod common;
mod machine;
mod packed;

/// Random shapes for each test.
const CASES: u64 = 200;

/// A test of `$case(machine, seed)` on the host and, with the feature, on a card.
macro_rules! on_every_machine {
    ($($case:ident),*) => {
        $(mod $case {
            #[test]
            fn host() {
                for seed in 0..super::super::CASES {
                    super::$case(&super::super::machine::Host { order: seed as u32 % 4 }, seed);
                }
            }

            #[cfg(feature = "cuda")]
            #[test]
            fn card() {
                let card = super::super::machine::Card::first();
                for seed in 0..super::super::CASES {
                    super::$case(&card, seed);
                }
            }
        })*
    };
}
use on_every_machine;
