//! Every format's blocks to `f32`: written once, compiled for each instruction set by its caller.
//!
//! The order of operations is that of GGML's reference, and there is no fused multiply-add, so every table gives the
//! same bits.

#![expect(
    clippy::inline_always,
    reason = "the caller's target features must reach these bodies"
)]

use crate::Format;

/// Widens whole blocks: `bytes` of `format` to `out`, as many weights as both hold.
#[inline(always)]
pub(crate) fn blocks(format: Format, bytes: &[u8], out: &mut [f32]) {
    match format {
        Format::F32 => each(bytes, out, |b: &[u8; 4], o: &mut [f32; 1]| {
            o[0] = f32::from_le_bytes(*b);
        }),
        Format::F16 => each(bytes, out, |b: &[u8; 2], o: &mut [f32; 1]| o[0] = f16(*b)),
        Format::Bf16 => each(bytes, out, |b: &[u8; 2], o: &mut [f32; 1]| o[0] = bf16(*b)),
        Format::Q4_0 => each(bytes, out, q4_0),
        Format::Q4_1 => each(bytes, out, q4_1),
        Format::Q5_0 => each(bytes, out, q5_0),
        Format::Q5_1 => each(bytes, out, q5_1),
        Format::Q8_0 => each(bytes, out, q8_0),
        Format::Q2K => each(bytes, out, q2_k),
        Format::Q3K => each(bytes, out, q3_k),
        Format::Q4K => each(bytes, out, q4_k),
        Format::Q5K => each(bytes, out, q5_k),
        Format::Q6K => each(bytes, out, q6_k),
    }
}

#[inline(always)]
fn each<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    widen: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        widen(block, out);
    }
}

/// An IEEE half, without a table or a branch, so that loops over it vectorise.
#[inline(always)]
pub(crate) fn f16(bytes: [u8; 2]) -> f32 {
    let half = u32::from(u16::from_le_bytes(bytes));
    let magnitude = (half & 0x7fff) << 13;
    // Times 2^112 moves the exponent's bias from 15 to 127, subnormals included.
    let scaled = (f32::from_bits(magnitude) * f32::from_bits(239 << 23)).to_bits();
    let infinite = if magnitude >= 0x0f80_0000 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled | infinite | (half & 0x8000) << 16)
}

#[inline(always)]
fn bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

#[inline(always)]
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16([block[0], block[1]]);
    for (j, q) in block[2..].iter().enumerate() {
        out[j] = f32::from((q & 15).cast_signed() - 8) * d;
        out[j + 16] = f32::from((q >> 4).cast_signed() - 8) * d;
    }
}

#[inline(always)]
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (f16([block[0], block[1]]), f16([block[2], block[3]]));
    for (j, q) in block[4..].iter().enumerate() {
        out[j] = f32::from(q & 15) * d + m;
        out[j + 16] = f32::from(q >> 4) * d + m;
    }
}

#[inline(always)]
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = f16([block[0], block[1]]);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for (j, q) in block[6..].iter().enumerate() {
        out[j] = f32::from((q & 15 | fifth(high, j)).cast_signed() - 16) * d;
        out[j + 16] = f32::from((q >> 4 | fifth(high, j + 16)).cast_signed() - 16) * d;
    }
}

#[inline(always)]
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (f16([block[0], block[1]]), f16([block[2], block[3]]));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for (j, q) in block[8..].iter().enumerate() {
        out[j] = f32::from(q & 15 | fifth(high, j)) * d + m;
        out[j + 16] = f32::from(q >> 4 | fifth(high, j + 16)) * d + m;
    }
}

/// Bit `j` of the plane, as the fifth bit of a weight.
#[inline(always)]
fn fifth(plane: u32, j: usize) -> u8 {
    ((plane >> j & 1) << 4) as u8
}

#[inline(always)]
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = f16([block[0], block[1]]);
    for (o, q) in out.iter_mut().zip(&block[2..]) {
        *o = f32::from(q.cast_signed()) * d;
    }
}

/// 16 scale bytes (low nibble scale, high nibble minimum, for 16 weights each), 64 bytes of 2-bit weights, d, dmin.
#[inline(always)]
fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, q) = (&block[..16], &block[16..80]);
    let (d, min) = (f16([block[80], block[81]]), f16([block[82], block[83]]));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (half, shift, side) = (group / 8, group % 8 / 2 * 2, group % 2);
        let scale = d * f32::from(scales[group] & 15);
        let offset = min * f32::from(scales[group] >> 4);
        for (o, q) in out.iter_mut().zip(&q[half * 32 + side * 16..]) {
            *o = scale * f32::from(q >> shift & 3) - offset;
        }
    }
}

/// 32 bytes of third bits, 64 bytes of 2-bit weights, 16 scales of 6 bits in 12 bytes, d.
#[inline(always)]
fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (mask, q, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = f16([block[108], block[109]]);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = packed[group % 8] >> (group / 8 * 4) & 15;
        let high = packed[8 + group % 4] >> (group / 4 * 2) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        let (half, shift, side) = (group / 8, group % 8 / 2, group % 2 * 16);
        for (j, o) in out.iter_mut().enumerate() {
            let third = (mask[side + j] >> (half * 4 + shift) & 1) << 2;
            let weight = (q[half * 32 + side + j] >> (shift * 2) & 3 | third).cast_signed() - 4;
            *o = scale * f32::from(weight);
        }
    }
}

/// Scale and minimum of group `j` of 32 weights, 6 bits each, from the 12 bytes that `Q4_K` and `Q5_K` share.
#[inline(always)]
pub(crate) fn scale_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (
            packed[j + 4] & 15 | packed[j - 4] >> 6 << 4,
            packed[j + 4] >> 4 | packed[j] >> 6 << 4,
        )
    }
}

/// d, dmin, 12 bytes of scales, 128 bytes of nibbles: 32 low, then the same 32 bytes' high, per 64 weights.
#[inline(always)]
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, min) = (f16([block[0], block[1]]), f16([block[2], block[3]]));
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, offset) = scale_min(&block[4..16], group);
        let (scale, offset) = (d * f32::from(scale), min * f32::from(offset));
        let q = &block[16 + group / 2 * 32..][..32];
        for (o, q) in out.iter_mut().zip(q) {
            *o = scale * f32::from(q >> (group % 2 * 4) & 15) - offset;
        }
    }
}

/// As `Q4_K`, with 32 bytes of fifth bits (one bit of each byte per group) before the nibbles.
#[inline(always)]
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, min) = (f16([block[0], block[1]]), f16([block[2], block[3]]));
    let high = &block[16..48];
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, offset) = scale_min(&block[4..16], group);
        let (scale, offset) = (d * f32::from(scale), min * f32::from(offset));
        let q = &block[48 + group / 2 * 32..][..32];
        for ((o, q), high) in out.iter_mut().zip(q).zip(high) {
            *o = scale * f32::from(q >> (group % 2 * 4) & 15 | (high >> group & 1) << 4) - offset;
        }
    }
}

/// 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales for 16 weights each, d.
#[inline(always)]
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = f16([block[208], block[209]]);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (half, quarter, side) = (group / 8, group % 8 / 2, group % 2 * 16);
        let scale = d * f32::from(scales[group].cast_signed());
        let low = &low[half * 64 + quarter % 2 * 32 + side..][..16];
        let high = &high[half * 32 + side..][..16];
        for ((o, low), high) in out.iter_mut().zip(low).zip(high) {
            let weight = low >> (quarter / 2 * 4) & 15 | (high >> (quarter * 2) & 3) << 4;
            *o = scale * f32::from(weight.cast_signed() - 32);
        }
    }
}
