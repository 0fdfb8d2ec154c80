//! The server as its clients see it, on a small model whose every token is known.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

mod administration;
mod api;
mod canary;
mod certified;
mod chat;
mod cli;
mod completions;
mod encoders;
mod engine;
mod errors;
mod formats;
mod keys;
mod lasting;
mod lifecycle;
mod limits;
mod logins;
mod messages;
mod numbers;
mod oidc;
mod openapi;
mod organization;
mod others;
mod prompts;
mod reasoning;
mod responses;
mod sockets;
mod support;
mod text;
mod tls;
mod tls_files;
mod tools;
mod usage;
