//! Attention of every token to every token of its sequence, or to those near it: what encoders compute.
//!
//! A head's keys become panels of 32, its values panels of 32 dimensions, and both products are those of `panel`: in bf16,
//! queries, keys, values and what exponentials give are rounded, and sums are `f32`. What a sequence's tokens get depends on
//! the sequence alone: its queries are cut at the same places in any batch.

use std::{cell::RefCell, cmp::Reverse, ops::Range};

use super::{
    Kernels,
    jobs::{Output, PARALLEL_PRODUCTS, StridedRows},
    panel::{PanelJob, PanelOut, words},
};
use crate::{
    Precision,
    dense::PANEL,
    pool::{self, split},
};

/// `softmax(scale * q k^T) v` of each head within each sequence.
pub(crate) struct BidirectionalJob<'a> {
    /// Each `[n, heads * d]`.
    pub(crate) q: StridedRows<'a>,
    pub(crate) k: StridedRows<'a>,
    pub(crate) v: StridedRows<'a>,
    pub(crate) d: usize,
    /// Tokens of each sequence; they add up to `n`.
    pub(crate) lengths: &'a [usize],
    pub(crate) scale: f32,
    /// One that [`Kernels::attention_precision`] gave.
    pub(crate) precision: Precision,
    /// Tokens seen on either side; all where there is none.
    pub(crate) window: Option<usize>,
    pub(crate) out: Output<'a>,
}

/// Most queries whose scores are in memory at once.
const BLOCK: usize = 48;
/// Queries for which a head's keys and values are laid out once.
const CHUNK: usize = 8 * BLOCK;
/// Elements of every table's vectors, or several of them: rows of whole vectors need no care at their ends.
const VECTOR: usize = 16;

/// Some queries of one head of a sequence.
struct Chunk {
    /// The sequence's tokens in the batch.
    tokens: Range<usize>,
    head: usize,
    /// Counted from the sequence's first token.
    queries: Range<usize>,
}

/// A head's keys and values, and what is made of them. Buffers only grow: what is read of them was written before.
#[derive(Default)]
struct Scratch {
    keys: Vec<u32>,
    values: Vec<u32>,
    scores: Vec<f32>,
    /// Rounded scores.
    operand: Vec<u32>,
    /// What each query's results are multiplied by.
    shares: Vec<f32>,
    sums: Vec<f32>,
}

/// Rows of heads, `depth` words each: `f32`, or pairs of bf16.
#[derive(Clone, Copy)]
struct Rows<'a> {
    words: &'a [u32],
    stride: usize,
    depth: usize,
}

thread_local! {
    /// Taken and put back, as in `vector`.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// Queries, keys and values in pairs.
    static PAIRS: RefCell<[Vec<u32>; 3]> = RefCell::default();
}

impl<'a> Rows<'a> {
    /// From a row's head on.
    fn from(&self, row: usize, head: usize) -> &'a [u32] {
        &self.words[row * self.stride + head * self.depth..]
    }

    fn head(&self, row: usize, head: usize) -> &'a [u32] {
        &self.from(row, head)[..self.depth]
    }
}

impl BidirectionalJob<'_> {
    /// The tokens of a sequence of `len` that some of its tokens see.
    fn visible(&self, queries: &Range<usize>, len: usize) -> Range<usize> {
        match self.window {
            None => 0..len,
            Some(window) => {
                queries.start.saturating_sub(window)..(queries.end - 1).saturating_add(window + 1).min(len)
            }
        }
    }

    fn chunks(&self) -> Vec<Chunk> {
        let heads = self.q.width / self.d;
        let (mut start, mut chunks) = (0, Vec::new());
        for &len in self.lengths {
            for first in (0..len).step_by(CHUNK) {
                chunks.extend((0..heads).map(|head| Chunk {
                    tokens: start..start + len,
                    head,
                    queries: first..(first + CHUNK).min(len),
                }));
            }
            start += len;
        }
        // The longest first, so that the last one to finish is short.
        chunks.sort_by_key(|chunk| Reverse(self.cost(chunk)));
        chunks
    }

    fn cost(&self, chunk: &Chunk) -> usize {
        chunk.queries.len() * self.visible(&chunk.queries, chunk.tokens.len()).len()
    }

    /// Lines that a panel takes of `len` numbers.
    fn lines(&self, len: usize) -> usize {
        match self.precision {
            Precision::F32 => len,
            Precision::Bf16 => len.div_ceil(2),
        }
    }

    /// Lays out the keys and values that a chunk sees, from `seen.start` on.
    fn lay_out(&self, [_, k, v]: [Rows<'_>; 3], chunk: &Chunk, seen: &Range<usize>, scratch: &mut Scratch) {
        let (d, n, first) = (self.d, seen.len(), chunk.tokens.start + seen.start);
        let (depth, lines) = (self.lines(d), self.lines(n));
        let keys = at_least(&mut scratch.keys, n.div_ceil(PANEL) * depth * PANEL);
        for i in 0..n {
            let panel = &mut keys[i / PANEL * depth * PANEL..][..depth * PANEL];
            let lines = panel.as_chunks_mut::<PANEL>().0.iter_mut();
            for (line, key) in lines.zip(k.head(first + i, chunk.head)) {
                line[i % PANEL] = *key;
            }
        }
        let values = at_least(&mut scratch.values, d.div_ceil(PANEL) * lines * PANEL);
        let value = |i: usize| v.head(first + i, chunk.head);
        match self.precision {
            Precision::F32 => {
                for i in 0..n {
                    for (panel, value) in value(i).chunks(PANEL).enumerate() {
                        values[(panel * lines + i) * PANEL..][..value.len()].copy_from_slice(value);
                    }
                }
            }
            Precision::Bf16 => {
                for line in 0..lines {
                    // What stands beside the last one is multiplied by zero.
                    let pair = [value(2 * line), value((2 * line + 1).min(n - 1))];
                    let [one, other] = pair.map(|value| value.chunks(PANEL / 2));
                    for (panel, (one, other)) in one.zip(other).enumerate() {
                        interleave(one, other, &mut values[(panel * lines + line) * PANEL..][..PANEL]);
                    }
                }
            }
        }
    }
}

/// The first `len` elements of a buffer that grows to have them.
fn at_least<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}

/// Pairs within two rows to pairs of one number of each.
fn interleave(one: &[u32], other: &[u32], to: &mut [u32]) {
    for ((one, other), to) in one.iter().zip(other).zip(to.as_chunks_mut::<2>().0) {
        *to = [one & 0xffff | other << 16, one >> 16 | other & 0xffff_0000];
    }
}

impl Kernels {
    /// What attention of heads of `d` is computed in where `wanted` would do: pairs must be even in number, and where no
    /// instruction reads them, widening them takes longer than f32.
    pub(crate) fn attention_precision(&self, wanted: Precision, d: usize) -> Precision {
        if self.bf16_words == 1 && d.is_multiple_of(2) {
            wanted
        } else {
            Precision::F32
        }
    }

    /// Computes all outputs, each of whose elements is written.
    pub(crate) fn bidirectional(&self, job: &BidirectionalJob<'_>) {
        let inputs = [&job.q, &job.k, &job.v];
        let rows = |words, stride| Rows {
            words,
            stride,
            depth: job.lines(job.d),
        };
        match job.precision {
            Precision::F32 => self.attend(job, inputs.map(|x| rows(words(x.elements), x.stride))),
            Precision::Bf16 => {
                let mut pairs = PAIRS.take();
                for (x, pairs) in inputs.iter().zip(&mut pairs) {
                    self.pair_rows(x, at_least(pairs, x.n * x.width / 2));
                }
                self.attend(job, pairs.each_ref().map(|pairs| rows(pairs, job.q.width / 2)));
                PAIRS.set(pairs);
            }
        }
    }

    /// Rounds rows of an even number of elements to pairs of bf16.
    fn pair_rows(&self, x: &StridedRows<'_>, to: &mut [u32]) {
        let (width, to) = (x.width / 2, Output::new(to));
        let parts = (x.n * x.width / PARALLEL_PRODUCTS).clamp(1, pool::threads());
        pool::run(parts, |part| {
            for row in split(x.n, parts, part) {
                // SAFETY: each row is in one part.
                let to = unsafe { to.slice(row * width, width) };
                self.put(Precision::Bf16, x.row(row), to);
            }
        });
    }

    fn attend(&self, job: &BidirectionalJob<'_>, rows: [Rows<'_>; 3]) {
        let sorted = job.chunks();
        let chunks = pool::deal(&sorted);
        let products = 2 * job.d * sorted.iter().map(|chunk| job.cost(chunk)).sum::<usize>();
        let parts = if products < PARALLEL_PRODUCTS {
            1
        } else {
            chunks.len()
        };
        pool::run(parts, |part| {
            let mut scratch = SCRATCH.take();
            for chunk in chunks.iter().skip(part).step_by(parts) {
                let seen = job.visible(&chunk.queries, chunk.tokens.len());
                job.lay_out(rows, chunk, &seen, &mut scratch);
                // Nearly equal blocks, as tiles of few queries are slow.
                let blocks = chunk.queries.len().div_ceil(BLOCK);
                for block in 0..blocks {
                    let queries = split(chunk.queries.len(), blocks, block);
                    let queries = chunk.queries.start + queries.start..chunk.queries.start + queries.end;
                    // SAFETY: every query of a head is in one chunk.
                    unsafe { self.attend_block(job, rows[0], chunk, queries, &mut scratch) }
                }
            }
            SCRATCH.set(scratch);
        });
    }

    /// # Safety
    /// No other thread may write these queries' results.
    unsafe fn attend_block(
        &self,
        job: &BidirectionalJob<'_>,
        q: Rows<'_>,
        chunk: &Chunk,
        queries: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let (n, len, precision) = (queries.len(), chunk.tokens.len(), job.precision);
        let (seen, visible) = (job.visible(&chunk.queries, len), job.visible(&queries, len));
        // Whole panels of keys, counted from the first one that is laid out.
        let panels = (visible.start - seen.start) / PANEL..(visible.end - seen.start).div_ceil(PANEL);
        let keys = panels.start * PANEL..(panels.end * PANEL).min(seen.len());
        let (panel_words, stride) = (q.depth * PANEL, panels.len() * PANEL);
        let first = chunk.tokens.start + queries.start;
        let scores = at_least(&mut scratch.scores, n * stride);
        for (i, panel) in panels.enumerate() {
            let product = PanelJob {
                precision,
                x: q.from(first, chunk.head),
                stride: q.stride,
                n,
                panel: &scratch.keys[panel * panel_words..][..panel_words],
                start: None,
            };
            let out = &mut scores[i * PANEL..];
            // SAFETY: the table runs on this processor.
            unsafe { (self.panel)(&product, &mut PanelOut { out, stride }) }
        }
        scratch.shares.clear();
        for (query, scores) in queries.zip(scores.chunks_exact_mut(stride)) {
            let own = job.visible(&(query..query + 1), len);
            let own = own.start - seen.start - keys.start..own.end - seen.start - keys.start;
            scratch.shares.push(1.0 / self.weigh(scores, own, job.scale));
        }
        let operand = match precision {
            Precision::F32 => words(scores),
            Precision::Bf16 => {
                let operand = at_least(&mut scratch.operand, self.operand_words(precision, n * stride));
                self.put(precision, scores, operand);
                operand
            }
        };
        let lines = job.lines(keys.start)..job.lines(keys.end);
        let values = scratch.values.chunks_exact(job.lines(seen.len()) * PANEL);
        for (panel, values) in values.take(job.d.div_ceil(PANEL)).enumerate() {
            let product = PanelJob {
                precision,
                x: operand,
                stride: self.operand_words(precision, stride),
                n,
                panel: &values[lines.start * PANEL..lines.end * PANEL],
                start: None,
            };
            let sums = at_least(&mut scratch.sums, n * PANEL);
            let out = &mut *sums;
            // SAFETY: the table runs on this processor.
            unsafe { (self.panel)(&product, &mut PanelOut { out, stride: PANEL }) }
            let at = panel * PANEL;
            for (i, (sums, share)) in sums.chunks_exact(PANEL).zip(&scratch.shares).enumerate() {
                let column = (first + i) * job.q.width + chunk.head * job.d + at;
                // SAFETY: the caller's promise.
                let out = unsafe { job.out.slice(column, (job.d - at).min(PANEL)) };
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = sum * share;
                }
            }
        }
    }

    /// The exponentials of a query's scores of the keys that it sees, zeros beside them; returns their sum.
    fn weigh(&self, scores: &mut [f32], own: Range<usize>, scale: f32) -> f32 {
        let whole = own.start / VECTOR * VECTOR..own.end.next_multiple_of(VECTOR);
        scores[..whole.start].fill(0.0);
        scores[whole.end..].fill(0.0);
        scores[whole.start..own.start].fill(f32::NEG_INFINITY);
        scores[own.end..whole.end].fill(f32::NEG_INFINITY);
        // SAFETY: the table runs on this processor.
        unsafe { (self.exponentials)(&mut scores[whole], scale) }
    }
}
