//! By what results tell data apart that they must not hold.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// SHA-256 of parts, each behind its length, so that no other parts have the same.
#[derive(Default)]
pub(crate) struct Digest(Sha256);

impl Digest {
    pub(crate) fn add(&mut self, part: &[u8]) {
        self.number(part.len() as u64);
        self.0.update(part);
    }

    pub(crate) fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    pub(crate) fn hex(self) -> String {
        self.0.finalize().iter().fold(String::new(), |mut text, byte| {
            // Writing to a text can't fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}
