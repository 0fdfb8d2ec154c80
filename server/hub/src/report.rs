//! What the comparison of a model's files with a list of them found, and the name that a list gives the model.

use std::fmt;

use crate::digest::{Hasher, Sha256};

/// The result of a comparison.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Files that are as they should be.
    pub files: usize,
    /// Their length together.
    pub bytes: u64,
    /// All that is not, ordered by path.
    pub differences: Vec<Difference>,
}

/// A file that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Relative to the model's folder.
    pub path: String,
    pub how: How,
}

/// What is wrong with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Missing,
    /// It is there, and the list doesn't have it.
    Unknown,
    Size {
        expected: u64,
        bytes: u64,
    },
    Content {
        expected: Sha256,
        sha256: Sha256,
    },
    /// A piece that begins at this byte has another SHA-256.
    Piece {
        start: u64,
    },
    /// The pieces that the list has are not the whole file.
    Holes,
    /// A link, where only files were signed.
    Link,
    /// The signature leaves it out, and a server would load it.
    LeftOut,
}

impl Report {
    pub(crate) fn add(&mut self, path: &str, how: How) {
        let path = path.to_owned();
        self.differences.push(Difference { path, how });
    }

    pub(crate) fn same(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

impl Difference {
    /// What is wrong in one word.
    pub fn word(&self) -> &'static str {
        match self.how {
            How::Missing => "missing",
            How::Unknown => "unknown",
            How::Size { .. } | How::Content { .. } | How::Piece { .. } => "differs",
            How::Holes | How::LeftOut => "unsigned",
            How::Link => "link",
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The name may be a stranger's.
        write!(f, "`{}`", self.path.escape_debug())?;
        match self.how {
            How::Missing => write!(f, " is missing"),
            How::Unknown => write!(f, " is there, and not in the list"),
            How::Size { expected, bytes } => write!(f, " is {bytes} bytes long instead of {expected}"),
            How::Content { expected, sha256 } => write!(f, " has the SHA-256 {sha256} instead of {expected}"),
            How::Piece { start } => write!(f, " has other bytes in its piece that begins at byte {start}"),
            How::Holes => write!(f, " is not signed in whole"),
            How::Link => write!(f, " is a link, and what was signed had none"),
            How::LeftOut => write!(f, " was left out by who signed, and a server would load it"),
        }
    }
}

/// The SHA-256 that names a model: of the binary SHA-256 of all its files, one after the other, ordered by path as lists of
/// components. A signature has it as the digest of its subject (OpenSSF model signing 1.0).
pub fn root<'a>(files: impl IntoIterator<Item = (&'a str, Sha256)>) -> Sha256 {
    let mut files: Vec<_> = files.into_iter().collect();
    files.sort_by(|(a, _), (b, _)| a.split('/').cmp(b.split('/')));
    let mut hasher = Hasher::default();
    for (_, sha256) in files {
        hasher.update(sha256.as_bytes());
    }
    hasher.finish()
}

/// Characters of what a reader says of a text.
const SAID_CHARS_MAX: usize = 200;

/// What a reader of a file says of it, in brief: it quotes what it has read, however long that is.
pub(crate) fn in_brief(error: &impl fmt::Display) -> String {
    let said = error.to_string();
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    said.chars().take(SAID_CHARS_MAX).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_comes_before_a_name_that_its_own_begins() {
        let (a, b) = (Sha256::of(b"a"), Sha256::of(b"b"));
        let expected = Sha256::of(&[*a.as_bytes(), *b.as_bytes()].concat());
        assert_eq!(
            root([("a.b", b), ("a/b", a)]),
            expected,
            "although `.` is less than `/`"
        );
        assert_eq!(root([("a/b", a), ("a.b", b)]), expected);
    }
}
