//! What encoders do to the elements of a row, over any vector width.

#![expect(
    clippy::inline_always,
    reason = "the caller's target features must reach these bodies"
)]

use super::{
    simd::Simd,
    vector::{activate, exp2},
};
use crate::op::Activation;

/// What is done to each vector of a row. A closure would not be compiled for the instruction set.
trait Map<S: Simd> {
    /// The vector in place of `x`, which begins at element `at`.
    ///
    /// # Safety
    /// As for [`Simd`]; `at` must be below the row's length.
    unsafe fn of(&mut self, x: S::V, at: usize) -> S::V;
}

/// Puts what `f` makes of each vector in its place, the last one filled up with zeros.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn map<S: Simd>(row: &mut [f32], f: &mut impl Map<S>) {
    let full = row.len() - row.len() % S::LANES;
    let rest = row.len() - full;
    // SAFETY: every access is below the slice's length.
    unsafe {
        let at = row.as_mut_ptr();
        let mut i = 0;
        while i < full {
            S::store(at.add(i), f.of(S::load(at.add(i)), i));
            i += S::LANES;
        }
        if rest > 0 {
            let v = f.of(S::load_first(at.add(full), rest), full);
            S::store_first(at.add(full), rest, v);
        }
    }
}

struct Activate<const A: u8>;

const SILU: u8 = Activation::Silu as u8;
const GELU: u8 = Activation::Gelu as u8;
const GELU_TANH: u8 = Activation::GeluTanh as u8;
const RELU: u8 = Activation::Relu as u8;

impl<S: Simd, const A: u8> Map<S> for Activate<A> {
    #[inline(always)]
    unsafe fn of(&mut self, x: S::V, _: usize) -> S::V {
        let activation = match A {
            SILU => Activation::Silu,
            GELU => Activation::Gelu,
            GELU_TANH => Activation::GeluTanh,
            _ => Activation::Relu,
        };
        // SAFETY: the caller's promise.
        unsafe { activate::<S>(activation, x) }
    }
}

struct Normalise<'a, S: Simd> {
    centre: S::V,
    scale: S::V,
    weight: &'a [f32],
    bias: &'a [f32],
}

impl<S: Simd> Map<S> for Normalise<'_, S> {
    #[inline(always)]
    unsafe fn of(&mut self, x: S::V, at: usize) -> S::V {
        // SAFETY: the caller's promise; weight and bias are as long as the row.
        unsafe {
            let x = S::mul(
                S::mul(S::sub(x, self.centre), self.scale),
                vector::<S>(self.weight, at),
            );
            if self.bias.is_empty() {
                x
            } else {
                S::add(x, vector::<S>(self.bias, at))
            }
        }
    }
}

/// `2^(factor * x + offset)`, and the sum of whole vectors of these.
struct Exponential<S: Simd> {
    factor: S::V,
    offset: S::V,
    sum: S::V,
}

impl<S: Simd> Map<S> for Exponential<S> {
    #[inline(always)]
    unsafe fn of(&mut self, x: S::V, _: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe {
            // The order of the operands lets a NaN through.
            let power = S::max(S::splat(-126.0), S::fma(x, self.factor, self.offset));
            let e = exp2::<S>(power);
            self.sum = S::add(self.sum, e);
            e
        }
    }
}

/// Elements `at..` of a slice as a vector, zeros behind its end.
///
/// # Safety
/// As for [`Simd`]; `at` must be below the length.
#[inline(always)]
unsafe fn vector<S: Simd>(of: &[f32], at: usize) -> S::V {
    let left = of.len() - at;
    // SAFETY: as many elements as are left.
    unsafe {
        if left >= S::LANES {
            S::load(of.as_ptr().add(at))
        } else {
            S::load_first(of.as_ptr().add(at), left)
        }
    }
}

/// The sum of the lanes.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn total<S: Simd>(v: S::V) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = S::splat(0.0);
        S::sum4([v, zero, zero, zero])[0]
    }
}

/// `activation(x)` in place.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn activate_row<S: Simd>(activation: Activation, row: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        match activation {
            Activation::Silu => map::<S>(row, &mut Activate::<SILU>),
            Activation::GeluTanh => map::<S>(row, &mut Activate::<GELU_TANH>),
            Activation::Gelu => map::<S>(row, &mut Activate::<GELU>),
            Activation::Relu => map::<S>(row, &mut Activate::<RELU>),
        }
    }
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias` in place, the bias empty where there is none.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn layer_norm<S: Simd>(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let len = row.len();
    assert!(
        weight.len() == len && (bias.is_empty() || bias.len() == len),
        "lengths differ"
    );
    // SAFETY: places are below the common length.
    unsafe {
        let mut sum = S::splat(0.0);
        for at in (0..len).step_by(S::LANES) {
            sum = S::add(sum, vector::<S>(row, at));
        }
        let mean = total::<S>(sum) / len as f32;
        let centre = S::splat(mean);
        let mut squares = S::splat(0.0);
        let full = len - len % S::LANES;
        for at in (0..full).step_by(S::LANES) {
            let d = S::sub(S::load(row.as_ptr().add(at)), centre);
            squares = S::fma(d, d, squares);
        }
        let mut squares = total::<S>(squares);
        for x in &row[full..] {
            squares += (x - mean) * (x - mean);
        }
        let scale = S::splat(1.0 / (squares / len as f32 + eps).sqrt());
        let mut normalise = Normalise::<S> {
            centre,
            scale,
            weight,
            bias,
        };
        map::<S>(row, &mut normalise);
    }
}

/// The exponentials of `scale * x` less its largest over the row, in place, for a positive scale; returns their sum, which is
/// what a softmax divides them by.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn exponentials<S: Simd>(row: &mut [f32], scale: f32) -> f32 {
    if row.is_empty() {
        return 0.0;
    }
    let full = row.len() - row.len() % S::LANES;
    // SAFETY: places are below the length.
    unsafe {
        let mut most = S::splat(f32::NEG_INFINITY);
        for at in (0..full).step_by(S::LANES) {
            most = S::max(S::load(row.as_ptr().add(at)), most);
        }
        let most = row[full..].iter().copied().fold(S::max_lane(most), f32::max);
        let scale = scale * std::f32::consts::LOG2_E;
        let mut exponential = Exponential::<S> {
            factor: S::splat(scale),
            offset: S::splat(-most * scale),
            sum: S::splat(0.0),
        };
        map::<S>(&mut row[..full], &mut exponential);
        let mut total = total::<S>(exponential.sum);
        // The last vector apart: its lanes behind the end must not be counted.
        map::<S>(&mut row[full..], &mut exponential);
        for e in &row[full..] {
            total += e;
        }
        total
    }
}
