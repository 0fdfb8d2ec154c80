//! The blocks of GGML's formats, taken apart: unsigned codes in order, and the scales as the file has them.

use crate::cpu::{fifth, scale_min};

/// A block of at most 256 weights.
pub(super) struct Block {
    pub(super) codes: [u8; 256],
    /// The block's scale, an f16.
    pub(super) scale: [u8; 2],
    /// The block's minimum, an f16.
    pub(super) min: [u8; 2],
    /// What multiplies the scale, for each run of weights; signed bytes in `Q3_K` and `Q6_K`.
    pub(super) scales: [u8; 16],
    /// What multiplies the minimum.
    pub(super) mins: [u8; 16],
}

impl Block {
    pub(super) const fn new() -> Self {
        Self {
            codes: [0; 256],
            scale: [0; 2],
            min: [0; 2],
            scales: [0; 16],
            mins: [0; 16],
        }
    }

    /// Takes a block of a format without codes apart: there is none. The bytes are a whole block.
    pub(super) fn read(&mut self, format: crate::Format, bytes: &[u8]) {
        use crate::Format as F;
        match format {
            F::F32 | F::F16 | F::Bf16 => unreachable!("a format without codes is not packed. This is a bug."),
            F::Q4_0 => self.halves(bytes, 0, None, &bytes[2..]),
            F::Q4_1 => self.halves(bytes, 2, None, &bytes[4..]),
            F::Q5_0 => self.halves(bytes, 0, Some(plane(&bytes[2..6])), &bytes[6..]),
            F::Q5_1 => self.halves(bytes, 2, Some(plane(&bytes[4..8])), &bytes[8..]),
            F::Q8_0 => {
                self.scale = [bytes[0], bytes[1]];
                for (code, byte) in self.codes.iter_mut().zip(&bytes[2..34]) {
                    *code = byte ^ 0x80;
                }
            }
            F::Q2K => self.q2_k(bytes),
            F::Q3K => self.q3_k(bytes),
            F::Q4K => self.q4_5_k(bytes, None, &bytes[16..144]),
            F::Q5K => self.q4_5_k(bytes, Some(&bytes[16..48]), &bytes[48..176]),
            F::Q6K => self.q6_k(bytes),
        }
    }

    /// Formats of 32 weights: the first 16 in the low nibbles. `min` is where the minimum is, 0 where there is none.
    fn halves(&mut self, bytes: &[u8], min: usize, fifths: Option<u32>, nibbles: &[u8]) {
        self.scale = [bytes[0], bytes[1]];
        if min > 0 {
            self.min = [bytes[min], bytes[min + 1]];
        }
        for (j, byte) in nibbles[..16].iter().enumerate() {
            self.codes[j] = byte & 15;
            self.codes[j + 16] = byte >> 4;
        }
        if let Some(fifths) = fifths {
            for (j, code) in self.codes[..32].iter_mut().enumerate() {
                *code |= fifth(fifths, j);
            }
        }
    }

    fn q2_k(&mut self, bytes: &[u8]) {
        (self.scale, self.min) = ([bytes[80], bytes[81]], [bytes[82], bytes[83]]);
        for (run, codes) in self.codes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            self.scales[run] = bytes[run] & 15;
            self.mins[run] = bytes[run] >> 4;
            let (half, shift, side) = (run / 8, run % 8 / 2 * 2, run % 2);
            for (code, byte) in codes.iter_mut().zip(&bytes[16 + half * 32 + side * 16..]) {
                *code = byte >> shift & 3;
            }
        }
    }

    fn q3_k(&mut self, bytes: &[u8]) {
        let (thirds, low, packed) = (&bytes[..32], &bytes[32..96], &bytes[96..108]);
        self.scale = [bytes[108], bytes[109]];
        for (run, codes) in self.codes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let nibble = packed[run % 8] >> (run / 8 * 4) & 15;
            let upper = packed[8 + run % 4] >> (run / 4 * 2) & 3;
            self.scales[run] = (nibble | upper << 4).wrapping_sub(32);
            let (half, shift, side) = (run / 8, run % 8 / 2, run % 2 * 16);
            for (j, code) in codes.iter_mut().enumerate() {
                let third = (thirds[side + j] >> (half * 4 + shift) & 1) << 2;
                *code = low[half * 32 + side + j] >> (shift * 2) & 3 | third;
            }
        }
    }

    fn q4_5_k(&mut self, bytes: &[u8], fifths: Option<&[u8]>, nibbles: &[u8]) {
        (self.scale, self.min) = ([bytes[0], bytes[1]], [bytes[2], bytes[3]]);
        for (run, codes) in self.codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            (self.scales[run], self.mins[run]) = scale_min(&bytes[4..16], run);
            for (code, byte) in codes.iter_mut().zip(&nibbles[run / 2 * 32..]) {
                *code = byte >> (run % 2 * 4) & 15;
            }
            if let Some(fifths) = fifths {
                for (code, byte) in codes.iter_mut().zip(fifths) {
                    *code |= (byte >> run & 1) << 4;
                }
            }
        }
    }

    fn q6_k(&mut self, bytes: &[u8]) {
        let (low, high) = (&bytes[..128], &bytes[128..192]);
        self.scales.copy_from_slice(&bytes[192..208]);
        self.scale = [bytes[208], bytes[209]];
        for (run, codes) in self.codes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let (half, quarter, side) = (run / 8, run % 8 / 2, run % 2 * 16);
            let low = &low[half * 64 + quarter % 2 * 32 + side..][..16];
            let high = &high[half * 32 + side..][..16];
            for ((code, low), high) in codes.iter_mut().zip(low).zip(high) {
                *code = low >> (quarter / 2 * 4) & 15 | (high >> (quarter * 2) & 3) << 4;
            }
        }
    }
}

fn plane(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
