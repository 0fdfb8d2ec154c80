//! An HTTP client for what a person at a terminal asks of an OpenAI-compatible server (`rempart bench`, `top`, `chat` and
//! `support-bundle`), and for what hands traces on.
//!
//! A [`Target`] is made of the options; a [`Client`] asks it, one request on a connection, and gives a document or the events of
//! a stream. The load generator, which keeps times of its own, drives [`Connection`]s itself.
//!
//! Nothing here prints a key or a text, and no serving code may name this crate: `cargo xtask tidy` sees to that.

#![forbid(unsafe_code)]

mod arrival;
mod client;
mod connection;
mod failure;
mod limits;
mod options;
mod sse;
mod target;

pub use client::{Begun, Client, Document};
pub use connection::{Connection, Sender, next, whole};
pub use failure::{Failure, ServerError};
pub use limits::{ERROR_BYTES_MAX, Patience, STREAM_BYTES_MAX, seconds};
pub use options::{AccessArgs, HeaderArgs, PatienceArgs, ServerArgs};
pub use sse::{Events, TooLong};
pub use target::{Accept, Secret, Target, Trust};
