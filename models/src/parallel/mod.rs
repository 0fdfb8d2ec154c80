//! One model on several ranks (tensor parallelism, arXiv:1909.08053): what of it each has, and what they tell each other.
//!
//! A rank has some of attention's heads, some columns of the feed-forward part, some rows of the embedding and of the head,
//! and computes with them what a whole model would. Where a product's inputs are spread over the ranks, their results are
//! added up ([`Collective::all_reduce`]); the logits' columns are put side by side ([`Collective::all_gather`]).

mod in_process;
#[cfg(feature = "nccl")]
mod nccl;
mod process;
mod shard;

use std::fmt::Debug;

use candle_core::Tensor;

pub use in_process::InProcess;
#[cfg(feature = "nccl")]
pub use nccl::Nccl;
pub use process::{Processes, StepInput};
pub use shard::{Heads, RANKS_MAX, Shard};

use crate::Result;

/// Why a model cannot be divided, or its ranks no longer compute together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no such rank.
    #[error(
        "rank {rank} of {of} does not exist: there are 1 to {} ranks, numbered from 0",
        RANKS_MAX
    )]
    Rank {
        /// Its number.
        rank: usize,
        /// How many there are.
        of: usize,
    },
    /// Something of the model has no part for each rank.
    #[error("{what} cannot be divided among {of} ranks: {reason}; {}", fitting(.fit))]
    Indivisible {
        /// A tensor, or a number of the configuration.
        what: String,
        /// How many ranks there are.
        of: usize,
        /// What stands in the way.
        reason: String,
        /// Numbers of ranks that it can be divided among.
        fit: Vec<usize>,
    },
    /// A rank is gone, late or has failed, and with it all of them.
    #[error("the ranks compute together no longer: {0}")]
    Stopped(String),
}

/// How the ranks of one model exchange what they have computed. All of them make the same calls in the same order; what
/// they get is the same, bit by bit, on each.
///
/// After an error every later call fails at once: ranks that missed a call would add up what does not belong together.
pub trait Collective: Debug + Send + Sync {
    /// Which part of the model this rank has.
    fn shard(&self) -> Shard;

    /// Puts the sum of all ranks' `x`, f32 of one shape, in place of each, added in the order of ranks.
    ///
    /// # Errors
    /// When another rank has another shape, is gone, or is late.
    fn all_reduce(&self, x: &Tensor) -> Result<()>;

    /// Puts the columns of all ranks' `x` side by side, in the order of ranks: each has its [`Shard::part`] of `columns`,
    /// f32 `[n, part]`, and all get `[n, columns]`.
    ///
    /// # Errors
    /// As [`Collective::all_reduce`].
    fn all_gather(&self, x: Tensor, columns: usize) -> Result<Tensor>;

    /// Tells the other ranks that this one has failed, so that they need not wait for it.
    fn stop(&self, reason: &str);
}

/// The one rank of a model that is not divided: nothing is exchanged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Single;

impl Collective for Single {
    fn shard(&self) -> Shard {
        Shard::WHOLE
    }

    fn all_reduce(&self, _x: &Tensor) -> Result<()> {
        Ok(())
    }

    fn all_gather(&self, x: Tensor, _columns: usize) -> Result<Tensor> {
        Ok(x)
    }

    /// A step that failed is the only thing that has.
    fn stop(&self, _reason: &str) {}
}

fn fitting(degrees: &[usize]) -> String {
    match degrees {
        [] | [1] => "it fits one rank alone".to_owned(),
        degrees => {
            let degrees: Vec<String> = degrees.iter().map(usize::to_string).collect();
            format!("it fits {} ranks", degrees.join(", "))
        }
    }
}
