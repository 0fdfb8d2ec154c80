//! One product of activations with the matrices that share them: normalised and rounded once, in a pass over the threads of
//! its own, or by each thread for itself where rows are few.

use std::{
    cell::RefCell,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    Kernels,
    jobs::{Addend, LinearJob, Output, PARALLEL_ELEMENTS, PARALLEL_PRODUCTS, PARTS, Target},
    operand::{Corrections, HEIGHT_MAX, Operand, OperandBlock, OperandBlocks},
    packed::PackedJob,
};
use crate::{
    Activations, Weight,
    op::Activation,
    packed::Scales,
    pool::{self, split},
};

/// `finish(norm(x) * weights^T + biases)`.
pub(crate) struct Product<'a> {
    /// `[n, k]`
    pub(crate) x: &'a [f32],
    pub(crate) n: usize,
    pub(crate) norm: Option<Norm<'a>>,
    /// Their matrices are all `[.., k]` and ask for the same activations.
    pub(crate) factors: &'a [Factor<'a>],
    pub(crate) finish: Finish<'a>,
}

/// A matrix and what is added to its results.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a> {
    pub(crate) weight: &'a Weight,
    /// `[weight.rows()]`
    pub(crate) bias: Option<&'a [f32]>,
}

/// Root-mean-square normalisation of the input.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    /// `[k]`
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
}

/// What becomes of the results.
#[derive(Clone, Copy)]
pub(crate) enum Finish<'a> {
    /// Side by side, `[n, all matrices' rows]`.
    Concat,
    /// Of one matrix without bias, plus this, `[n, rows]`.
    Add(&'a [f32]),
    /// Of two matrices of one shape: the activation of the first times the second, `[n, rows]`.
    Gate(Activation),
}

/// Bytes of two matrices' results that a thread keeps until one gates the other: well below a second-level cache.
const GATES_BYTES: usize = 256 << 10;
/// Reading and unpacking the weights takes about as long as multiplying so many rows.
const READING_ROWS: usize = 2;
/// Weight rows that are split no further: a panel of packed weights, a multiple of what dense kernels take at once.
const UNIT: usize = crate::packed::PANEL;

/// The input as the matrices read it.
#[derive(Default)]
struct Input {
    /// Normalised rows, where there is a norm and a dense matrix.
    rows: Vec<f32>,
    operand: Operand,
    /// For each kind of scales that was met.
    corrections: Vec<(Scales, Corrections)>,
    /// Those of them that belong to the present operand.
    filled: Vec<Scales>,
    /// The product that this thread prepared it for; 0 where it is none.
    number: u64,
}

/// Where the threads of a product find its input.
enum Ready<'a> {
    Input(&'a Input),
    /// Few rows: each prepares it for itself, once for the product of this number.
    Number(u64),
}

/// Tells products apart.
static NUMBER: AtomicU64 = AtomicU64::new(1);

impl Input {
    fn correct(&mut self, scales: Scales) {
        let known = self.corrections.iter().position(|(known, _)| *known == scales);
        let at = known.unwrap_or_else(|| {
            self.corrections.push((scales, Corrections::default()));
            self.corrections.len() - 1
        });
        self.corrections[at].1.fill(&self.operand, scales);
        self.filled.push(scales);
    }
}

thread_local! {
    /// Taken and put back, as in `vector`.
    static INPUT: RefCell<Input> = RefCell::default();
    /// A row between normalisation and rounding.
    static ROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Two matrices' results before one gates the other.
    static GATES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Product<'_> {
    fn k(&self) -> usize {
        self.factors.first().map_or(0, |factor| factor.weight.cols())
    }

    /// Results of an activation row.
    pub(crate) fn width(&self) -> usize {
        match self.finish {
            Finish::Concat => self.factors.iter().map(|factor| factor.weight.rows()).sum(),
            Finish::Add(_) | Finish::Gate(_) => self.factors.first().map_or(0, |factor| factor.weight.rows()),
        }
    }

    fn packed(&self) -> impl Iterator<Item = (Scales, Activations)> {
        self.factors.iter().filter_map(|factor| match factor.weight {
            Weight::Packed(packed) => Some((packed.layout().scales, packed.activations())),
            Weight::Dense(_) => None,
            #[cfg(feature = "cuda")]
            Weight::Card(_) => None,
        })
    }

    /// How many parts the matrices are worth.
    fn parts(&self) -> usize {
        let weights: usize = self
            .factors
            .iter()
            .map(|factor| factor.weight.rows().saturating_mul(factor.weight.cols()))
            .sum();
        let products = weights.saturating_mul(self.n + READING_ROWS);
        (products / PARALLEL_PRODUCTS).clamp(1, pool::threads() * PARTS)
    }

    fn check(&self, out: usize) {
        let (n, k) = (self.n, self.k());
        let agree = self.factors.iter().all(|factor| {
            factor.weight.cols() == k && factor.bias.is_none_or(|bias| bias.len() == factor.weight.rows())
        });
        let finish = match self.finish {
            Finish::Concat => true,
            Finish::Add(rows) => {
                rows.len() == out && self.factors.len() == 1 && self.factors[0].bias.is_none()
            }
            Finish::Gate(_) => {
                self.factors.len() == 2 && self.factors[0].weight.rows() == self.factors[1].weight.rows()
            }
        };
        assert!(agree, "a product's matrices and biases disagree. This is a bug.");
        assert!(
            finish,
            "a product's epilogue does not fit its matrices. This is a bug."
        );
        assert!(
            self.norm.is_none_or(|norm| norm.weight.len() == k),
            "a product's norm has another length. This is a bug."
        );
        assert!(
            self.x.len() == n * k && out == n * self.width(),
            "a product's buffers have other lengths. This is a bug."
        );
        let mut activations = self.packed().map(|(_, activations)| activations);
        if let Some(first) = activations.next() {
            let same = activations.all(|other| other == first);
            assert!(
                same,
                "matrices of one product ask for different activations. This is a bug."
            );
        }
    }
}

impl Kernels {
    /// Computes a product into `out` `[n, width]`, all of whose elements are written, on all threads. Panics where
    /// lengths disagree.
    pub(crate) fn product(&self, product: &Product<'_>, out: &Output<'_>) {
        product.check(out.len());
        if product.n == 0 || product.width() == 0 {
            return;
        }
        if product.n <= HEIGHT_MAX {
            // Each thread makes its own: as fast as one for all, and nothing has to move from core to core.
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            return self.multiply(product, &Ready::Number(number), out);
        }
        let mut input = INPUT.take();
        self.prepare(product, &mut input);
        self.multiply(product, &Ready::Input(&input), out);
        INPUT.set(input);
    }

    fn multiply(&self, product: &Product<'_>, ready: &Ready<'_>, out: &Output<'_>) {
        match product.finish {
            Finish::Concat => self.concat(product, ready, out, None),
            Finish::Add(rows) => self.concat(product, ready, out, Some(rows)),
            Finish::Gate(activation) => self.gate(product, ready, out, activation),
        }
    }

    /// Calls `work` with the input.
    fn with_input(&self, product: &Product<'_>, ready: &Ready<'_>, work: impl FnOnce(&Input)) {
        match *ready {
            Ready::Input(input) => work(input),
            Ready::Number(number) => {
                let mut input = INPUT.take();
                if input.number != number {
                    self.prepare(product, &mut input);
                    input.number = number;
                }
                work(&input);
                INPUT.set(input);
            }
        }
    }

    /// Normalises and rounds the input.
    fn prepare(&self, product: &Product<'_>, input: &mut Input) {
        let (n, k) = (product.n, product.k());
        input.number = 0;
        let rounds = product.packed().next();
        let keeps = product.norm.is_some() && product.packed().count() < product.factors.len();
        if let Some((_, activations)) = rounds {
            input.operand.resize(n, k, activations);
        }
        input.rows.resize(if keeps { n * k } else { 0 }, 0.0);
        if keeps || rounds.is_some() {
            let height = input.operand.height.max(1);
            let (kept, rounded) = (
                Output::new(&mut input.rows),
                OperandBlocks::new(&mut input.operand),
            );
            let blocks = n.div_ceil(height);
            let parts = (n * k / PARALLEL_ELEMENTS)
                .clamp(1, pool::threads() * PARTS)
                .min(blocks);
            pool::run(parts, |part| {
                for block in split(blocks, parts, part) {
                    let rows = block * height..((block + 1) * height).min(n);
                    // SAFETY: the parts' blocks do not overlap.
                    unsafe {
                        let block = rounds.is_some().then(|| rounded.block(block));
                        self.prepare_block(product, rows, keeps.then_some(&kept), block);
                    }
                }
            });
        }
        // Entries of earlier products keep their memory: there are as many as kinds of scales, seven.
        input.filled.clear();
        for (scales, _) in product.packed() {
            if !input.filled.contains(&scales) {
                input.correct(scales);
            }
        }
    }

    /// Normalises and rounds some rows of the input, those of a block.
    ///
    /// # Safety
    /// No other thread may write these rows.
    unsafe fn prepare_block(
        &self,
        product: &Product<'_>,
        rows: Range<usize>,
        kept: Option<&Output<'_>>,
        mut rounded: Option<OperandBlock<'_>>,
    ) {
        let k = product.k();
        let mut scratch = ROW.take();
        scratch.resize(k, 0.0);
        for (r, i) in rows.enumerate() {
            let mut x = &product.x[i * k..][..k];
            // SAFETY: the table runs on this processor; the rest is the caller's promise.
            unsafe {
                if let Some(norm) = product.norm {
                    let to = kept.map_or(&mut scratch[..], |kept| kept.row(i, k));
                    (self.rms_norm)(x, norm.weight, norm.eps, to);
                    x = to;
                }
                if let Some(block) = &mut rounded {
                    (self.round)(x, block, r);
                }
            }
        }
        ROW.set(scratch);
    }

    /// Computes matrices side by side.
    fn concat(&self, product: &Product<'_>, ready: &Ready<'_>, out: &Output<'_>, residual: Option<&[f32]>) {
        let width = product.width();
        let all: usize = product.factors.iter().map(|factor| units(factor.weight)).sum();
        let parts = product.parts().min(all);
        pool::run(parts, |part| {
            let range = split(all, parts, part);
            self.with_input(product, ready, |input| {
                let (mut start, mut column) = (0, 0);
                for factor in product.factors {
                    let end = start + units(factor.weight);
                    let own = range.start.max(start)..range.end.min(end);
                    if !own.is_empty() {
                        let addend = match (residual, factor.bias) {
                            (Some(rows), _) => Addend::Residual(rows),
                            (None, Some(bias)) => Addend::Bias(bias),
                            (None, None) => Addend::Nothing,
                        };
                        let target = Target {
                            out: out.share(),
                            stride: width,
                            column,
                            first: 0,
                            addend,
                        };
                        // SAFETY: the parts' units do not overlap.
                        unsafe {
                            self.factor(product, input, factor, own.start - start..own.end - start, target);
                        }
                    }
                    (start, column) = (end, column + factor.weight.rows());
                }
            });
        });
    }

    /// Computes two matrices, one of which gates the other.
    fn gate(&self, product: &Product<'_>, ready: &Ready<'_>, out: &Output<'_>, activation: Activation) {
        let (n, rows) = (product.n, product.width());
        let units = units(product.factors[0].weight);
        let most = (GATES_BYTES / (2 * n * UNIT * size_of::<f32>())).max(1);
        let parts = product.parts().max(units.div_ceil(most)).min(units);
        pool::run(parts, |part| {
            let range = split(units, parts, part);
            let first = range.start * UNIT;
            let width = (range.end * UNIT).min(rows) - first;
            let mut scratch = GATES.take();
            scratch.resize(2 * n * width, 0.0);
            self.with_input(product, ready, |input| {
                for (factor, half) in product.factors.iter().zip(scratch.chunks_exact_mut(n * width)) {
                    let addend = factor.bias.map_or(Addend::Nothing, Addend::Bias);
                    let target = Target {
                        out: Output::new(half),
                        stride: width,
                        column: 0,
                        first,
                        addend,
                    };
                    // SAFETY: the scratch is this thread's own.
                    unsafe { self.factor(product, input, factor, range.clone(), target) }
                }
            });
            let (gates, ups) = scratch.split_at(n * width);
            for (i, (gate, up)) in gates.chunks_exact(width).zip(ups.chunks_exact(width)).enumerate() {
                // SAFETY: the table runs on this processor, and the parts' columns do not overlap.
                unsafe { (self.gated)(activation, gate, up, out.slice(i * rows + first, width)) }
            }
            GATES.set(scratch);
        });
    }

    /// Computes some units of a matrix.
    ///
    /// # Safety
    /// No other thread may write these units' results.
    unsafe fn factor(
        &self,
        product: &Product<'_>,
        input: &Input,
        factor: &Factor<'_>,
        units: Range<usize>,
        target: Target<'_>,
    ) {
        match factor.weight {
            Weight::Packed(weight) => {
                let scales = weight.layout().scales;
                let known = input.corrections.iter().find(|(known, _)| *known == scales);
                let (_, corrections) = known.expect("each kind of scales was prepared. This is a bug.");
                let job = PackedJob {
                    x: &input.operand,
                    corrections,
                    n: product.n,
                    weight,
                    target,
                };
                // SAFETY: the table runs on this processor; the rest is the caller's promise.
                unsafe { (self.linear_packed)(&job, units) }
            }
            Weight::Dense(weight) => {
                let x = if product.norm.is_some() {
                    &input.rows
                } else {
                    product.x
                };
                let job = LinearJob {
                    x,
                    n: product.n,
                    weight,
                    target,
                };
                let rows = units.start * UNIT..(units.end * UNIT).min(weight.rows());
                // SAFETY: as above.
                unsafe { (self.linear)(&job, rows) }
            }
            #[cfg(feature = "cuda")]
            Weight::Card(_) => unreachable!("a card's weights do not come to the processor. This is a bug."),
        }
    }
}

fn units(weight: &Weight) -> usize {
    weight.rows().div_ceil(UNIT)
}
