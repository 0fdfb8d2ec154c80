//! The simulator: a seed gives an engine, a model and a history of requests, aborts, deadlines, faults and full
//! queues; every step is checked against what each request gives alone. The same seed gives the same run.

mod language;
mod runner;
mod traffic;
mod world;

use std::fmt;

use thiserror::Error;

pub use runner::{Alone, FakeError, FakeModel, FakeRunner, Fault};

use crate::rng;
use world::World;

/// A run that broke a promise. [`run`] with the same seed and at least as many steps breaks it again.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("seed {seed}, step {step}: {message}")]
pub struct Failure {
    pub seed: u64,
    pub step: usize,
    pub message: String,
}

macro_rules! summary {
    ($($(#[$doc:meta])* $field:ident,)*) => {
        /// What happened in one run or, added up, in many.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Summary { $($(#[$doc])* pub $field: u64,)* }

        impl Summary {
            /// Every count with its name.
            pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field)),*].into_iter()
            }
        }

        impl std::ops::AddAssign for Summary {
            fn add_assign(&mut self, other: Self) {
                $(self.$field += other.$field;)*
            }
        }
    };
}

summary! {
    runs,
    steps,
    /// Steps with nothing to compute.
    idle_steps,
    requests,
    sequences,
    /// Requests refused because the queue was full.
    refused_queue,
    /// Requests refused because their flow filled its part of the queue.
    refused_flow,
    /// Requests refused because they could never be served.
    refused_size,
    prefill_tokens,
    decode_tokens,
    /// Tokens guessed ahead, and those of them that were right.
    drafted_tokens,
    accepted_tokens,
    /// Of those that were right, the ones from a prediction.
    predicted_tokens,
    /// Steps that found no memory, and were computed again in smaller ones.
    short_steps,
    /// Steps whose prefill was limited for the sake of those that decode.
    limited_steps,
    preemptions,
    /// Those of them in steps in which another flow's sequence started.
    giving_steps,
    cache_query_tokens,
    cache_hit_tokens,
    /// Sequences other than the first of their request that found its blocks.
    sibling_hits,
    /// Sequences whose prompt was scored.
    scored,
    tokens,
    stopped,
    /// Sequences whose grammar allowed nothing more.
    completed,
    /// Sequences whose grammar had no token to go on with.
    stuck,
    full_length,
    aborted,
    expired,
    /// Sequences that failed with their step.
    failed_steps,
    /// Sequences that failed alone, for logits without a choice.
    failed_rows,
    runner_errors,
    runner_panics,
}

impl Summary {
    /// What never happened: a run, or many, that left any of these out has not tested it.
    pub fn uncovered(&self) -> Vec<&'static str> {
        self.counts()
            .filter(|(_, count)| *count == 0)
            .map(|(name, _)| name)
            .collect()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts()
            .try_for_each(|(name, count)| writeln!(f, "{count:>14} {name}"))
    }
}

/// Random numbers for the simulator itself.
#[derive(Debug)]
struct Dice {
    seed: u64,
    drawn: u64,
}

impl Dice {
    fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    fn bits(&mut self) -> u64 {
        self.drawn += 1;
        rng::draw(self.seed, self.drawn)
    }

    /// From `low` to `high`, both possible.
    fn range(&mut self, low: usize, high: usize) -> usize {
        low + (self.bits() % (high - low + 1) as u64) as usize
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.bits().is_multiple_of(count)
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.range(0, choices.len() - 1)]
    }
}

/// Runs `steps` steps under load, then until everything has ended.
///
/// # Panics
/// If the engine finds its own state unsound.
pub fn run(seed: u64, steps: usize) -> Result<Summary, Failure> {
    let mut world = World::new(seed);
    let result = (0..steps)
        .try_for_each(|_| world.step(true))
        .and_then(|()| world.drain());
    match result {
        Ok(()) => Ok(world.summary()),
        Err(message) => Err(Failure {
            seed,
            step: world.steps_taken(),
            message,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two hundred seeds; `cargo xtask sim` runs more.
    #[test]
    fn sim_seeds() {
        let mut total = Summary::default();
        for seed in 0..200 {
            match run(seed, 500) {
                Ok(summary) => total += summary,
                Err(failure) => panic!("{failure}"),
            }
        }
        assert_eq!(total.uncovered(), Vec::<&str>::new(), "{total}");
    }

    #[test]
    fn a_seed_replays() {
        assert_eq!(run(42, 200), run(42, 200));
    }
}
