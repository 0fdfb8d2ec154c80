//! What an operator hands on of a server: `rempart support-bundle`, an archive for who is to help, without anything confidential, and
//! `rempart traces send`, its traces to a collector ([`send_traces`]).
//!
//! A [`Bundle`] is given files by the command, and gets further ones by itself: what the `machine` is like, what a running server
//! answers (`asked`), and lines of its `log`. Each passes a `sieve` before it goes into the archive (`tar`).

#![forbid(unsafe_code)]

mod bundle;
mod traces;

pub use bundle::{Bundle, BundleArgs, Maker};
pub use traces::{TracesSendArgs, send as send_traces};

/// What servers see of who asks.
const AGENT: &str = concat!("rempart/", env!("CARGO_PKG_VERSION"));
