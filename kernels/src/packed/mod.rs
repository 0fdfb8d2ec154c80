//! Quantised weights in the layout of the integer kernels, made once at load.
//!
//! Sixteen rows make a panel. Along a panel's rows 32 weights make a group, whose codes fill lines of 64 bytes: line `j`
//! holds the codes `4j..4j + 4` of row 0, then of row 1, to row 15, which is what one dot-product instruction of four
//! bytes in each 32-bit lane takes (VNNI), and what a tile of AMX is loaded from. Narrow codes share lines; see
//! [`Bits`]. Nothing is lost: a code and its scales give the bits of the weight that the file's format defines.

mod codes;
mod memory;
mod pack;
pub(crate) mod unpack;

use std::sync::Arc;

use crate::{Format, Matrix};
pub(crate) use memory::Memory;
pub use pack::Pages;
pub(crate) use pack::Resident;

/// Rows of a panel.
pub(crate) const PANEL: usize = 16;
/// Weights of a group.
pub(crate) const GROUP: usize = 32;
/// Bytes of a line: four codes of each of a panel's rows.
pub(crate) const LINE: usize = 4 * PANEL;
/// Lines of a group whose codes take a byte each.
pub(crate) const LINES: usize = GROUP / 4;

/// How activations are rounded before they meet integer weights: whole numbers of a scale that 32 of them share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activations {
    /// 8 bits: an error of 0.4 % of the largest of the 32 at most.
    #[default]
    Int8,
    /// 16 bits, as two digits of 8: an error of 0.0016 % of the largest at most. Twice the arithmetic, but no more
    /// weights to read, so it costs little where memory is the limit.
    Int16,
}

/// How wide codes are and how a group's lines hold them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bits {
    /// Four lines: line `j` in the low nibbles, line `j + 4` in the high ones.
    Four,
    /// As four bits, and a line whose bit `j` is the fifth bit of line `j`.
    Five,
    /// As four bits, and two lines whose bit pairs are the upper bits of lines 0 to 3 and 4 to 7.
    Six,
    /// Eight lines.
    Eight,
}

impl Bits {
    /// Bytes of a group of a panel.
    pub(crate) const fn group_bytes(self) -> usize {
        LINE * match self {
            Self::Four => 4,
            Self::Five => 5,
            Self::Six => 6,
            Self::Eight => 8,
        }
    }
}

/// What makes weights of codes: `scale * (code - offset)`, or `scale * code + minimum`. Scales lie in a stream of their
/// own beside the panel's codes, one record for each block of the file's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scales {
    /// An f16 for each row.
    Half { offset: i32 },
    /// An f16 scale for each row, then an f16 minimum.
    HalfMin,
    /// For 256 weights: f16 scales, f16 minima, then for each of `parts` runs of weights the rows' bytes that multiply
    /// the scales, and those that multiply the minima, which are subtracted.
    Super { parts: usize },
    /// For 256 weights: f16 scales, then for each run of 16 the rows' signed bytes that multiply them.
    Signed { offset: i32 },
}

impl Scales {
    /// Bytes of a record of a panel.
    pub(crate) const fn record_bytes(self) -> usize {
        PANEL
            * match self {
                Self::Half { .. } => 2,
                Self::HalfMin => 4,
                Self::Super { parts } => 4 + 2 * parts,
                Self::Signed { .. } => 2 + 16,
            }
    }

    /// Groups that a record serves.
    pub(crate) const fn record_groups(self) -> usize {
        match self {
            Self::Half { .. } | Self::HalfMin => 1,
            Self::Super { .. } | Self::Signed { .. } => 256 / GROUP,
        }
    }

    /// Scales of a row in a group: 2 where 16 weights share one.
    pub(crate) const fn halves(self) -> usize {
        match self {
            Self::Half { .. } | Self::HalfMin => 1,
            Self::Super { parts } => parts / 8,
            Self::Signed { .. } => 2,
        }
    }

    /// What is subtracted from codes, where there is no minimum to add.
    pub(crate) const fn offset(self) -> Option<i32> {
        match self {
            Self::Half { offset } | Self::Signed { offset } => Some(offset),
            Self::HalfMin | Self::Super { .. } => None,
        }
    }
}

/// How a format is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) bits: Bits,
    pub(crate) scales: Scales,
}

impl Layout {
    /// The narrowest layout that loses nothing; none for formats without codes.
    pub(crate) const fn of(format: Format) -> Option<Self> {
        let (bits, scales) = match format {
            Format::F32 | Format::F16 | Format::Bf16 => return None,
            Format::Q4_0 => (Bits::Four, Scales::Half { offset: 8 }),
            Format::Q4_1 => (Bits::Four, Scales::HalfMin),
            Format::Q5_0 => (Bits::Five, Scales::Half { offset: 16 }),
            Format::Q5_1 => (Bits::Five, Scales::HalfMin),
            Format::Q8_0 => (Bits::Eight, Scales::Half { offset: 128 }),
            Format::Q2K => (Bits::Four, Scales::Super { parts: 16 }),
            Format::Q3K => (Bits::Four, Scales::Signed { offset: 4 }),
            Format::Q4K => (Bits::Four, Scales::Super { parts: 8 }),
            Format::Q5K => (Bits::Five, Scales::Super { parts: 8 }),
            Format::Q6K => (Bits::Six, Scales::Signed { offset: 32 }),
        };
        Some(Self { bits, scales })
    }
}

/// Codes of eight bits have an offset: tables that want signed codes could not take those above 127 otherwise.
const _: () = {
    let mut i = 0;
    while i < Format::ALL.len() {
        if let Some(layout) = Layout::of(Format::ALL[i]) {
            assert!(!matches!(layout.bits, Bits::Eight) || layout.scales.offset().is_some());
        }
        i += 1;
    }
};

/// Weights `[rows, cols]` in panels. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Packed {
    format: Format,
    layout: Layout,
    activations: Activations,
    rows: usize,
    cols: usize,
    memory: Arc<Memory>,
}

impl Packed {
    /// Packs a matrix on all threads; `None` where its format has no integer codes (F32, F16, BF16).
    pub fn new(matrix: &Matrix, activations: Activations) -> Option<Self> {
        Self::read(matrix, activations, &Resident)
    }

    /// As [`Packed::new`], telling whoever holds the matrix's bytes which are read.
    pub fn read(matrix: &Matrix, activations: Activations, pages: &dyn Pages) -> Option<Self> {
        let layout = Layout::of(matrix.format())?;
        let mut packed = Self {
            format: matrix.format(),
            layout,
            activations,
            rows: matrix.rows(),
            cols: matrix.cols(),
            memory: Arc::default(),
        };
        packed.memory = Arc::new(pack::pack(&packed, matrix, pages));
        Some(packed)
    }

    /// The format of the file.
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

    /// How activations are rounded for it.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.panels() * self.panel_bytes()
    }

    /// The bytes that packing a matrix takes, or that the matrix takes where it isn't packed.
    pub fn bytes_of(format: Format, rows: usize, cols: usize) -> usize {
        match Layout::of(format) {
            Some(layout) => rows
                .div_ceil(PANEL)
                .saturating_mul(code_bytes(layout, cols) + scale_bytes(layout, cols)),
            None => rows.saturating_mul(format.row_bytes(cols)),
        }
    }

    /// One row as `f32`: the bits that the file's format defines. Panics where there is none.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(
            row < self.rows && out.len() == self.cols,
            "no such row, or another length"
        );
        unpack::row(self, row % PANEL, self.panel(row / PANEL), out);
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    pub(crate) fn groups(&self) -> usize {
        self.cols / GROUP
    }

    pub(crate) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// A panel's codes and its scales.
    pub(crate) fn panel(&self, panel: usize) -> Panel<'_> {
        let bytes = &self.memory.bytes()[panel * self.panel_bytes()..][..self.panel_bytes()];
        let (codes, scales) = bytes.split_at(code_bytes(self.layout, self.cols));
        Panel { codes, scales }
    }

    fn panel_bytes(&self) -> usize {
        code_bytes(self.layout, self.cols) + scale_bytes(self.layout, self.cols)
    }
}

/// A panel's two streams.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    /// Groups of lines; starts at a multiple of a line.
    pub(crate) codes: &'a [u8],
    /// Records.
    pub(crate) scales: &'a [u8],
}

const fn code_bytes(layout: Layout, cols: usize) -> usize {
    (cols / GROUP).saturating_mul(layout.bits.group_bytes())
}

/// Rounded up to whole lines, so that the next panel's codes start at one.
const fn scale_bytes(layout: Layout, cols: usize) -> usize {
    (cols / GROUP / layout.scales.record_groups())
        .saturating_mul(layout.scales.record_bytes())
        .next_multiple_of(LINE)
}
