//! What the vector kernels need of an instruction set.

use half::bf16;

use crate::Format;

/// Vectors of `f32`.
///
/// # Safety
/// Every function may only be called from a function compiled for the instruction set, on a processor that has it;
/// pointers must be valid for the lanes that are loaded or stored, and need no alignment.
pub(crate) trait Simd {
    type V: Copy;
    const LANES: usize;
    /// Activation rows of a tile: with four weight rows, as many sums as the registers hold.
    const BATCH: usize;

    /// Activation rows of a tile of a panel: with 32 outputs, as many sums as the registers hold, at most 12.
    const TILE: usize;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    /// The first `len < LANES` lanes; the others are zero.
    unsafe fn load_first(from: *const f32, len: usize) -> Self::V;
    /// `LANES` numbers, widened.
    unsafe fn load_bf16(from: *const bf16) -> Self::V;
    /// `LANES` pairs of bf16, widened: the lower halves of their words, then the upper ones.
    unsafe fn load_pairs(from: *const u32) -> [Self::V; 2];
    /// Byte `i` of each of `LANES` runs of four, without a sign.
    unsafe fn unsigned_bytes(from: *const u8, i: usize) -> Self::V;
    /// As [`Simd::unsigned_bytes`] with a sign.
    unsafe fn signed_bytes(from: *const u8, i: usize) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    unsafe fn store_first(to: *mut f32, len: usize, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` where one is not a number.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where one is not a number.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn round(v: Self::V) -> Self::V;
    /// 2 to the power of integers in -126..=127.
    unsafe fn pow2(v: Self::V) -> Self::V;
    /// The sum of each vector's lanes, every one in the same order.
    unsafe fn sum4(v: [Self::V; 4]) -> [f32; 4];
    /// The largest lane.
    unsafe fn max_lane(v: Self::V) -> f32;

    /// Widens whole blocks of a format: as many as `out` holds.
    unsafe fn dequantize(format: Format, bytes: &[u8], out: &mut [f32]);
}
