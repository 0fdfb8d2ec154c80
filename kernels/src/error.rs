//! What can be wrong with a weight matrix.

use std::ops::Range;

use crate::Format;

/// Why bytes cannot be a weight matrix. The sizes come from a file, so nothing here is a bug of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A row is not a whole number of blocks.
    #[error("a row of {cols} {} weights is not a multiple of the block of {}", .format.name(), .format.block_len())]
    PartialBlock { format: Format, cols: usize },
    /// The product of rows and bytes per row exceeds the address space.
    #[error("a {} matrix of {rows} x {cols} is too large", .format.name())]
    TooLarge {
        format: Format,
        rows: usize,
        cols: usize,
    },
    /// The bytes are more or fewer than the shape says.
    #[error("a {} matrix of {rows} x {cols} takes {expected} bytes, got {actual}", .format.name())]
    Length {
        format: Format,
        rows: usize,
        cols: usize,
        expected: usize,
        actual: usize,
    },
    /// Selected columns do not exist, or are no whole number of blocks.
    #[error("columns {columns:?} of {cols} are not whole {} blocks of {}", .format.name(), .format.block_len())]
    Columns {
        format: Format,
        columns: Range<usize>,
        cols: usize,
    },
    /// A selected row does not exist.
    #[error("row {row} is not below {rows}")]
    Row { row: usize, rows: usize },
}
