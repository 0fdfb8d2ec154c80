//! Activations as whole numbers, as integer weights meet them.

#![expect(
    clippy::inline_always,
    reason = "the caller's target features must reach these bodies"
)]

use super::jobs::Output;
use crate::packed::{Activations, GROUP, Scales};

/// Adding it to a number of at most 22 bits rounds that to a whole one, ties to even, which is then in the low bits.
const ROUND: f32 = 12_582_912.0;
/// The largest digit of 8 bits.
pub(super) const DIGIT_MAX: f32 = 127.0;
/// The largest number of two digits whose upper one is at most [`DIGIT_MAX`], rounding up included.
pub(super) const DIGITS_MAX: f32 = 127.0 * 256.0;
/// Activations below it count as zero: their scale's reciprocal would not be a number.
const TINY: f32 = 1e-30;

/// Rows of activations `[n, k]`, each group of [`GROUP`] as `scale` times whole numbers.
///
/// Rows lie in blocks, side by side, so that what a tile of them needs is one stream: a block of `height` rows holds for
/// each group what every row has there.
#[derive(Debug, Default)]
pub(crate) struct Operand {
    pub(super) k: usize,
    /// Rows of a block: [`HEIGHT_MAX`], or all where there are fewer.
    pub(super) height: usize,
    /// The numbers `[blocks, k / GROUP, height, GROUP]`; of two digits the upper ones.
    pub(super) upper: Vec<i8>,
    /// The lower digits, which count 1 where an upper one counts 256; empty where there is one digit.
    pub(super) lower: Vec<i8>,
    /// `[blocks, k / GROUP, height]`
    pub(super) scales: Vec<f32>,
    /// Sums of the numbers of each half group `[blocks, k / GROUP, 2, height]`.
    sums: Vec<i32>,
}

/// Rows of a block.
pub(super) const HEIGHT_MAX: usize = 8;

impl Operand {
    /// Makes room for `n` rows of `k`.
    pub(super) fn resize(&mut self, n: usize, k: usize, activations: Activations) {
        (self.k, self.height) = (k, n.clamp(1, HEIGHT_MAX));
        let rows = n.next_multiple_of(self.height);
        let lower = match activations {
            Activations::Int8 => 0,
            Activations::Int16 => rows * k,
        };
        self.upper.resize(rows * k, 0);
        self.lower.resize(lower, 0);
        self.scales.resize(rows * (k / GROUP), 0.0);
        self.sums.resize(rows * (k / GROUP) * 2, 0);
    }

    pub(super) fn groups(&self) -> usize {
        self.k / GROUP
    }

    pub(super) fn is_wide(&self) -> bool {
        !self.lower.is_empty()
    }

    /// Where the numbers of row `i` in a group are.
    #[inline(always)]
    pub(super) fn numbers(&self, i: usize, group: usize) -> usize {
        GROUP * self.place(i, group, self.groups())
    }

    /// Where element `j` of row `i` is among rows of `len` elements.
    #[inline(always)]
    pub(super) fn place(&self, i: usize, j: usize, len: usize) -> usize {
        (i / self.height * len + j) * self.height + i % self.height
    }
}

/// What the offsets or minima of weights with some [`Scales`] make of an operand's sums.
#[derive(Debug, Default)]
pub(super) struct Corrections {
    /// What a group's sum of products starts from: `-offset * sum of the numbers`, `[blocks, k / GROUP * halves, height]`.
    /// Empty where weights have minima.
    pub(super) starts: Vec<i32>,
    /// What a minimum is multiplied by: `scale * sum of the numbers`, `[blocks, k / GROUP * halves, height]`. Empty where
    /// weights have none.
    pub(super) shares: Vec<f32>,
}

impl Corrections {
    /// Computes them anew for weights with `scales`.
    pub(super) fn fill(&mut self, operand: &Operand, scales: Scales) {
        self.starts.clear();
        self.shares.clear();
        let (height, halves) = (operand.height, scales.halves());
        let groups = operand.sums.chunks_exact(2 * height);
        for (sums, counts) in groups.zip(operand.scales.chunks_exact(height)) {
            let (first, second) = sums.split_at(height);
            let both = first.iter().zip(second).map(|(a, b)| a.wrapping_add(*b));
            // 16 bits times 32 numbers times an offset of 8 bits: nothing wraps.
            match scales.offset() {
                Some(offset) if halves == 1 => self.starts.extend(both.map(|sum| sum.wrapping_mul(-offset))),
                Some(offset) => self
                    .starts
                    .extend(sums.iter().map(|sum| sum.wrapping_mul(-offset))),
                None if halves == 1 => {
                    self.shares
                        .extend(both.zip(counts).map(|(sum, scale)| scale * sum as f32));
                }
                None => {
                    let counts = counts.iter().chain(counts);
                    self.shares
                        .extend(sums.iter().zip(counts).map(|(&sum, scale)| scale * sum as f32));
                }
            }
        }
    }
}

/// An operand's buffers while threads fill them, each its own blocks.
pub(super) struct OperandBlocks<'a> {
    k: usize,
    height: usize,
    upper: Output<'a, i8>,
    lower: Output<'a, i8>,
    scales: Output<'a, f32>,
    sums: Output<'a, i32>,
}

impl<'a> OperandBlocks<'a> {
    pub(super) fn new(operand: &'a mut Operand) -> Self {
        Self {
            k: operand.k,
            height: operand.height,
            upper: Output::new(&mut operand.upper),
            lower: Output::new(&mut operand.lower),
            scales: Output::new(&mut operand.scales),
            sums: Output::new(&mut operand.sums),
        }
    }

    /// Block `i`; panics where there is none.
    ///
    /// # Safety
    /// No other thread may have block `i` at the same time.
    pub(super) unsafe fn block(&self, i: usize) -> OperandBlock<'_> {
        let (k, groups) = (self.height * self.k, self.height * (self.k / GROUP));
        // SAFETY: the caller's promise: blocks do not overlap.
        unsafe {
            OperandBlock {
                height: self.height,
                upper: self.upper.row(i, k),
                lower: self.lower.row(i, k),
                scales: self.scales.row(i, groups),
                sums: self.sums.row(i, groups * 2),
            }
        }
    }
}

/// Where a block's numbers go: the slices of an [`Operand`] that belong to it.
pub(super) struct OperandBlock<'a> {
    height: usize,
    upper: &'a mut [i8],
    lower: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
}

impl OperandBlock<'_> {
    /// Takes the numbers of a group of row `r`, and what they count.
    #[inline(always)]
    pub(super) fn put(&mut self, group: usize, r: usize, numbers: &Digits, scale: f32, sums: [i32; 2]) {
        let height = self.height;
        self.scales[group * height + r] = scale;
        for (half, sum) in sums.into_iter().enumerate() {
            self.sums[(2 * group + half) * height + r] = sum;
        }
        let own = (group * height + r) * GROUP..(group * height + r + 1) * GROUP;
        self.upper[own.clone()].copy_from_slice(&numbers.upper);
        if let Some(lower) = &numbers.lower {
            self.lower[own].copy_from_slice(lower);
        }
    }

    pub(super) fn is_wide(&self) -> bool {
        !self.lower.is_empty()
    }
}

/// The numbers of a group; `lower` where there are two digits.
pub(super) struct Digits {
    pub(super) upper: [i8; GROUP],
    pub(super) lower: Option<[i8; GROUP]>,
}

/// Rounds a row, number `r` of its block. Written once, compiled for each instruction set; every one gives the same bits. A
/// group with a number that is not finite gets a scale that is not a number, so that nothing hides it.
#[inline(always)]
pub(super) fn round_row(x: &[f32], block: &mut OperandBlock<'_>, r: usize) {
    let wide = block.is_wide();
    for (group, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
        let (numbers, scale) = round(x, if wide { DIGITS_MAX } else { DIGIT_MAX });
        let sum = |half: &[i32]| half.iter().fold(0, |sum: i32, number| sum.wrapping_add(*number));
        let (first, second) = numbers.split_at(GROUP / 2);
        let (mut upper, mut lower) = ([0; GROUP], [0; GROUP]);
        for ((number, upper), lower) in numbers.iter().zip(&mut upper).zip(&mut lower) {
            (*upper, *lower) = if wide { digits(*number) } else { (*number as i8, 0) };
        }
        let numbers = Digits {
            upper,
            lower: wide.then_some(lower),
        };
        block.put(group, r, &numbers, scale, [sum(first), sum(second)]);
    }
}

/// The whole numbers of a group, `largest` standing for the largest magnitude, and what they count.
#[inline(always)]
fn round(x: &[f32; GROUP], largest: f32) -> ([i32; GROUP], f32) {
    let (factor, scale) = factor(x, largest);
    let mut numbers = [0; GROUP];
    for (number, &x) in numbers.iter_mut().zip(x) {
        *number = nearest(x, factor);
    }
    (numbers, scale)
}

/// What makes whole numbers of `x`, `largest` standing for the largest magnitude, and what one of them counts. Of numbers
/// that are not all finite the numbers are 0 and count what is not a number, so that nothing hides it.
#[inline(always)]
pub(super) fn factor(x: &[f32], largest: f32) -> (f32, f32) {
    // Magnitudes compare as their bits do, infinities and NaN above all.
    let magnitude = x
        .iter()
        .fold(0, |largest: u32, x| largest.max(x.to_bits() & 0x7fff_ffff));
    factor_of(f32::from_bits(magnitude), largest)
}

/// As [`factor`] where the largest magnitude is known.
#[inline(always)]
pub(super) fn factor_of(magnitude: f32, largest: f32) -> (f32, f32) {
    if !magnitude.is_finite() {
        return (0.0, f32::NAN);
    }
    if magnitude < TINY {
        return (0.0, 0.0);
    }
    (largest / magnitude, magnitude / largest)
}

/// The whole number next to `x` times a [`factor`].
#[inline(always)]
pub(super) fn nearest(x: f32, factor: f32) -> i32 {
    // What is not finite becomes 0 beside a factor of 0.
    let product = if factor == 0.0 { 0.0 } else { x * factor };
    (product + ROUND)
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .cast_signed()
}

/// The digits of a number: the upper one counts 256.
#[inline(always)]
pub(super) fn digits(number: i32) -> (i8, i8) {
    ((number.wrapping_add(128) >> 8) as i8, number as i8)
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
        let mut operand = Operand::default();
        operand.resize(1, GROUP, Activations::Int16);
        let blocks = OperandBlocks::new(&mut operand);
        // SAFETY: there is one thread.
        round_row(&x, &mut unsafe { blocks.block(0) }, 0);
        let (numbers, scale) = round(&x, DIGITS_MAX);
        let digits = operand.upper.iter().zip(&operand.lower);
        let joined: Vec<i32> = digits
            .map(|(&upper, &lower)| i32::from(upper) * 256 + i32::from(lower))
            .collect();
        assert_eq!(joined, numbers);
        let sum = |range: std::ops::Range<usize>| numbers[range].iter().sum::<i32>();
        let mut corrections = Corrections::default();
        corrections.fill(&operand, Scales::Half { offset: 8 });
        assert_eq!(corrections.starts, [-8 * sum(0..32)]);
        corrections.fill(&operand, Scales::Signed { offset: 32 });
        assert_eq!(corrections.starts, [-32 * sum(0..16), -32 * sum(16..32)]);
        corrections.fill(&operand, Scales::HalfMin);
        assert_eq!(corrections.shares, [scale * sum(0..32) as f32]);
        assert!(corrections.starts.is_empty());
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
