//! Attention of every token to every token of its sequence, or to those near it: what encoders compute.
//!
//! A head's keys become panels of 32, its values panels of 32 dimensions, and both products are those of `panel`. What a
//! sequence's tokens get depends on the sequence alone: its queries are cut at the same places in any batch.

use std::{cell::RefCell, cmp::Reverse, ops::Range};

use super::{
    Kernels,
    jobs::{Output, PARALLEL_PRODUCTS, StridedRows},
    panel::{PanelJob, PanelOut, words},
};
use crate::{Precision, dense::PANEL, pool};

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
    /// Tokens seen on either side; all where there is none.
    pub(crate) window: Option<usize>,
    pub(crate) out: Output<'a>,
}

/// Queries whose scores are in memory at once.
const BLOCK: usize = 48;
/// Queries for which a head's keys and values are laid out once.
const CHUNK: usize = 8 * BLOCK;

/// Some queries of one head of a sequence.
struct Chunk {
    /// The sequence's tokens in the batch.
    tokens: Range<usize>,
    head: usize,
    /// Counted from the sequence's first token.
    queries: Range<usize>,
}

/// A head's keys and values, and scores.
#[derive(Default)]
struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
    /// What each query's results are multiplied by.
    shares: Vec<f32>,
    sums: Vec<f32>,
}

thread_local! {
    /// Taken and put back, as in `vector`.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
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

    /// Lays out the keys and values that a chunk sees, from `seen.start` on.
    fn lay_out(&self, chunk: &Chunk, seen: &Range<usize>, scratch: &mut Scratch) {
        let (d, start) = (self.d, chunk.head * self.d);
        let panels = seen.len().div_ceil(PANEL);
        scratch.keys.clear();
        scratch.keys.resize(panels * d * PANEL, 0.0);
        for (i, position) in seen.clone().enumerate() {
            let key = &self.k.row(chunk.tokens.start + position)[start..][..d];
            let panel = &mut scratch.keys[i / PANEL * d * PANEL..][..d * PANEL];
            for (line, key) in panel.as_chunks_mut::<PANEL>().0.iter_mut().zip(key) {
                line[i % PANEL] = *key;
            }
        }
        scratch.values.clear();
        scratch.values.resize(d.div_ceil(PANEL) * seen.len() * PANEL, 0.0);
        for (i, position) in seen.clone().enumerate() {
            let value = &self.v.row(chunk.tokens.start + position)[start..][..d];
            for (panel, value) in value.chunks(PANEL).enumerate() {
                scratch.values[(panel * seen.len() + i) * PANEL..][..value.len()].copy_from_slice(value);
            }
        }
    }
}

impl Kernels {
    /// Computes all outputs, each of whose elements is written.
    pub(crate) fn bidirectional(&self, job: &BidirectionalJob<'_>) {
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
                job.lay_out(chunk, &seen, &mut scratch);
                for first in chunk.queries.clone().step_by(BLOCK) {
                    let queries = first..(first + BLOCK).min(chunk.queries.end);
                    // SAFETY: every query of a head is in one chunk.
                    unsafe { self.attend_block(job, chunk, queries, &seen, &mut scratch) }
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
        chunk: &Chunk,
        queries: Range<usize>,
        seen: &Range<usize>,
        scratch: &mut Scratch,
    ) {
        let (d, n, len) = (job.d, queries.len(), chunk.tokens.len());
        let column = chunk.head * d;
        let visible = job.visible(&queries, len);
        // Whole panels of keys, counted from the first one that is laid out.
        let panels = (visible.start - seen.start) / PANEL..(visible.end - seen.start).div_ceil(PANEL);
        let keys = panels.start * PANEL..(panels.end * PANEL).min(seen.len());
        let stride = panels.len() * PANEL;
        scratch.scores.resize(n * stride, 0.0);
        let x = &words(job.q.elements)[(chunk.tokens.start + queries.start) * job.q.stride + column..];
        for (i, panel) in panels.enumerate() {
            let product = PanelJob {
                precision: Precision::F32,
                x,
                stride: job.q.stride,
                n,
                panel: words(&scratch.keys[(keys.start + i * PANEL) * d..][..d * PANEL]),
                start: None,
            };
            debug_assert!(panel * PANEL == keys.start + i * PANEL);
            let out = &mut scratch.scores[i * PANEL..];
            // SAFETY: the table runs on this processor.
            unsafe { (self.panel)(&product, &mut PanelOut { out, stride }) }
        }
        scratch.shares.clear();
        for (i, scores) in scratch.scores.chunks_exact_mut(stride).enumerate() {
            let query = queries.start + i;
            let own = job.visible(&(query..query + 1), len);
            let own = own.start - seen.start - keys.start..own.end - seen.start - keys.start;
            scores[..own.start].fill(0.0);
            scores[own.end..].fill(0.0);
            // SAFETY: as above.
            let sum = unsafe { (self.exponentials)(&mut scores[own], job.scale) };
            scratch.shares.push(1.0 / sum);
        }
        scratch.sums.resize(n * PANEL, 0.0);
        for (panel, at) in (0..d).step_by(PANEL).enumerate() {
            let values = &scratch.values[(panel * seen.len() + keys.start) * PANEL..][..keys.len() * PANEL];
            let product = PanelJob {
                precision: Precision::F32,
                x: words(&scratch.scores),
                stride,
                n,
                panel: words(values),
                start: None,
            };
            let width = (d - at).min(PANEL);
            // SAFETY: as above, and the caller's promise.
            unsafe {
                let sums = PanelOut {
                    out: &mut scratch.sums,
                    stride: PANEL,
                };
                (self.panel)(&product, &mut { sums });
                let rows = scratch.sums.chunks_exact(PANEL).zip(&scratch.shares);
                for (i, (sums, share)) in rows.enumerate() {
                    let row = chunk.tokens.start + queries.start + i;
                    let out = job.out.slice(row * job.q.width + column + at, width);
                    for (out, sum) in out.iter_mut().zip(sums) {
                        *out = sum * share;
                    }
                }
            }
        }
    }
}
