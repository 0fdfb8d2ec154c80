//! The numbers of a cache of keys and values, and how vectors of them are read.

#![expect(
    clippy::inline_always,
    reason = "the caller's target features must reach these bodies"
)]

use half::bf16;

use super::{records::Records, simd::Simd};

/// Positions whose keys lie side by side, dimension after dimension: a query meets them without adding up lanes.
pub const KEY_GROUP: usize = 16;

/// A number as a cache holds it.
pub(crate) trait Stored: Copy + Send + Sync {
    fn from_f32(x: f32) -> Self;
    /// A vector of them.
    ///
    /// # Safety
    /// As for [`Simd`].
    unsafe fn load<S: Simd>(from: *const Self) -> S::V;
    /// The first `len` lanes; the others are zero.
    ///
    /// # Safety
    /// As for [`Simd`].
    unsafe fn load_first<S: Simd>(from: *const Self, len: usize) -> S::V;
}

impl Stored for f32 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load(from) }
    }
    #[inline(always)]
    unsafe fn load_first<S: Simd>(from: *const Self, len: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load_first(from, len) }
    }
}

impl Stored for bf16 {
    /// To the nearest, ties to even, without a branch: the compiler makes vectors of it.
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let quiet = bits >> 16 | 0x40;
        Self::from_bits(if x.is_nan() { quiet } else { rounded } as u16)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn load_first<S: Simd>(from: *const Self, len: usize) -> S::V {
        let mut lanes = [bf16::ZERO; 16];
        // SAFETY: the caller's promise; no vector has more lanes.
        unsafe {
            from.copy_to_nonoverlapping(lanes.as_mut_ptr(), len);
            S::load_bf16(lanes.as_ptr())
        }
    }
}

/// Keys `[blocks, kv_heads, block_size / KEY_GROUP, d, KEY_GROUP]` and values `[blocks, kv_heads, block_size, d]`.
#[derive(Clone, Copy)]
pub(crate) struct Cells<'a, E> {
    pub(crate) k: &'a [E],
    pub(crate) v: &'a [E],
}

/// A cache, of whatever numbers.
#[derive(Clone, Copy)]
pub(crate) enum Cache<'a> {
    F32(Cells<'a, f32>),
    Bf16(Cells<'a, bf16>),
    Int8(Records<'a>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_type() {
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(high) << 16 | low);
                let (ours, theirs) = (<bf16 as Stored>::from_f32(x), bf16::from_f32(x));
                assert_eq!(ours.to_bits(), theirs.to_bits(), "{x:e}");
            }
        }
    }
}
