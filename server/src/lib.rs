//! Rempart: an inference server with an OpenAI-compatible endpoint. The binary is a thin shell over this library.
#![forbid(unsafe_code)]

pub mod access;
pub mod anthropic;
pub mod certificate;
mod cgroup;
pub mod chat;
pub mod checkpoints;
pub mod cli;
pub mod config;
pub mod denials;
pub mod egress;
pub mod encoder;
pub mod encoder_thread;
pub mod engine_thread;
pub mod grammar;
pub mod http;
pub mod ledger;
pub mod metrics;
pub mod model;
pub mod oidc;
pub mod openai;
pub mod openapi;
pub mod prices;
mod process;
pub mod registry;
pub mod report;
pub mod response_store;
pub mod retention;
mod runner;
pub mod served_model;
pub mod shutdown;
pub mod telemetry;
pub mod traces;
pub mod turns;
pub mod warm_up;
