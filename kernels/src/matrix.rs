//! A weight matrix in the format of its file, without a copy.

use std::ops::Range;

use bytes::Bytes;

use crate::{Error, Format, cpu::scalar};

/// Weights `[rows, cols]`, row-major, each row a whole number of blocks. Cloning shares the bytes, which may be a
/// memory map.
#[derive(Debug, Clone)]
pub struct Matrix {
    format: Format,
    rows: usize,
    cols: usize,
    bytes: Bytes,
}

impl Matrix {
    /// A matrix over `bytes`, whose length must be exactly that of `rows` rows of `cols` weights.
    pub fn new(format: Format, rows: usize, cols: usize, bytes: Bytes) -> Result<Self, Error> {
        if !cols.is_multiple_of(format.block_len()) {
            return Err(Error::PartialBlock { format, cols });
        }
        let expected = (cols / format.block_len())
            .checked_mul(format.block_bytes())
            .and_then(|row| row.checked_mul(rows))
            .filter(|_| {
                rows.checked_mul(cols)
                    .is_some_and(|weights| weights <= isize::MAX as usize / 4)
            })
            .ok_or(Error::TooLarge { format, rows, cols })?;
        if bytes.len() != expected {
            return Err(Error::Length {
                format,
                rows,
                cols,
                expected,
                actual: bytes.len(),
            });
        }
        Ok(Self {
            format,
            rows,
            cols,
            bytes,
        })
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows: outputs of a linear layer, entries of an embedding.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Weights of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All rows, as in the file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes from one row to the next.
    pub fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.cols)
    }

    /// The bytes of some rows; panics where there are none.
    pub fn rows_bytes(&self, rows: Range<usize>) -> &[u8] {
        &self.bytes[rows.start * self.row_bytes()..rows.end * self.row_bytes()]
    }

    /// All weights as `f32`, row-major; for tests and small tensors.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut weights = vec![0.0; self.rows * self.cols];
        scalar::dequantize(self.format, &self.bytes, &mut weights);
        weights
    }

    /// The rows named by `permutation`, in its order, copied whole; panics on a row that does not exist.
    #[must_use]
    pub fn select_rows(&self, permutation: &[u32]) -> Self {
        let bytes: Vec<u8> = permutation
            .iter()
            .map(|&row| row as usize)
            .flat_map(|row| self.rows_bytes(row..row + 1))
            .copied()
            .collect();
        Self {
            format: self.format,
            rows: permutation.len(),
            cols: self.cols,
            bytes: bytes.into(),
        }
    }
}
