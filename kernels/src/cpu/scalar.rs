//! The plain kernels: the specification that every other table is tested against.

use super::dequantize;
use crate::Format;

/// Widens whole blocks: `bytes` of `format` to `out`, as many weights as `out` holds.
pub fn dequantize(format: Format, bytes: &[u8], out: &mut [f32]) {
    dequantize::blocks(format, bytes, out);
}

/// The sum of products of two vectors of the same length.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
