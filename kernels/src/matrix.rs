//! A weight matrix in the format of its file, without a copy.

use std::ops::Range;

use bytes::Bytes;

use crate::{Error, Format, Pages, cpu::scalar};

/// Bytes of a file that are in memory at once, beside the columns that were copied of the others.
const SLAB_BYTES: usize = 16 << 20;

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

    /// Some of the rows, sharing the bytes.
    pub fn slice_rows(&self, rows: Range<usize>) -> Result<Self, Error> {
        if rows.start > rows.end || rows.end > self.rows {
            return Err(Error::Row {
                row: rows.end,
                rows: self.rows,
            });
        }
        let bytes = rows.start * self.row_bytes()..rows.end * self.row_bytes();
        Ok(Self {
            rows: rows.len(),
            bytes: self.bytes.slice(bytes),
            ..self.clone()
        })
    }

    /// Some of the columns, whole blocks of them, copied unless they are all there are. Whoever holds the bytes is told which
    /// are read.
    pub fn copy_columns(&self, columns: Range<usize>, pages: &dyn Pages) -> Result<Self, Error> {
        if columns == (0..self.cols) {
            return Ok(self.clone());
        }
        let block = self.format.block_len();
        let whole = columns.start.is_multiple_of(block) && columns.end.is_multiple_of(block);
        if !whole || columns.start > columns.end || columns.end > self.cols {
            return Err(Error::Columns {
                format: self.format,
                columns,
                cols: self.cols,
            });
        }
        let part = self.format.row_bytes(columns.start)..self.format.row_bytes(columns.end);
        let mut bytes = Vec::with_capacity(self.rows * part.len());
        let each = (SLAB_BYTES / self.row_bytes().max(1)).max(1);
        for first in (0..self.rows).step_by(each) {
            let slab = self.rows_bytes(first..(first + each).min(self.rows));
            pages.ahead(slab);
            for row in slab.chunks_exact(self.row_bytes()) {
                bytes.extend_from_slice(&row[part.clone()]);
            }
            pages.done(slab);
        }
        Ok(Self {
            cols: columns.len(),
            bytes: bytes.into(),
            ..self.clone()
        })
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// What is told of the bytes that are read: how many, and whether they are done with.
    #[derive(Default)]
    struct Told(RefCell<Vec<(usize, bool)>>);

    impl Pages for Told {
        fn ahead(&self, bytes: &[u8]) {
            self.0.borrow_mut().push((bytes.len(), false));
        }
        fn done(&self, bytes: &[u8]) {
            self.0.borrow_mut().push((bytes.len(), true));
        }
    }

    /// Scales that are numbers, and codes that differ from block to block.
    fn matrix(format: Format, rows: usize, cols: usize) -> Matrix {
        let bytes: Vec<u8> = (0..rows * format.row_bytes(cols))
            .map(|i| (i * 37 % 61) as u8)
            .collect();
        Matrix::new(format, rows, cols, bytes.into()).unwrap()
    }

    #[test]
    fn parts_hold_the_weights_of_their_rows_and_columns() {
        for format in Format::ALL {
            let (rows, blocks) = (5, 4);
            let block = format.block_len();
            let cols = blocks * block;
            let whole = matrix(format, rows, cols);
            let weights = whole.dequantize();
            for (start, end) in [(0, 4), (0, 1), (1, 3), (3, 4), (2, 2)] {
                let columns = start * block..end * block;
                let told = Told::default();
                let part = whole.copy_columns(columns.clone(), &told).unwrap();
                let expected: Vec<u32> = weights
                    .chunks(cols)
                    .flat_map(|row| row[columns.clone()].iter().map(|x| x.to_bits()))
                    .collect();
                let found: Vec<u32> = part.dequantize().iter().map(|x| x.to_bits()).collect();
                assert_eq!(found, expected, "{format:?} {columns:?}");
                let read = whole.bytes().len();
                // All of it is itself, and read when it is used.
                let expected = if columns.len() == cols {
                    vec![]
                } else {
                    vec![(read, false), (read, true)]
                };
                assert_eq!(told.0.into_inner(), expected);
            }
            let part = whole.slice_rows(1..4).unwrap();
            assert_eq!(part.bytes(), whole.rows_bytes(1..4));
            assert_eq!(
                part.bytes().as_ptr(),
                whole.rows_bytes(1..4).as_ptr(),
                "without a copy"
            );
        }
    }

    #[test]
    fn parts_that_are_not_there_are_refused() {
        let matrix = matrix(Format::Q4K, 2, 512);
        let resident = crate::packed::Resident;
        for columns in [0..32, 128..256, 0..768, 256..(1 << 60)] {
            let error = matrix.copy_columns(columns, &resident).unwrap_err();
            assert!(error.to_string().contains("blocks of 256"), "{error}");
        }
        assert!(matrix.slice_rows(1..3).is_err());
    }
}
