//! Keys and values of a cache in 8 bits: records of sixteen positions of a head.
//!
//! A record is cut into parts of at most [`PART`] dimensions. A part starts with the positions' scales, an `f32` each;
//! their codes follow as one dot-product instruction of four bytes in each 32-bit lane takes them (VNNI). Of keys, four
//! dimensions of position 0, then of position 1, to position 15, then the next four: unsigned, 128 above what they mean,
//! because a query's digits are signed. Of values, four positions of dimension 0, then of dimension 1, to the last, then
//! the next four positions: signed, because softmax weights are not.

use super::{
    operand::{DIGIT_MAX, factor, nearest},
    stored::KEY_GROUP,
};

/// Dimensions that share a scale.
pub(crate) const PART: usize = 64;
/// Bytes of a part's scales.
pub(super) const SCALES: usize = KEY_GROUP * size_of::<f32>();
/// Bytes from one part to the next.
pub(super) const STRIDE: usize = SCALES + KEY_GROUP * PART;
/// What a key's code is above its meaning.
pub(super) const OFFSET: u8 = 128;

/// Records of a cache, all of one size.
#[derive(Clone, Copy)]
pub(crate) struct Records<'a> {
    pub(crate) k: &'a [u8],
    pub(crate) v: &'a [u8],
}

impl Records<'_> {
    /// Element `i` of the key of slot `at`, counted over all heads, of heads of `d`.
    pub(super) fn key(&self, d: usize, at: usize, i: usize) -> f32 {
        let part = part(self.k, d, at, i);
        let code = part[SCALES + i % PART / 4 * 4 * KEY_GROUP + at % KEY_GROUP * 4 + i % 4];
        f32::from(i16::from(code) - i16::from(OFFSET)) * scale(part, at % KEY_GROUP)
    }

    /// As [`Records::key`] of the value.
    pub(super) fn value(&self, d: usize, at: usize, i: usize) -> f32 {
        let part = part(self.v, d, at, i);
        let dims = PART.min(d - i / PART * PART);
        let code = part[SCALES + (at % KEY_GROUP / 4 * dims + i % PART) * 4 + at % 4];
        f32::from(code.cast_signed()) * scale(part, at % KEY_GROUP)
    }
}

/// The part of slot `at`'s record that has element `i`.
fn part(records: &[u8], d: usize, at: usize, i: usize) -> &[u8] {
    &records[at / KEY_GROUP * record_bytes(d) + i / PART * STRIDE..]
}

/// Bytes of a record of keys, or of values, of heads of `d` dimensions.
pub(crate) const fn record_bytes(d: usize) -> usize {
    d.div_ceil(PART) * SCALES + KEY_GROUP * d.next_multiple_of(4)
}

/// Writes the key of a position, a number below [`KEY_GROUP`], to its record.
pub(crate) fn write_key(record: &mut [u8], position: usize, x: &[f32]) {
    for (x, part) in x.chunks(PART).zip(record.chunks_mut(STRIDE)) {
        let (codes, scale) = quantise(x);
        let (scales, quads) = part.split_at_mut(SCALES);
        scales[4 * position..][..4].copy_from_slice(&scale.to_ne_bytes());
        for (quad, codes) in quads
            .chunks_exact_mut(4 * KEY_GROUP)
            .zip(codes.as_chunks::<4>().0)
        {
            quad[4 * position..][..4].copy_from_slice(&codes.map(|code| code.cast_unsigned() ^ OFFSET));
        }
    }
}

/// As [`write_key`] for a value.
pub(crate) fn write_value(record: &mut [u8], position: usize, x: &[f32]) {
    for (x, part) in x.chunks(PART).zip(record.chunks_mut(STRIDE)) {
        let (codes, scale) = quantise(x);
        let (scales, rest) = part.split_at_mut(SCALES);
        scales[4 * position..][..4].copy_from_slice(&scale.to_ne_bytes());
        let quad = &mut rest[position / 4 * 4 * x.len()..][..4 * x.len()];
        for (to, code) in quad.as_chunks_mut::<4>().0.iter_mut().zip(codes) {
            to[position % 4] = code.cast_unsigned();
        }
    }
}

/// Codes and what they count.
pub(crate) fn quantise(x: &[f32]) -> ([i8; PART], f32) {
    let (factor, scale) = factor(x, DIGIT_MAX);
    let mut codes = [0; PART];
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = nearest(x, factor) as i8;
    }
    (codes, scale)
}

/// A position's scale.
#[expect(
    clippy::inline_always,
    reason = "the caller's target features must reach the body"
)]
#[inline(always)]
pub(super) fn scale(part: &[u8], position: usize) -> f32 {
    let bytes = &part[4 * position..][..4];
    f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_within_half_a_code() {
        for d in [1, 2, 6, 20, 64, 80, 128, 132] {
            let x: Vec<Vec<f32>> = (0..KEY_GROUP)
                .map(|t| (0..d).map(|i| ((t * 31 + i * 17) % 101) as f32 - 50.3).collect())
                .collect();
            let (mut keys, mut values) = (vec![0; record_bytes(d)], vec![0; record_bytes(d)]);
            for (position, x) in x.iter().enumerate() {
                write_key(&mut keys, position, x);
                write_value(&mut values, position, x);
            }
            let records = Records { k: &keys, v: &values };
            for (position, x) in x.iter().enumerate() {
                for (i, &x) in x.iter().enumerate() {
                    let (k, v) = (records.key(d, position, i), records.value(d, position, i));
                    assert!(
                        (k - x).abs() <= 0.5 * 51.0 / DIGIT_MAX && k.to_bits() == v.to_bits(),
                        "{d} {x} {k} {v}"
                    );
                }
            }
        }
    }

    #[test]
    fn nothing_hides_what_is_not_finite() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(quantise(&[1.0, bad, 2.0]).1.is_nan());
        }
        assert_eq!(quantise(&[1e-37; 3]), ([0; PART], 0.0));
    }
}
