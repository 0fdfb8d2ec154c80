//! The numbers of a cache of keys and values, and how vectors of them are read.

#![expect(
    clippy::inline_always,
    reason = "the caller's target features must reach these bodies"
)]

use half::bf16;

use super::simd::Simd;

/// Positions whose keys lie side by side, dimension after dimension: a query meets them without adding up lanes.
pub(crate) const KEY_GROUP: usize = 16;

/// A number as a cache holds it.
pub(crate) trait Stored: Copy + Send + Sync {
    fn from_f32(x: f32) -> Self;
    fn to_f32(self) -> f32;
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
    fn to_f32(self) -> f32 {
        self
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
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.to_f32()
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
}
