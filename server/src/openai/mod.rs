//! The wire: what OpenAI's clients send and expect, and nothing else.
//!
//! Requests are read field by field instead of derived, because a derived reader quotes the offending value in its
//! errors, stops at numbers that JSON allows and `f64` does not, and ignores the fields it does not know.

pub mod administration;
pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod format;
pub mod json;
pub mod logprobs;
pub mod messages;
pub mod prediction;
pub mod prompted;
pub mod rank;
pub mod reasoning;
pub mod responses;
pub mod shared;
pub mod tokenize;
pub mod tools;
pub mod usage;
