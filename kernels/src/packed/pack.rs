//! From the rows of a file to panels.

use super::{GROUP, LINE, PANEL, Packed, Scales, code_bytes, codes::Block, memory::Memory};
use crate::{Matrix, pool};

/// Panels that a thread takes at once.
const PANELS_EACH: usize = 4;
/// Bytes of the file that are in memory at once, beside the panels that were made of the others: enough for all threads.
const SLAB_BYTES: usize = 16 << 20;

/// Whoever holds the bytes of a matrix, told as they are read from first to last.
pub trait Pages {
    /// These come next.
    fn ahead(&self, bytes: &[u8]);
    /// These are not needed any more.
    fn done(&self, bytes: &[u8]);
}

/// Bytes that are in memory, and stay.
pub(crate) struct Resident;

impl Pages for Resident {
    fn ahead(&self, _bytes: &[u8]) {}
    fn done(&self, _bytes: &[u8]) {}
}

/// The panels of a matrix, in memory of their own.
pub(super) fn pack(packed: &Packed, matrix: &Matrix, pages: &dyn Pages) -> Memory {
    let panel_bytes = packed.panel_bytes();
    let mut memory = Memory::zeroed(packed.panels() * panel_bytes);
    if panel_bytes == 0 {
        return memory;
    }
    let each = (SLAB_BYTES / (PANEL * matrix.row_bytes())).max(1);
    for (slab, panels) in memory.bytes_mut().chunks_mut(each * panel_bytes).enumerate() {
        let first = slab * each;
        let rows = first * PANEL..((first + each) * PANEL).min(matrix.rows());
        let bytes = matrix.rows_bytes(rows);
        pages.ahead(bytes);
        pack_panels(packed, matrix, first, panels);
        pages.done(bytes);
    }
    memory
}

/// Panels from number `first` on, on all threads.
fn pack_panels(packed: &Packed, matrix: &Matrix, first: usize, panels: &mut [u8]) {
    let panel_bytes = packed.panel_bytes();
    let parts: Vec<_> = panels
        .chunks_mut(panel_bytes * PANELS_EACH)
        .map(std::sync::Mutex::new)
        .collect();
    pool::run(parts.len(), |part| {
        // Never contended: each part is taken once.
        let mut bytes = parts[part]
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for (i, bytes) in bytes.chunks_mut(panel_bytes).enumerate() {
            pack_panel(packed, matrix, first + part * PANELS_EACH + i, bytes);
        }
    });
}

/// Rows that the matrix does not have stay zero, scales included.
fn pack_panel(packed: &Packed, matrix: &Matrix, panel: usize, bytes: &mut [u8]) {
    let (bits, scales) = (packed.layout.bits, packed.layout.scales);
    let (lines, records) = bytes.split_at_mut(code_bytes(packed.layout, packed.cols));
    let format = matrix.format();
    let groups = format.block_len() / GROUP;
    let mut block = Block::default();
    for row in 0..PANEL.min(matrix.rows() - panel * PANEL) {
        let file = matrix.rows_bytes(panel * PANEL + row..panel * PANEL + row + 1);
        let blocks = file.chunks_exact(format.block_bytes());
        let lines = lines.chunks_exact_mut(groups * bits.group_bytes());
        let records = records.chunks_exact_mut(scales.record_bytes());
        for ((file, lines), record) in blocks.zip(lines).zip(records) {
            block.read(format, file);
            let groups = lines.chunks_exact_mut(bits.group_bytes());
            for (words, lines) in block.groups.iter().zip(groups) {
                for (word, line) in words.iter().zip(lines.as_chunks_mut::<LINE>().0) {
                    line[4 * row..][..4].copy_from_slice(&word.to_le_bytes());
                }
            }
            put_scales(scales, row, &block, record);
        }
    }
}

fn put_scales(scales: Scales, row: usize, block: &Block, record: &mut [u8]) {
    const HALVES: usize = 2 * PANEL;
    record[2 * row..][..2].copy_from_slice(&block.scale);
    match scales {
        Scales::Half { .. } => {}
        Scales::HalfMin => record[HALVES + 2 * row..][..2].copy_from_slice(&block.min),
        Scales::Super { parts } => {
            record[HALVES + 2 * row..][..2].copy_from_slice(&block.min);
            for part in 0..parts {
                let at = 2 * HALVES + part * 2 * PANEL + row;
                record[at] = block.scales[part];
                record[at + PANEL] = block.mins[part];
            }
        }
        Scales::Signed { .. } => {
            for (part, scale) in block.scales.iter().enumerate() {
                record[HALVES + part * PANEL + row] = *scale;
            }
        }
    }
}
