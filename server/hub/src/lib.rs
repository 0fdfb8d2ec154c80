//! Where models come from, and what proves that they are what they claim to be.
//!
//! - [`reference`]: what a user may name: a catalogue name, `hf:organisation/name[@revision][:file]`, a path.
//! - [`catalogue`]: the short names, with licence, revision and checksum.
//! - [`manifest`]: the SHA-256 of every file, written by a pull and verified at every load. No network.
//! - [`store`]: the folders models live in, and the way from a name to what a loader opens. No network.

pub mod catalogue;
pub mod digest;
pub mod manifest;
pub mod progress;
pub mod pull;
pub mod reference;
pub mod store;
