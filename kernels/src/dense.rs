//! Floating-point weights in panels, which a tile of sums reads from front to back: what encoders multiply by.
//!
//! A decoder reads its weights for a row or two, and memory is what bounds it; an encoder's products have hundreds of rows,
//! and arithmetic is.

use std::ops::Range;

use half::bf16;

use crate::{
    Matrix,
    cpu::{Output, scalar},
    packed::Memory,
    pool,
};

/// Outputs of a panel.
pub(crate) const PANEL: usize = 32;

/// How weights are kept and their inputs rounded; sums are `f32`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Weights and inputs are rounded to eight bits of mantissa: half the memory, and twice as fast where the processor has
    /// instructions for it.
    #[default]
    Bf16,
    /// Nothing is rounded.
    F32,
}

/// A matrix `[rows, cols]` in panels of 32 rows, the last one filled up with zeros.
///
/// A panel is a sequence of lines of 32 words, one of each row: its element in `f32`, or two consecutive ones in bf16, the
/// first in the lower half.
#[derive(Debug)]
pub struct Dense {
    words: Memory,
    rows: usize,
    cols: usize,
    precision: Precision,
}

impl Dense {
    /// Packs the rows of matrices of one width, one below the other, on all threads. Panics where widths differ.
    pub fn pack(matrices: &[&Matrix], precision: Precision) -> Self {
        let cols = matrices.first().map_or(0, |matrix| matrix.cols());
        assert!(
            matrices.iter().all(|matrix| matrix.cols() == cols),
            "matrices of one product have different widths"
        );
        let rows: usize = matrices.iter().map(|matrix| matrix.rows()).sum();
        let mut dense = Self {
            words: Memory::default(),
            rows,
            cols,
            precision,
        };
        let (panels, words) = (dense.panels(), dense.lines() * PANEL);
        dense.words = Memory::zeroed(panels * words * size_of::<u32>());
        let out = Output::new(dense.words.words_mut());
        pool::run(panels, |panel| {
            let rows = panel * PANEL..((panel + 1) * PANEL).min(rows);
            // SAFETY: panels do not overlap.
            let panel = unsafe { out.slice(panel * words, words) };
            fill(panel, matrices, rows, precision);
        });
        dense
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }

    pub(crate) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Lines of a panel.
    pub(crate) fn lines(&self) -> usize {
        match self.precision {
            Precision::Bf16 => self.cols.div_ceil(2),
            Precision::F32 => self.cols,
        }
    }

    pub(crate) fn panel(&self, panel: usize) -> &[u32] {
        let words = self.lines() * PANEL;
        &self.words.words()[panel * words..][..words]
    }

    /// Outputs of one panel: 32, or what is left for the last one.
    pub(crate) fn panel_rows(&self, panel: usize) -> usize {
        (self.rows - panel * PANEL).min(PANEL)
    }
}

/// Fills a panel of zeros with `rows`, counted over all matrices.
fn fill(panel: &mut [u32], matrices: &[&Matrix], rows: Range<usize>, precision: Precision) {
    let mut first = 0;
    let mut row = Vec::new();
    for matrix in matrices {
        row.resize(matrix.cols(), 0.0);
        for r in rows.start.max(first)..rows.end.min(first + matrix.rows()) {
            let bytes = matrix.rows_bytes(r - first..r - first + 1);
            scalar::dequantize(matrix.format(), bytes, &mut row);
            let column = r - rows.start;
            match precision {
                Precision::F32 => {
                    for (line, x) in row.iter().enumerate() {
                        panel[line * PANEL + column] = x.to_bits();
                    }
                }
                Precision::Bf16 => {
                    for (line, x) in row.chunks(2).enumerate() {
                        panel[line * PANEL + column] = pair(x[0], x.get(1).copied().unwrap_or(0.0));
                    }
                }
            }
        }
        first += matrix.rows();
    }
}

/// Two numbers rounded to bf16 in a word, the first in the lower half.
pub(crate) fn pair(a: f32, b: f32) -> u32 {
    u32::from(bf16::from_f32(a).to_bits()) | u32::from(bf16::from_f32(b).to_bits()) << 16
}
