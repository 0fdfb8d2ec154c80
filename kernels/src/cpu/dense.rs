//! Products with dense panels and what stands around them in an encoder, on all threads.
//!
//! With many rows each thread takes blocks of them through everything that belongs to a row, so that what lies between two
//! products stays in its cache; with few rows the threads share out the panels, as reading those is what takes long. A row's
//! bits are the same either way.

use std::{cell::RefCell, ops::Range};

use super::{
    Kernels,
    jobs::{Output, PARALLEL_PRODUCTS, each_row},
    panel::{PanelJob, PanelOut},
};
use crate::{
    Dense, Precision,
    dense::PANEL,
    op::Activation,
    pool::{self, split},
};

/// Layer normalisation (arXiv:1607.06450).
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm<'a> {
    /// `[d]`
    pub weight: &'a [f32],
    /// `[d]`, or empty where there is none.
    pub bias: &'a [f32],
    pub eps: f32,
}

/// A matrix and what is added to its results.
#[derive(Debug, Clone, Copy)]
pub struct DenseLayer<'a> {
    pub weight: &'a Dense,
    /// `[weight.rows()]`, or empty where there is none.
    pub bias: &'a [f32],
}

/// What becomes of sums before they are results.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DenseFinish<'a> {
    /// As long as the results, and added to them.
    pub residual: Option<&'a [f32]>,
    /// Normalises the rows then.
    pub norm: Option<LayerNorm<'a>>,
}

/// `down(activation(up(x)) * gate(x))`, the gate where there is one.
#[derive(Debug, Clone, Copy)]
pub struct FeedForwardLayers<'a> {
    pub up: DenseLayer<'a>,
    /// Of the shape of `up`.
    pub gate: Option<DenseLayer<'a>>,
    pub activation: Activation,
    pub down: DenseLayer<'a>,
}

/// The rows that are multiplied.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    /// `[n, width]`
    pub(crate) x: &'a [f32],
    pub(crate) n: usize,
    pub(crate) width: usize,
    pub(crate) norm: Option<LayerNorm<'a>>,
    pub(crate) precision: Precision,
}

/// Most rows of a block: what lies between two products of them fits in a second-level cache.
const BLOCK_MAX: usize = 96;
/// Rows for which reading the weights is no longer what takes long.
const BLOCK_MIN: usize = 24;

thread_local! {
    /// Inputs of two products as these read them, taken and put back as in `vector`.
    static OPERANDS: RefCell<[Vec<u32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
    /// A panel's sums, then those of its gate.
    static SUMS: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
    /// A row before it is rounded.
    static ROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// What is done with each panel of a matrix.
#[derive(Clone, Copy)]
struct Pass<'a> {
    layer: DenseLayer<'a>,
    gate: Option<DenseLayer<'a>>,
    activation: Option<Activation>,
}

/// Rows in the form that a product reads, `words` apart.
#[derive(Clone, Copy)]
struct Operand<'a> {
    rows: &'a [u32],
    n: usize,
    words: usize,
    precision: Precision,
}

impl<'a> From<DenseLayer<'a>> for Pass<'a> {
    fn from(layer: DenseLayer<'a>) -> Self {
        Self {
            layer,
            gate: None,
            activation: None,
        }
    }
}

impl Pass<'_> {
    fn weights(&self) -> usize {
        let one = |layer: &DenseLayer<'_>| layer.weight.rows() * layer.weight.cols();
        one(&self.layer) + self.gate.as_ref().map_or(0, one)
    }
}

/// Rows of a block, or none where the threads share out the panels instead.
fn block_rows(n: usize) -> Option<usize> {
    let threads = pool::threads();
    // As many blocks as make equal work for all.
    let blocks = n.div_ceil(BLOCK_MAX).next_multiple_of(threads);
    (n >= threads * BLOCK_MIN).then(|| n.div_ceil(blocks))
}

impl Kernels {
    /// `finish(norm(x) * weight^T + bias)` into `out` `[n, weight.rows()]`, all of whose elements are written.
    pub(crate) fn dense(
        &self,
        inputs: &Inputs<'_>,
        layer: DenseLayer<'_>,
        finish: &DenseFinish<'_>,
        out: &Output<'_>,
    ) {
        let pass = Pass::from(layer);
        let Some(rows) = block_rows(inputs.n) else {
            return self.by_panels(inputs, &pass, finish, out);
        };
        self.each_block(inputs, rows, |rows, operand, _| {
            // SAFETY: blocks do not overlap.
            unsafe { self.finish_block(layer, rows, operand, finish, out) }
        });
    }

    /// `finish(feed_forward(norm(x)))` into `out` `[n, down.rows()]`, all of whose elements are written.
    pub(crate) fn feed_forward(
        &self,
        inputs: &Inputs<'_>,
        layers: &FeedForwardLayers<'_>,
        finish: &DenseFinish<'_>,
        out: &Output<'_>,
    ) {
        let first = Pass {
            layer: layers.up,
            gate: layers.gate,
            activation: Some(layers.activation),
        };
        let (inner, second) = (layers.up.weight.rows(), Pass::from(layers.down));
        let Some(rows) = block_rows(inputs.n) else {
            let mut middle = vec![0.0; inputs.n * inner];
            self.by_panels(inputs, &first, &DenseFinish::default(), &Output::new(&mut middle));
            let inputs = Inputs {
                x: &middle,
                width: inner,
                norm: None,
                ..*inputs
            };
            return self.by_panels(&inputs, &second, finish, out);
        };
        let words = self.operand_words(inputs.precision, inner);
        self.each_block(inputs, rows, |rows, operand, middle| {
            middle.resize(rows.len() * words, 0);
            self.write_operand(&first, operand, words, middle);
            let operand = Operand {
                rows: middle,
                words,
                ..operand
            };
            // SAFETY: blocks do not overlap.
            unsafe { self.finish_block(layers.down, rows, operand, finish, out) }
        });
    }

    /// Normalises the rows of `out`, each as long as the norm's weight.
    pub(crate) fn layer_norm(&self, norm: LayerNorm<'_>, out: &Output<'_>) {
        each_row(norm.weight.len(), out, |_, row| self.norm_row(norm, row));
    }

    /// `activation(x)` in place.
    pub(crate) fn activate(&self, activation: Activation, row: &mut [f32]) {
        // SAFETY: the table runs on this processor.
        unsafe { (self.activate)(activation, row) }
    }

    fn norm_row(&self, norm: LayerNorm<'_>, row: &mut [f32]) {
        // SAFETY: the table runs on this processor.
        unsafe { (self.layer_norm)(row, norm.weight, norm.bias, norm.eps) }
    }

    /// Calls `work` with each block of rows, what a product reads of them, and memory for another product's inputs.
    fn each_block(
        &self,
        inputs: &Inputs<'_>,
        rows: usize,
        work: impl Fn(Range<usize>, Operand<'_>, &mut Vec<u32>) + Sync,
    ) {
        let blocks = inputs.n.div_ceil(rows);
        pool::run(blocks, |block| {
            let rows = split(inputs.n, blocks, block);
            let [mut first, mut second] = OPERANDS.take();
            let operand = self.operand_of(inputs, rows.clone(), &mut first);
            work(rows, operand, &mut second);
            OPERANDS.set([first, second]);
        });
    }

    /// Shares out the panels of a product; its rows are few.
    fn by_panels(&self, inputs: &Inputs<'_>, pass: &Pass<'_>, finish: &DenseFinish<'_>, out: &Output<'_>) {
        let panels = pass.layer.weight.panels();
        let products = pass.weights().saturating_mul(inputs.n + 2);
        let parts = (products / PARALLEL_PRODUCTS)
            .clamp(1, pool::threads() * 2)
            .min(panels.max(1));
        pool::run(parts, |part| {
            let [mut first, second] = OPERANDS.take();
            let operand = self.operand_of(inputs, 0..inputs.n, &mut first);
            // SAFETY: the parts' panels do not overlap.
            unsafe {
                self.write_rows(
                    pass,
                    0,
                    operand,
                    split(panels, parts, part),
                    (finish.residual, out),
                );
            }
            OPERANDS.set([first, second]);
        });
        if let Some(norm) = finish.norm {
            self.layer_norm(norm, out);
        }
    }

    /// Writes whole rows of `out`: a layer's results, the residual added, normalised.
    ///
    /// # Safety
    /// No other thread may write these rows.
    unsafe fn finish_block(
        &self,
        layer: DenseLayer<'_>,
        rows: Range<usize>,
        operand: Operand<'_>,
        finish: &DenseFinish<'_>,
        out: &Output<'_>,
    ) {
        let (width, whole) = (layer.weight.rows(), layer.weight.rows() / PANEL);
        // SAFETY: the caller's promise.
        let block = unsafe { out.slice(rows.start * width, rows.len() * width) };
        if operand.n > 0 {
            for panel in 0..whole {
                let out = &mut block[panel * PANEL..];
                self.panel_product(&layer, panel, operand, PanelOut { out, stride: width });
            }
        }
        // SAFETY: the block is no longer borrowed; the rest is the caller's promise.
        unsafe {
            let rest = whole..layer.weight.panels();
            self.write_rows(&Pass::from(layer), rows.start, operand, rest, (None, out));
            for row in rows {
                let to = out.row(row, width);
                if let Some(residual) = finish.residual {
                    for (to, residual) in to.iter_mut().zip(&residual[row * width..]) {
                        *to += residual;
                    }
                }
                if let Some(norm) = finish.norm {
                    self.norm_row(norm, to);
                }
            }
        }
    }

    /// Words of an operand's row of `width` activations.
    pub(super) fn operand_words(&self, precision: Precision, width: usize) -> usize {
        match precision {
            Precision::F32 => width,
            Precision::Bf16 => width.div_ceil(2) * self.bf16_words,
        }
    }

    /// Normalises some rows and puts them into the form that a product reads.
    fn operand_of<'a>(&self, inputs: &Inputs<'_>, rows: Range<usize>, to: &'a mut Vec<u32>) -> Operand<'a> {
        let Inputs { width, precision, .. } = *inputs;
        let (n, words) = (rows.len(), self.operand_words(precision, width));
        to.resize(n * words, 0);
        let mut scratch = ROW.take();
        scratch.resize(width.next_multiple_of(2), 0.0);
        scratch[width..].fill(0.0);
        for (i, to) in rows.zip(to.chunks_exact_mut(words.max(1))) {
            let mut row = &inputs.x[i * width..][..width];
            if inputs.norm.is_some() || width % 2 == 1 {
                scratch[..width].copy_from_slice(row);
                if let Some(norm) = inputs.norm {
                    self.norm_row(norm, &mut scratch[..width]);
                }
                row = &scratch;
            }
            self.put(precision, row, to);
        }
        ROW.set(scratch);
        Operand {
            rows: to,
            n,
            words,
            precision,
        }
    }

    /// Puts activations into the form that a product reads: as many as fill `to`.
    pub(super) fn put(&self, precision: Precision, x: &[f32], to: &mut [u32]) {
        match precision {
            Precision::F32 => {
                for (to, x) in to.iter_mut().zip(x) {
                    *to = x.to_bits();
                }
            }
            // SAFETY: the table runs on this processor.
            Precision::Bf16 => unsafe { (self.operand)(x, to) },
        }
    }

    /// A panel's sums for all rows of an operand, which has some.
    fn panel_product(
        &self,
        layer: &DenseLayer<'_>,
        panel: usize,
        operand: Operand<'_>,
        mut to: PanelOut<'_>,
    ) {
        let mut start = [0.0; PANEL];
        for (start, bias) in start.iter_mut().zip(layer.bias.iter().skip(panel * PANEL)) {
            *start = *bias;
        }
        let job = PanelJob {
            precision: operand.precision,
            x: operand.rows,
            stride: operand.words,
            n: operand.n,
            panel: layer.weight.panel(panel),
            start: Some(&start),
        };
        // SAFETY: the table runs on this processor.
        unsafe { (self.panel)(&job, &mut to) }
    }

    /// One panel's results for all rows of an operand.
    fn sums(&self, pass: &Pass<'_>, panel: usize, operand: Operand<'_>, [sums, gates]: &mut [Vec<f32>; 2]) {
        let product = |layer: &DenseLayer<'_>, out: &mut Vec<f32>| {
            out.resize(operand.n * PANEL, 0.0);
            self.panel_product(layer, panel, operand, PanelOut { out, stride: PANEL });
        };
        product(&pass.layer, sums);
        if let Some(activation) = pass.activation {
            self.activate(activation, sums);
        }
        if let Some(gate) = &pass.gate {
            product(gate, gates);
            for (sum, gate) in sums.iter_mut().zip(gates) {
                *sum *= *gate;
            }
        }
    }

    /// Results as the rows of another operand, `words` apart.
    fn write_operand(&self, pass: &Pass<'_>, operand: Operand<'_>, words: usize, to: &mut [u32]) {
        if operand.n == 0 {
            return;
        }
        let mut scratch = SUMS.take();
        let own = self.operand_words(operand.precision, PANEL);
        for panel in 0..pass.layer.weight.panels() {
            self.sums(pass, panel, operand, &mut scratch);
            let at = panel * own;
            for (sums, to) in scratch[0].chunks_exact(PANEL).zip(to.chunks_exact_mut(words)) {
                let to = &mut to[at..(at + own).min(words)];
                let width = pass.layer.weight.panel_rows(panel).next_multiple_of(2);
                self.put(operand.precision, &sums[..width.min(PANEL)], to);
            }
        }
        SUMS.set(scratch);
    }

    /// Results of some panels as rows of `out`, from row `first` on, plus those of a residual.
    ///
    /// # Safety
    /// No other thread may write these panels' columns of these rows.
    unsafe fn write_rows(
        &self,
        pass: &Pass<'_>,
        first: usize,
        operand: Operand<'_>,
        panels: Range<usize>,
        (residual, out): (Option<&[f32]>, &Output<'_>),
    ) {
        if operand.n == 0 {
            return;
        }
        let mut scratch = SUMS.take();
        let weight = pass.layer.weight;
        for panel in panels {
            self.sums(pass, panel, operand, &mut scratch);
            let columns = weight.panel_rows(panel);
            for (i, sums) in scratch[0].chunks_exact(PANEL).enumerate() {
                let at = (first + i) * weight.rows() + panel * PANEL;
                // SAFETY: the caller's promise.
                let to = unsafe { out.slice(at, columns) };
                match residual {
                    None => to.copy_from_slice(&sums[..columns]),
                    Some(residual) => {
                        for ((to, sum), residual) in to.iter_mut().zip(sums).zip(&residual[at..]) {
                            *to = sum + residual;
                        }
                    }
                }
            }
        }
        SUMS.set(scratch);
    }
}
