//! Where models come from, and what proves that they are what they claim to be.
//!
//! - [`reference`](mod@reference): what a user may name: a catalogue name, `hf:organisation/name[@revision][:file]`, a path.
//! - [`catalogue`]: the short names, with licence, revision and checksum.
//! - [`manifest`]: the SHA-256 of every file, written by a pull and verified at every load. No network.
//! - [`signature`]: who vouches for a model: OpenSSF model signatures, made and checked. No network.
//! - [`report`]: what a check found, file by file.
//! - [`store`]: the folders models live in, and the way from a name to what a loader opens. No network.
//! - [`pull`](mod@pull): from a hub into the store. The only module of the workspace with an HTTP client for the outside.
//! - [`file`](mod@file): how files are opened and written that others may have put something else in the place of.
//! - [`progress`]: what the above report while they work, and its display on a terminal.
//!
//! # Pulling
//!
//! ```text
//! rempart pull smollm2-135m-instruct                          a catalogue name
//! rempart pull hf:Qwen/Qwen3-0.6B                             a safetensors model, at `main`
//! rempart pull hf:Qwen/Qwen3-0.6B-GGUF:Qwen3-0.6B-Q8_0.gguf   one GGUF of several
//! rempart pull hf:org/name@0123abc…                           a branch, tag or commit
//! ```
//!
//! Of a repository come the one GGUF, or `config.json`, `generation_config.json`, `tokenizer.json`,
//! `tokenizer_config.json`, `chat_template.jinja` and the safetensors with their index; pickled weights (`.bin`, `.pt`,
//! `.pkl`) run code when read and are refused. Several GGUFs without a choice are an error that lists them.
//!
//! A pull that was interrupted goes on at the byte where it stopped. Every file is compared with what the hub declares
//! (the SHA-256 of LFS files, the git object id of the others) and with the catalogue. The environment of the program
//! decides where from: `HF_ENDPOINT` (a mirror), `HF_TOKEN` (private and gated models), `HF_HUB_OFFLINE` (the cache
//! only), `HF_HOME` or `HF_HUB_CACHE` (the cache); the server's configuration reads them, this crate takes arguments.
//!
//! # On disk
//!
//! ```text
//! ~/.cache/huggingface/hub/            the cache, laid out as `huggingface_hub` does and shared with it
//! $XDG_DATA_HOME/rempart/models/       the store (given by the caller)
//!   smollm2-135m-instruct/             a catalogue name,
//!   Qwen--Qwen3-0.6B/                  or organisation--name,
//!   org--name-GGUF--name-Q4_K_M/       and the file's stem where one was named
//!     name-Q4_K_M.gguf
//!     rempart-manifest.json            written last: a folder with a manifest is complete
//! ```
//!
//! The store's files share their content with the cache by hard links where both lie on one file system, and are copies
//! otherwise: either may be deleted without the other. A name holds one revision; pulling another replaces the folder
//! in one step, and a server that has the old one mapped keeps it.
//!
//! # Logs
//!
//! hf-hub and xet log addresses, which storage may have signed: a program that installs a `tracing` subscriber keeps
//! the targets `hf_hub` and `xet*` off.

pub mod catalogue;
pub mod digest;
pub mod file;
mod hashing;
pub mod manifest;
pub mod progress;
pub mod pull;
pub mod reference;
pub mod report;
pub mod signature;
pub mod store;
