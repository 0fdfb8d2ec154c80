//! What is kept in a file and on a server, as one program: each by itself would compile the drivers' code again.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[macro_use]
mod support;

mod backup;
mod census;
mod content;
mod content_proof;
mod file;
mod leases;
mod people;
mod retention;
mod store;
mod tokens;
mod usage;
