//! What a run comes to, for whoever started it.

use std::process::ExitCode;

/// How a run ended, and the exit status that tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// 0: measured; every condition holds, and nothing is worse than the baseline.
    Good,
    /// 4: worse than the baseline, beyond noise.
    Regression,
    /// 3: a condition of `--slo` does not hold.
    SloMissed,
}

/// 1: nothing could be measured. Clap takes 2 for options that can't be read.
pub const COULD_NOT_RUN: u8 = 1;

impl Outcome {
    pub fn status(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::SloMissed => 3,
            Self::Regression => 4,
        }
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(outcome.status())
    }
}
