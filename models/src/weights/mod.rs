//! Reads model weights from GGUF and safetensors files that nobody vouches for.
//!
//! Every header is validated here, before any other library sees it: sizes, counts, types and ranges are checked
//! against named limits and against the file's real length, nothing is allocated by a number the file claims, and
//! every refusal names the field, what was found and what is allowed. Tensor bytes are slices of a read-only memory
//! map and are never copied on the way in.
//!
//! [`Checkpoint`] is one view over both formats, under Hugging Face tensor names; [`Weights`] walks it by path, so
//! that a model's definition never says which format it came from.

mod checkpoint;
mod cursor;
mod error;
pub mod gguf;
mod mapping;
pub mod safetensors;

use bytes::Bytes;
use rempart_kernels::Format;

pub use checkpoint::{Checkpoint, Source};
pub use cursor::{Part, Progress, Weights};
pub use error::{Error, Refusal};

/// A tensor as it lies in its file.
#[derive(Clone, Debug)]
pub struct TensorEntry {
    /// How the elements are encoded.
    pub format: Format,
    /// Row-major: the last dimension is the contiguous one. Empty for a scalar. No dimension is zero.
    pub shape: Vec<usize>,
    /// Exactly the tensor's encoded bytes, a slice of the memory map. They start where the file puts them, so they
    /// may be aligned to a single byte.
    pub bytes: Bytes,
}

/// Encoded size of `shape` in `format`, or what is wrong with the shape.
///
/// `shape` is row-major. Quantised formats encode whole blocks along the last dimension.
fn encoded_bytes(format: Format, shape: &[usize]) -> Result<usize, Refusal> {
    let rule = |rule: String| Refusal::new("shape", ShapeText(shape), rule);
    if shape.contains(&0) {
        return Err(rule("every dimension must be at least 1".into()));
    }
    let columns = shape.last().copied().unwrap_or(1);
    if !columns.is_multiple_of(format.block_len()) {
        let name = format.name();
        return Err(rule(format!(
            "{name} needs rows that are a multiple of {} elements",
            format.block_len()
        )));
    }
    let elements = shape
        .iter()
        .try_fold(1_usize, |product, &size| product.checked_mul(size));
    elements
        .map(|elements| elements / format.block_len())
        .and_then(|blocks| blocks.checked_mul(format.block_bytes()))
        .ok_or_else(|| rule("its size in bytes must fit in 64 bits".into()))
}

/// Shows a shape as `[576, 192]`.
struct ShapeText<'a>(&'a [usize]);

impl std::fmt::Display for ShapeText<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
