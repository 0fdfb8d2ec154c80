//! Activations as whole numbers, as integer weights meet them.

#![expect(
    clippy::inline_always,
    reason = "the caller's target features must reach these bodies"
)]

use std::cell::RefCell;

use super::jobs::Output;
use crate::packed::{Activations, GROUP, Scales};

/// Adding it to a number of at most 22 bits rounds that to a whole one, ties to even, which is then in the low bits.
const ROUND: f32 = 12_582_912.0;
/// The largest digit of 8 bits.
const DIGIT_MAX: f32 = 127.0;
/// The largest number of two digits whose upper one is at most [`DIGIT_MAX`], rounding up included.
const DIGITS_MAX: f32 = 127.0 * 256.0;
/// Activations below it count as zero: their scale's reciprocal would not be a number.
const TINY: f32 = 1e-30;

/// Rows of activations `[n, k]`, each group of [`GROUP`] as `scale` times whole numbers.
#[derive(Debug, Default)]
pub(crate) struct Operand {
    pub(super) k: usize,
    /// The numbers `[n, k]`; of two digits the upper ones.
    pub(super) upper: Vec<i8>,
    /// The lower digits `[n, k]`, which count 1 where an upper one counts 256; empty where there is one digit.
    pub(super) lower: Vec<i8>,
    /// `[n, k / GROUP]`
    pub(super) scales: Vec<f32>,
    /// What a group's sum of products starts from: `-offset * sum of the numbers`, `[n, k / GROUP * halves]`. Empty where
    /// weights have minima.
    pub(super) starts: Vec<i32>,
    /// What a minimum is multiplied by: `scale * sum of the numbers`, `[n, k / GROUP * halves]`. Empty where weights have
    /// none.
    pub(super) shares: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Operand> = RefCell::default();
}

impl Operand {
    /// Calls `work` with this thread's operand, whose memory is reused from call to call.
    pub(super) fn with_scratch<R>(work: impl FnOnce(&mut Self) -> R) -> R {
        let mut operand = SCRATCH.take();
        let result = work(&mut operand);
        SCRATCH.set(operand);
        result
    }

    /// Makes room for `n` rows of `k`.
    pub(super) fn resize(&mut self, n: usize, k: usize, activations: Activations, scales: Scales) {
        let parts = n * (k / GROUP) * scales.halves();
        let (starts, shares) = match scales.offset() {
            Some(_) => (parts, 0),
            None => (0, parts),
        };
        let lower = match activations {
            Activations::Int8 => 0,
            Activations::Int16 => n * k,
        };
        self.k = k;
        self.upper.resize(n * k, 0);
        self.lower.resize(lower, 0);
        self.scales.resize(n * (k / GROUP), 0.0);
        self.starts.resize(starts, 0);
        self.shares.resize(shares, 0.0);
    }

    pub(super) fn groups(&self) -> usize {
        self.k / GROUP
    }

    pub(super) fn is_wide(&self) -> bool {
        !self.lower.is_empty()
    }
}

/// An operand's buffers while threads fill them, each its own rows.
pub(super) struct OperandRows<'a> {
    k: usize,
    scales: Scales,
    upper: Output<'a, i8>,
    lower: Output<'a, i8>,
    factors: Output<'a, f32>,
    starts: Output<'a, i32>,
    shares: Output<'a, f32>,
}

impl<'a> OperandRows<'a> {
    /// The rows of an operand that was resized for weights with `scales`.
    pub(super) fn new(operand: &'a mut Operand, scales: Scales) -> Self {
        Self {
            k: operand.k,
            scales,
            upper: Output::new(&mut operand.upper),
            lower: Output::new(&mut operand.lower),
            factors: Output::new(&mut operand.scales),
            starts: Output::new(&mut operand.starts),
            shares: Output::new(&mut operand.shares),
        }
    }

    /// Row `i`; panics where there is none.
    ///
    /// # Safety
    /// No other thread may have row `i` at the same time.
    pub(super) unsafe fn row(&self, i: usize) -> OperandRow<'_> {
        let (k, groups) = (self.k, self.k / GROUP);
        let parts = groups * self.scales.halves();
        // SAFETY: the caller's promise: rows do not overlap.
        unsafe {
            OperandRow {
                upper: self.upper.row(i, k),
                lower: self.lower.row(i, k),
                scales: self.factors.row(i, groups),
                starts: self.starts.row(i, parts),
                shares: self.shares.row(i, parts),
                offset: self.scales.offset().unwrap_or(0),
                halves: self.scales.halves(),
            }
        }
    }
}

/// Where one row's numbers go: the slices of an [`Operand`] that belong to it.
pub(super) struct OperandRow<'a> {
    pub(super) upper: &'a mut [i8],
    pub(super) lower: &'a mut [i8],
    pub(super) scales: &'a mut [f32],
    pub(super) starts: &'a mut [i32],
    pub(super) shares: &'a mut [f32],
    pub(super) offset: i32,
    pub(super) halves: usize,
}

/// Rounds a row. Written once, compiled for each instruction set; every one gives the same bits. A group with a number
/// that is not finite gets a scale that is not a number, so that nothing hides it.
#[inline(always)]
pub(super) fn round_row(x: &[f32], row: &mut OperandRow<'_>) {
    let wide = !row.lower.is_empty();
    for (group, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
        let range = group * GROUP..(group + 1) * GROUP;
        let numbers = if wide {
            let (numbers, scale) = round(x, DIGITS_MAX);
            row.scales[group] = scale;
            for ((number, upper), lower) in numbers
                .iter()
                .zip(&mut row.upper[range.clone()])
                .zip(&mut row.lower[range])
            {
                *upper = ((number + 128) >> 8) as i8;
                *lower = *number as i8;
            }
            numbers
        } else {
            let (numbers, scale) = round(x, DIGIT_MAX);
            row.scales[group] = scale;
            for (number, upper) in numbers.iter().zip(&mut row.upper[range]) {
                *upper = *number as i8;
            }
            numbers
        };
        sum(&numbers, group, row);
    }
}

#[inline(always)]
fn sum(numbers: &[i32; GROUP], group: usize, row: &mut OperandRow<'_>) {
    let (first, second) = numbers.split_at(GROUP / 2);
    let (first, second) = (first.iter().sum::<i32>(), second.iter().sum::<i32>());
    let sums = if row.halves == 1 {
        [first + second, 0]
    } else {
        [first, second]
    };
    for (half, sum) in sums.iter().take(row.halves).enumerate() {
        let at = group * row.halves + half;
        if row.shares.is_empty() {
            row.starts[at] = -row.offset * sum;
        } else {
            row.shares[at] = row.scales[group] * *sum as f32;
        }
    }
}

/// The whole numbers of a group, `largest` standing for the largest magnitude, and what they count.
#[inline(always)]
fn round(x: &[f32; GROUP], largest: f32) -> ([i32; GROUP], f32) {
    // Magnitudes compare as their bits do, infinities and NaN above all.
    let magnitude = x
        .iter()
        .fold(0, |largest: u32, x| largest.max(x.to_bits() & 0x7fff_ffff));
    let magnitude = f32::from_bits(magnitude);
    let mut numbers = [0; GROUP];
    if !magnitude.is_finite() {
        return (numbers, f32::NAN);
    }
    if magnitude < TINY {
        return (numbers, 0.0);
    }
    let factor = largest / magnitude;
    for (number, x) in numbers.iter_mut().zip(x) {
        *number = ((x * factor + ROUND).to_bits().wrapping_sub(ROUND.to_bits())).cast_signed();
    }
    (numbers, magnitude / largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(x: &[f32; GROUP], largest: f32) -> (Vec<f32>, f32) {
        let (numbers, scale) = round(x, largest);
        (
            numbers.iter().map(|&number| number as f32 * scale).collect(),
            scale,
        )
    }

    #[test]
    fn numbers_are_within_half_a_scale() {
        let x: [f32; GROUP] = std::array::from_fn(|i| (i as f32 - 11.3) * 0.37);
        for (largest, share) in [(DIGIT_MAX, 127.0), (DIGITS_MAX, 32512.0)] {
            let (values, scale) = rounded(&x, largest);
            assert!((scale * share - 19.7 * 0.37).abs() < 1e-5, "{scale}");
            for (x, value) in x.iter().zip(values) {
                assert!((x - value).abs() <= scale * 0.501, "{x} {value}");
            }
        }
    }

    #[test]
    fn two_digits_make_the_number() {
        let x: [f32; GROUP] = std::array::from_fn(|i| ((i * 7919) % 1000) as f32 - 500.0);
        let (mut upper, mut lower, mut scales, mut starts) = ([0; GROUP], [0; GROUP], [0.0], [0]);
        let mut row = OperandRow {
            upper: &mut upper,
            lower: &mut lower,
            scales: &mut scales,
            starts: &mut starts,
            shares: &mut [],
            offset: 8,
            halves: 1,
        };
        round_row(&x, &mut row);
        let (numbers, _) = round(&x, DIGITS_MAX);
        for i in 0..GROUP {
            assert_eq!(i32::from(upper[i]) * 256 + i32::from(lower[i]), numbers[i]);
        }
        assert_eq!(starts[0], -8 * numbers.iter().sum::<i32>());
    }

    #[test]
    fn nothing_hides_what_is_not_finite() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; GROUP];
            x[17] = bad;
            assert!(round(&x, DIGIT_MAX).1.is_nan());
        }
        assert_eq!(round(&[1e-37; GROUP], DIGIT_MAX), ([0; GROUP], 0.0));
        assert_eq!(round(&[0.0; GROUP], DIGIT_MAX), ([0; GROUP], 0.0));
    }
}
