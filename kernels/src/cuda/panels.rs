//! Weights in the order in which a card's tensor cores take them: `packed.cuh` and `dense.cu` read what is written here.

use crate::{
    Matrix, Packed,
    packed::{Bits, GROUP, LINE, PANEL, Panel, Scales},
    pool,
};

/// Bytes of nibbles of a group.
const NIBBLES: usize = 4 * LINE;

/// The panels of a matrix, each its codes and then its records, and the bytes of one.
pub(crate) fn arrange(packed: &Packed) -> (Vec<u8>, usize) {
    let (layout, groups) = (packed.layout(), packed.groups());
    let code_bytes = groups * layout.bits.group_bytes();
    let records = groups / layout.scales.record_groups();
    let panel_bytes = (code_bytes + records * layout.scales.record_bytes()).next_multiple_of(LINE);
    let mut all = vec![0; packed.panels() * panel_bytes];
    in_parallel(&mut all, panel_bytes, |number, to| {
        let (codes, scales) = to.split_at_mut(code_bytes);
        arrange_panel(layout.bits, layout.scales, packed.panel(number), codes, scales);
    });
    (all, panel_bytes)
}

/// The panels of a matrix of numbers of 16 bits, and the bytes of one: group by group, the numbers of each row, zeros where there
/// are none.
pub(crate) fn arrange_16(matrix: &Matrix) -> (Vec<u8>, usize) {
    let (group, row_bytes) = (2 * GROUP, matrix.row_bytes());
    let panel_bytes = PANEL * row_bytes.next_multiple_of(group);
    let mut all = vec![0; matrix.rows().div_ceil(PANEL) * panel_bytes];
    in_parallel(&mut all, panel_bytes, |number, to| {
        let rows = number * PANEL..matrix.rows().min((number + 1) * PANEL);
        let from = matrix.rows_bytes(rows).chunks_exact(row_bytes.max(1));
        for (row, from) in from.enumerate() {
            for (i, from) in from.chunks(group).enumerate() {
                to[(i * PANEL + row) * group..][..from.len()].copy_from_slice(from);
            }
        }
    });
    (all, panel_bytes)
}

/// Fills each panel, on all threads.
fn in_parallel(all: &mut [u8], panel_bytes: usize, fill: impl Fn(usize, &mut [u8]) + Sync) {
    let panels: Vec<_> = all
        .chunks_mut(panel_bytes.max(1))
        .map(std::sync::Mutex::new)
        .collect();
    pool::run(panels.len(), |number| {
        // Never contended: each panel is taken once.
        let mut to = panels[number]
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        fill(number, &mut to);
    });
}

fn arrange_panel(bits: Bits, scales: Scales, from: Panel<'_>, codes: &mut [u8], records: &mut [u8]) {
    let bytes = bits.group_bytes();
    for (from, to) in from.codes.chunks_exact(bytes).zip(codes.chunks_exact_mut(bytes)) {
        match bits {
            Bits::Eight => bytes_of(from, to),
            Bits::Four => nibbles(from, to),
            Bits::Five => {
                nibbles(from, to);
                to[NIBBLES..].copy_from_slice(&from[NIBBLES..]);
            }
            Bits::Six => {
                nibbles(from, to);
                pairs(&from[NIBBLES..], &mut to[NIBBLES..]);
            }
        }
    }
    let bytes = scales.record_bytes();
    for (from, to) in from
        .scales
        .chunks_exact(bytes)
        .zip(records.chunks_exact_mut(bytes))
    {
        record(scales, from, to);
    }
}

/// The word of a row in a line.
fn word(lines: &[u8], line: usize, row: usize) -> [u8; 4] {
    let at = line * LINE + 4 * row;
    [lines[at], lines[at + 1], lines[at + 2], lines[at + 3]]
}

/// Lane `4 r + j` has line `j` of rows `r` and `r + 8`, and with its high nibbles line `j + 4`.
fn nibbles(from: &[u8], to: &mut [u8]) {
    for (lane, to) in to[..NIBBLES].chunks_exact_mut(8).enumerate() {
        let (row, line) = (lane / 4, lane % 4);
        to[..4].copy_from_slice(&word(from, line, row));
        to[4..].copy_from_slice(&word(from, line, row + PANEL / 2));
    }
}

/// The upper two bits of what [`nibbles`] gives a lane: of its line `j` in both rows, then of its line `j + 4`.
fn pairs(planes: &[u8], to: &mut [u8]) {
    for (lane, to) in to.chunks_exact_mut(4).enumerate() {
        let (row, line) = (lane / 4, lane % 4);
        for (i, (plane, row)) in [(0, row), (0, row + 8), (1, row), (1, row + 8)]
            .into_iter()
            .enumerate()
        {
            for (to, byte) in to.iter_mut().zip(word(planes, plane, row)) {
                *to |= (byte >> (2 * line) & 3) << (2 * i);
            }
        }
    }
}

/// As [`nibbles`] with a byte for each code, which loses its offset of 128.
fn bytes_of(from: &[u8], to: &mut [u8]) {
    for (lane, to) in to.chunks_exact_mut(16).enumerate() {
        let (row, line) = (lane / 4, lane % 4);
        let words = [(line, row), (line, row + 8), (line + 4, row), (line + 4, row + 8)];
        for (to, (line, row)) in to.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word(from, line, row).map(|code| code ^ 0x80));
        }
    }
}

/// Rows `r` and `r + 8` side by side: scales and minima, then each row's bytes that multiply them.
fn record(scales: Scales, from: &[u8], to: &mut [u8]) {
    let has_min = scales.offset().is_none();
    let head = if has_min { 4 } else { 2 };
    let (parts, mins) = match scales {
        Scales::Half { .. } | Scales::HalfMin => (0, false),
        Scales::Super { parts } => (parts, true),
        Scales::Signed { .. } => (256 / GROUP * 2, false),
    };
    let (heads, factors) = to.split_at_mut(PANEL * head);
    let each = parts * if mins { 2 } else { 1 };
    for row in 0..PANEL {
        let place = row % 8 * 2 + row / 8;
        let to = &mut heads[place * head..][..head];
        to[..2].copy_from_slice(&from[2 * row..][..2]);
        if has_min {
            to[2..].copy_from_slice(&from[2 * PANEL + 2 * row..][..2]);
        }
        let from = &from[PANEL * head..];
        for part in 0..parts {
            let step = if mins { 2 * PANEL } else { PANEL };
            factors[place * each + part] = from[part * step + row];
            if mins {
                factors[place * each + parts + part] = from[part * step + PANEL + row];
            }
        }
    }
}
