//! By what results tell data apart that they must not hold.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// SHA-256 of texts, each behind its length, and of numbers. What is added in a fixed order is thus not mistaken for anything else.
#[derive(Default)]
pub(crate) struct Digest(Sha256);

impl Digest {
    pub(crate) fn of(text: &str) -> String {
        let mut digest = Self::default();
        digest.text(text);
        digest.hex()
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text);
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
