//! What an operator hands on of a server: `rempart support-bundle`, an archive for who is to help, without anything confidential.
//!
//! A [`Bundle`] is given files by the command, and gets further ones by itself: what the `machine` is like, what a running server
//! answers (`asked`), and lines of its `log`. Each passes a `sieve` before it goes into the archive (`tar`).

#![forbid(unsafe_code)]

mod bundle;

pub use bundle::{Bundle, BundleArgs, Maker};

/// What servers see of who asks.
const AGENT: &str = concat!("rempart/", env!("CARGO_PKG_VERSION"));
