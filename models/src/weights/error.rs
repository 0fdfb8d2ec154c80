//! Why a checkpoint, or a tensor of it, cannot be used.

use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

/// Characters of a name or value from a file that an error message repeats.
const SHOWN_CHARS_MAX: usize = 96;

/// Why weights could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried, as a verb.
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file breaks a rule of its format or one of our limits.
    #[error("{}: {refusal}", path.display())]
    Refused {
        /// The file or directory.
        path: PathBuf,
        /// The rule that it breaks.
        refusal: Refusal,
    },
    /// The model needs a tensor that the checkpoint lacks.
    #[error("{}: tensor {tensor} is missing", path.display())]
    Missing {
        /// The file or directory.
        path: PathBuf,
        /// Hugging Face name of the tensor.
        tensor: String,
    },
    /// A tensor has another shape than the model's configuration says.
    #[error("{}: tensor {tensor} has shape {found:?}, the model's configuration needs {expected:?}", path.display())]
    Shape {
        /// The file or directory.
        path: PathBuf,
        /// Hugging Face name, and the file's own name where that differs.
        tensor: String,
        /// Row-major.
        expected: Vec<usize>,
        /// Row-major.
        found: Vec<usize>,
    },
    /// A tensor's bytes do not make a matrix.
    #[error("{}: tensor {tensor}: {source}", path.display())]
    Matrix {
        /// The file or directory.
        path: PathBuf,
        /// Hugging Face name, and the file's own name where that differs.
        tensor: String,
        /// The kernels' reason.
        source: rempart_kernels::Error,
    },
    /// The checkpoint holds tensors that the model does not know, so it is not the model that its configuration says.
    #[error("{}: {count} tensors are not part of this model: {}", path.display(), names.join(", "))]
    Leftover {
        /// The file or directory.
        path: PathBuf,
        /// All of them.
        count: usize,
        /// The first few, by name.
        names: Vec<String>,
    },
}

impl Error {
    pub(super) fn io(path: &Path, action: &'static str, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_path_buf(),
            action,
            source,
        }
    }
}

/// A rule that a file breaks: the field, what it holds and what it may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The field of the file's format, with the tensor or key that it belongs to.
    pub field: String,
    /// What the file says there.
    pub found: String,
    /// What it may say.
    pub rule: String,
}

impl Refusal {
    pub(super) fn new(field: impl Into<String>, found: impl Display, rule: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            found: found.to_string(),
            rule: rule.into(),
        }
    }

    /// Puts the part of the file that the field belongs to before it.
    pub(super) fn within(self, part: impl Display) -> Self {
        Self {
            field: format!("{part}: {}", self.field),
            ..self
        }
    }

    pub(super) fn of(self, path: &Path) -> Error {
        Error::Refused {
            path: path.to_path_buf(),
            refusal: self,
        }
    }
}

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: found {}, {}", self.field, self.found, self.rule)
    }
}

/// Text from a file as a message may show it: no control characters, and not longer than a line.
pub(super) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for character in text.chars().take(SHOWN_CHARS_MAX) {
        match character {
            '\'' | '"' => shown.push(character),
            _ => shown.extend(character.escape_debug()),
        }
    }
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}
