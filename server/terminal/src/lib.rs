//! What a person at a terminal sees of a server: `rempart top`, a live view of its metrics, and `rempart chat`.
//!
//! `top`: pages of metrics are read (`exposition`) into `sample`s; two of them make an `interval` of rates and percentiles;
//! `table` makes rows of those, which `draw` shows on a screen and `once` prints. `usage` asks what projects have used.
//! `chat`: `commands` or text are typed; an `answer` is streamed into the `conversation`, through `visible`.

#![forbid(unsafe_code)]

mod chat;
mod color;
mod models;
mod top;
mod visible;

pub use chat::{ChatArgs, Outcome, run as chat};
pub use top::{TopArgs, run as top};

/// What servers see of who asks.
const AGENT: &str = concat!("rempart/", env!("CARGO_PKG_VERSION"));
