//! Which tokens run next: tokens in, tokens out. No clock, no thread, no I/O, no model.
//!
//! [`Engine`] owns a [`ModelRunner`] and takes one step at a time: schedule, forward, sample, apply. Time is an
//! argument, randomness is keyed by seed and position, so a run is a function of its inputs and the simulator
//! in [`sim`] can replay any of them from a seed.
#![forbid(unsafe_code)]

mod apply;
pub mod batch;
mod blocks;
mod config;
mod constraint;
mod draft;
mod engine;
mod flows;
mod hash;
mod integrity;
mod lifecycle;
mod memory;
mod plan;
mod report;
mod request;
pub mod rng;
mod runner;
pub mod sampling;
mod scheduler;
mod sequence;
mod shares;
pub mod sim;
mod turns;

pub use batch::{Batch, Row, SampleKind, SampleRow};
pub use config::{ConfigError, EngineConfig};
pub use constraint::{Advance, Constraint, Grammar, SharedGrammar, Then, TokenMask};
pub use engine::Engine;
pub use report::{FlowStats, Queued, Stats, StepReport};
pub use request::{
    AddError, Event, FLOW_WEIGHT_MAX, Finish, Flow, Logprob, Logprobs, Output, Predicted, Request, RequestId,
    SEQUENCES_PER_REQUEST_MAX, Sampled, SamplingParams, SeqId, StopRules, Token,
};
pub use runner::ModelRunner;
