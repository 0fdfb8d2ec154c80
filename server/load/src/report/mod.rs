//! What a run is told by: JSON, CSV, a page, and a table for a terminal. None of it holds a prompt, an answer or a key.

mod chart;
mod json;
mod page;
mod table;

pub(crate) use json::{Baseline, objects};
pub(crate) use page::page;
pub(crate) use table::{csv, terminal};

use crate::baseline::Compared;
use crate::machine::Machine;
use crate::measure::Measured;
use crate::options::LoadArgs;
use crate::plan::Plan;

/// What all forms of a report are made of.
pub(crate) struct Report<'a> {
    pub args: &'a LoadArgs,
    pub about: About,
    pub measured: &'a Measured,
    /// For each step what the comparison with the baseline gave; empty where there is none.
    pub compared: &'a [Vec<Compared>],
    pub baseline: Option<&'a Baseline>,
}

/// What a run was, as far as results tell it.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub machine: Machine,
    pub seed: u64,
    /// The host and port that were measured.
    pub target: String,
    pub workload: serde_json::Map<String, serde_json::Value>,
}

impl About {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            machine: Machine::this(),
            seed: plan.seed,
            target: plan.target.authority().to_owned(),
            workload: plan.workload.clone(),
        }
    }
}

/// Spreadsheets would compute what begins like this.
fn no_formula(text: &str) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']) {
        format!("'{text}")
    } else {
        text.to_owned()
    }
}
