//! The blocks of GGML's formats, taken apart: codes in the order in which a panel's lines take them, and the scales as the
//! file has them. Codes move as whole numbers of several bytes, each byte of which is shifted and masked alike: files hold
//! them in an order that is close to the panels', and a model has hundreds of millions.

use super::{GROUP, LINES};
use crate::cpu::scale_min;

/// A row's codes of a group: the four bytes for each of its lines, as many as [`Bits`](super::Bits) has.
pub(super) type Words = [u32; LINES];

/// A block of at most 256 weights.
#[derive(Default)]
pub(super) struct Block {
    pub(super) groups: [Words; 256 / GROUP],
    /// The block's scale, an f16.
    pub(super) scale: [u8; 2],
    /// The block's minimum, an f16.
    pub(super) min: [u8; 2],
    /// What multiplies the scale, for each run of weights; signed bytes in `Q3_K` and `Q6_K`.
    pub(super) scales: [u8; 16],
    /// What multiplies the minimum.
    pub(super) mins: [u8; 16],
}

/// The same byte sixteen times.
const fn each(byte: u8) -> u128 {
    u128::from_le_bytes([byte; 16])
}

/// The first 16 codes of a group and the last 16, a byte each.
type Halves = [u128; 2];

/// 32 bytes of a file.
fn halves(bytes: &[u8]) -> Halves {
    let (bytes, _) = bytes.as_chunks::<16>();
    [u128::from_le_bytes(bytes[0]), u128::from_le_bytes(bytes[1])]
}

/// What is left of each byte where the bits below `shift` and those outside `mask` go.
fn bits([first, last]: Halves, shift: usize, mask: u8) -> Halves {
    // What crosses into the neighbour byte is masked away.
    [first >> shift & each(mask), last >> shift & each(mask)]
}

/// Four bytes of each of four lines.
fn words(bytes: u128) -> [u32; 4] {
    // Written out: of `map` with numbers of 16 bytes the compiler makes a call.
    [
        bytes as u32,
        (bytes >> 32) as u32,
        (bytes >> 64) as u32,
        (bytes >> 96) as u32,
    ]
}

/// Codes of four bits in lines that two of them share.
fn nibbles([first, last]: Halves) -> Words {
    let mut lines = [0; LINES];
    lines[..4].copy_from_slice(&words(first | last << 4));
    lines
}

/// Codes of a byte each.
fn bytes([first, last]: Halves) -> Words {
    let mut lines = [0; LINES];
    lines[..4].copy_from_slice(&words(first));
    lines[4..].copy_from_slice(&words(last));
    lines
}

/// A line whose bit `j`, or pair of bits, is that of line `j`.
fn plane(lines: &[u32], width: usize) -> u32 {
    lines.iter().rev().fold(0, |plane, line| plane << width | line)
}

/// A bit for each weight, in their order, as a [`plane`]: four bytes, of every fourth bit each.
fn dealt(fifths: u32) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|byte| {
        let bits = fifths >> byte & 0x1111_1111;
        let pairs = (bits | bits >> 3) & 0x0303_0303;
        let fours = (pairs | pairs >> 6) & 0x000f_000f;
        (fours | fours >> 12) as u8
    }))
}

impl Block {
    /// Takes a block of a format without codes apart: there is none. The bytes are a whole block.
    pub(super) fn read(&mut self, format: crate::Format, block: &[u8]) {
        use crate::Format as F;
        match format {
            F::F32 | F::F16 | F::Bf16 => unreachable!("a format without codes is not packed. This is a bug."),
            F::Q4_0 => self.short(block, 0, None, &block[2..]),
            F::Q4_1 => self.short(block, 2, None, &block[4..]),
            F::Q5_0 => self.short(block, 0, Some(&block[2..6]), &block[6..]),
            F::Q5_1 => self.short(block, 2, Some(&block[4..8]), &block[8..]),
            F::Q8_0 => {
                self.scale = [block[0], block[1]];
                let [first, last] = halves(&block[2..34]);
                self.groups[0] = bytes([first ^ each(0x80), last ^ each(0x80)]);
            }
            F::Q2K => self.q2_k(block),
            F::Q3K => self.q3_k(block),
            F::Q4K => self.q4_5_k(block, None, &block[16..144]),
            F::Q5K => self.q4_5_k(block, Some(halves(&block[16..48])), &block[48..176]),
            F::Q6K => self.q6_k(block),
        }
    }

    /// Formats of 32 weights: the first 16 in the low nibbles, as in a panel. `min` is where the minimum is, 0 where there
    /// is none; `fifths` has a bit for each weight.
    fn short(&mut self, block: &[u8], min: usize, fifths: Option<&[u8]>, codes: &[u8]) {
        self.scale = [block[0], block[1]];
        if min > 0 {
            self.min = [block[min], block[min + 1]];
        }
        let (codes, _) = codes.as_chunks::<16>();
        let group = &mut self.groups[0];
        group[..4].copy_from_slice(&words(u128::from_le_bytes(codes[0])));
        if let Some(fifths) = fifths {
            group[4] = dealt(u32::from_le_bytes([fifths[0], fifths[1], fifths[2], fifths[3]]));
        }
    }

    fn q2_k(&mut self, block: &[u8]) {
        (self.scale, self.min) = ([block[80], block[81]], [block[82], block[83]]);
        for (run, byte) in block[..16].iter().enumerate() {
            (self.scales[run], self.mins[run]) = (byte & 15, byte >> 4);
        }
        for (i, group) in self.groups.iter_mut().enumerate() {
            let (half, quarter) = (i / 4, i % 4);
            *group = nibbles(bits(halves(&block[16 + half * 32..]), quarter * 2, 3));
        }
    }

    fn q3_k(&mut self, block: &[u8]) {
        let (thirds, low, packed) = (halves(block), &block[32..96], &block[96..108]);
        self.scale = [block[108], block[109]];
        for (run, scale) in self.scales.iter_mut().enumerate() {
            let nibble = packed[run % 8] >> (run / 8 * 4) & 15;
            let upper = packed[8 + run % 4] >> (run / 4 * 2) & 3;
            *scale = (nibble | upper << 4).wrapping_sub(32);
        }
        for (i, group) in self.groups.iter_mut().enumerate() {
            let (half, quarter) = (i / 4, i % 4);
            let (low, third) = (
                bits(halves(&low[half * 32..]), quarter * 2, 3),
                bits(thirds, i, 1),
            );
            *group = nibbles([low[0] | third[0] << 2, low[1] | third[1] << 2]);
        }
    }

    fn q4_5_k(&mut self, block: &[u8], fifths: Option<Halves>, codes: &[u8]) {
        (self.scale, self.min) = ([block[0], block[1]], [block[2], block[3]]);
        for (i, group) in self.groups.iter_mut().enumerate() {
            (self.scales[i], self.mins[i]) = scale_min(&block[4..16], i);
            *group = nibbles(bits(halves(&codes[i / 2 * 32..]), i % 2 * 4, 15));
            if let Some(fifths) = fifths {
                group[4] = plane(&bytes(bits(fifths, i, 1)), 1);
            }
        }
    }

    fn q6_k(&mut self, block: &[u8]) {
        let (low, high) = (&block[..128], &block[128..192]);
        self.scales.copy_from_slice(&block[192..208]);
        self.scale = [block[208], block[209]];
        for (i, group) in self.groups.iter_mut().enumerate() {
            let (half, quarter) = (i / 4, i % 4);
            let low = halves(&low[half * 64 + quarter % 2 * 32..]);
            *group = nibbles(bits(low, quarter / 2 * 4, 15));
            let pairs = bytes(bits(halves(&high[half * 32..]), quarter * 2, 3));
            (group[4], group[5]) = (plane(&pairs[..4], 2), plane(&pairs[4..], 2));
        }
    }
}
