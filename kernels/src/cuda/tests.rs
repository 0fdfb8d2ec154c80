//! Every kernel against the plain arithmetic, on random shapes: on the host in four orders of its threads, and on a card
//! where there is one.

#![allow(
    clippy::allow_attributes,
    clippy::many_single_char_names,
    clippy::needless_range_loop,
    clippy::unwrap_used,
    non_snake_case,
    reason = "a test fails by panicking, names shapes and indices as papers do, and is named as its kernel is"
)]

mod attention;
mod block;
#[path = "../../tests/common/mod.rs"]
mod common;
mod dense;
mod kv_int8;
mod machine;
mod packed;
mod rope;
mod round;
mod sample;

/// Random shapes for each kernel.
const CASES: u64 = 200;

/// Fewer of them where the environment says so: to find faults that were planted, few are enough.
fn cases() -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "tests are told in the environment how long to try"
    )]
    let wanted = std::env::var("REMPART_KERNEL_CASES");
    wanted.map_or(CASES, |cases| cases.parse().unwrap())
}

/// For each kernel a test on the host and, with the feature, on a card: `case(machine, seed)` starts it and looks at what it
/// made.
macro_rules! kernels {
    ($($kernel:ident: $case:expr;)*) => {
        pub(super) const KERNELS: &[&str] = &[$(stringify!($kernel)),*];

        mod host {
            use super::*;
            $(#[test]
            fn $kernel() {
                super::super::machine::prove_on_host(stringify!($kernel), $case);
            })*
        }

        #[cfg(feature = "cuda")]
        mod card {
            use super::*;
            $(#[test]
            fn $kernel() {
                super::super::machine::prove_on_card($case);
            })*
        }
    };
}
use kernels;

/// A test of `$case(machine, seed)` that holds for several kernels at once, as above; on the host each case has one order.
macro_rules! on_every_machine {
    ($($case:ident),*) => {
        $(mod $case {
            #[test]
            fn host() {
                for seed in 0..super::super::cases() {
                    super::$case(&super::super::machine::Host::in_order(seed as u32 % 4), seed);
                }
            }

            #[cfg(feature = "cuda")]
            #[test]
            fn card() {
                super::super::machine::prove_on_card(super::$case);
            }
        })*
    };
}
use on_every_machine;

/// What is compiled is tested, and nothing else.
#[test]
fn every_kernel_has_a_test() {
    let mut tested: Vec<String> = [
        attention::KERNELS,
        block::KERNELS,
        dense::KERNELS,
        rope::KERNELS,
        round::KERNELS,
        sample::KERNELS,
    ]
    .concat()
    .into_iter()
    .map(str::to_owned)
    .chain(packed::kernels())
    .collect();
    tested.sort();
    let compiled: Vec<String> = rempart_simt::kernels()
        .into_iter()
        .map(|kernel| kernel.name)
        .collect();
    assert_eq!(tested, compiled);
}
