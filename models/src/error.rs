//! What can be wrong with a model's files or with a batch.

use crate::{parallel, weights};

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint's own file is refused.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// The configuration is missing something, or holds a value outside its limits.
    #[error("{file}: {message}")]
    Config {
        /// The file, or "GGUF metadata".
        file: String,
        /// What is wrong: field, value, limit.
        message: String,
    },
    /// A model family this version does not know.
    #[error("architecture '{0}' is not supported; known are llama, mistral, qwen2, qwen3 and gemma3")]
    UnsupportedArchitecture(String),
    /// An encoder family this version does not know.
    #[error("encoder '{0}' is not supported; known are bert, roberta, xlm-roberta, camembert and modernbert")]
    UnsupportedEncoder(String),
    /// A batch that the model cannot take.
    #[error("{0}")]
    Input(String),
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The plan needs more memory than there is.
    #[error("{0}")]
    DoesNotFit(String),
    /// The model cannot be divided among its ranks, or these compute together no longer.
    #[error(transparent)]
    Parallel(#[from] parallel::Error),
    /// A tensor operation failed: a bug of ours or a device that ran out of memory.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A kernel refused its arguments.
    #[error("kernel: {0}")]
    Kernel(#[from] rempart_kernels::Error),
}

impl Error {
    /// Whether the device had no memory for what was computed.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Tensor(error) if rempart_kernels::is_out_of_memory(error))
    }

    pub(crate) fn config(file: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Config {
            file: file.into(),
            message: message.into(),
        }
    }
}
