//! Paged attention over any vector width: one pass over the cache with a running softmax.
//!
//! Positions are taken in spans that start at multiples of [`SPAN`], so a query's sums are made in the same order
//! whatever tile it is in.

#![expect(
    clippy::needless_range_loop,
    reason = "loops over constants unroll, and their indices are registers' numbers"
)]
#![expect(
    clippy::inline_always,
    reason = "the caller's target features must reach these bodies"
)]

use std::ops::Range;

use super::{
    jobs::{AttentionJob, TILE_QUERIES, Tile},
    simd::Simd,
    vector::{exp, tanh, tile as products},
};

/// Positions whose scores are held at once; a multiple of every vector's lanes.
const SPAN: usize = 64;

/// The running softmax of a query: the largest score so far and the sum of exponentials below it.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

/// Where the keys and values of a span's visible positions start in the cache.
type Slots = [usize; SPAN];

/// Attention of one tile's queries.
///
/// # Safety
/// As for [`Simd`]; the output of the tile's queries must be zero, and no other thread may write it.
#[inline(always)]
pub(super) unsafe fn attention<S: Simd>(job: &AttentionJob<'_>, tile: &Tile) {
    let (row, group) = (&job.rows[tile.row], job.group());
    let tokens_max = (TILE_QUERIES / group).max(1);
    assert!(
        tile.tokens.len() <= tokens_max,
        "a tile of {} tokens. This is a bug.",
        tile.tokens.len()
    );
    let queries = tile.tokens.len() * group;
    let mut running = vec![
        Running {
            max: f32::NEG_INFINITY,
            sum: 0.0
        };
        queries
    ];
    let all = job.visible(row, tile.tokens.start).start..job.visible(row, tile.tokens.end - 1).end;
    let mut slots = [0; SPAN];
    for span in all.start / SPAN..all.end.div_ceil(SPAN) {
        let within = |positions: &Range<usize>| clip(positions, span);
        for i in within(&all) {
            slots[i] = job.slot(row, tile.kv_head, span * SPAN + i);
        }
        let mut first = 0;
        while first < queries {
            let token = tile.tokens.start + first / group;
            let visible = within(&job.visible(row, token));
            // Queries that see the same part of the span go together.
            let same = |i: &usize| within(&job.visible(row, tile.tokens.start + i / group)) == visible;
            let count = (first..queries.min(first + S::BATCH)).take_while(same).count();
            if !visible.is_empty() {
                let run = Run {
                    job,
                    tile,
                    slots: &slots,
                    visible,
                };
                // SAFETY: the caller's promise; `first..first + count` are queries of the tile.
                unsafe { run.step::<S>(first, &mut running[first..first + count]) }
            }
            first += count;
        }
    }
    for (i, running) in running.iter().enumerate() {
        // SAFETY: the caller's promise.
        for out in unsafe { job.out.slice(job.query(tile, i), job.d) } {
            *out /= running.sum;
        }
    }
}

/// The part of `positions` in span number `span`, counted from the span's start.
fn clip(positions: &Range<usize>, span: usize) -> Range<usize> {
    let start = span * SPAN;
    let clip = |position: usize| position.clamp(start, start + SPAN) - start;
    clip(positions.start)..clip(positions.end)
}

/// A span and what some queries see of it.
struct Run<'a> {
    job: &'a AttentionJob<'a>,
    tile: &'a Tile,
    slots: &'a Slots,
    visible: Range<usize>,
}

impl Run<'_> {
    /// # Safety
    /// As for [`attention`]; `running` must belong to the tile's queries from number `first` on.
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, first: usize, running: &mut [Running]) {
        // SAFETY: the caller's promise, with as many queries as `running` has.
        unsafe {
            match running.len() {
                1 => self.queries::<S, 1>(first, running),
                2 => self.queries::<S, 2>(first, running),
                3 => self.queries::<S, 3>(first, running),
                4 => self.queries::<S, 4>(first, running),
                5 => self.queries::<S, 5>(first, running),
                _ => self.queries::<S, 6>(first, running),
            }
        }
    }

    /// # Safety
    /// As for [`Run::step`], with `M` queries.
    #[inline(always)]
    unsafe fn queries<S: Simd, const M: usize>(&self, first: usize, running: &mut [Running]) {
        let d = self.job.d;
        let mut scores = [[f32::NEG_INFINITY; SPAN]; M];
        let mut outs = [std::ptr::null_mut(); M];
        // SAFETY: the caller's promise; a tile's queries do not overlap.
        unsafe {
            self.scores::<S, M>(first, &mut scores);
            for m in 0..M {
                let out = self.job.out.slice(self.job.query(self.tile, first + m), d);
                if let Some(correction) = self.weigh::<S>(&mut scores[m], &mut running[m]) {
                    for out in &mut *out {
                        *out *= correction;
                    }
                }
                outs[m] = out.as_mut_ptr();
            }
            let mut at = 0;
            while at + 4 * S::LANES <= d {
                self.values::<S, M, 4>(&scores, outs, at);
                at += 4 * S::LANES;
            }
            while at + S::LANES <= d {
                self.values::<S, M, 1>(&scores, outs, at);
                at += S::LANES;
            }
            if at < d {
                self.last_values::<S, M>(&scores, outs, at);
            }
        }
    }

    /// The scaled products of `M` queries with the visible keys.
    ///
    /// # Safety
    /// As for [`Run::step`], with `M` queries.
    #[inline(always)]
    unsafe fn scores<S: Simd, const M: usize>(&self, first: usize, scores: &mut [[f32; SPAN]; M]) {
        let (job, end) = (self.job, self.visible.end);
        let mut queries = [job.q.as_ptr(); M];
        // SAFETY: queries are in `q`, slots in the cache; of a last, incomplete quad the last key is repeated.
        unsafe {
            for (m, query) in queries.iter_mut().enumerate() {
                *query = query.add(job.query(self.tile, first + m));
            }
            for at in self.visible.clone().step_by(4) {
                let key = |r: usize| job.k.as_ptr().add(self.slots[(at + r).min(end - 1)]);
                let sums = products::<S, M>([key(0), key(1), key(2), key(3)], queries, job.d);
                for m in 0..M {
                    for r in 0..(end - at).min(4) {
                        scores[m][at + r] = sums[m][r] * job.options.scale;
                    }
                }
            }
        }
    }

    /// Turns a query's scores into weights relative to the largest score so far, zero where it sees nothing, and
    /// returns the factor by which that shrinks what was summed before, if it does.
    ///
    /// # Safety
    /// As for [`Simd`].
    #[inline(always)]
    unsafe fn weigh<S: Simd>(&self, scores: &mut [f32; SPAN], running: &mut Running) -> Option<f32> {
        let start = scores.as_mut_ptr();
        // SAFETY: the span is a multiple of the lanes.
        unsafe {
            if let Some(cap) = self.job.options.softcap {
                for at in (0..SPAN).step_by(S::LANES) {
                    let capped = tanh::<S>(S::div(S::load(start.add(at)), S::splat(cap)));
                    S::store(start.add(at), S::mul(S::splat(cap), capped));
                }
                scores[..self.visible.start].fill(f32::NEG_INFINITY);
                scores[self.visible.end..].fill(f32::NEG_INFINITY);
            }
            let mut max = S::splat(running.max);
            for at in (0..SPAN).step_by(S::LANES) {
                max = S::max(max, S::load(start.add(at)));
            }
            let old = std::mem::replace(&mut running.max, S::max_lane(max));
            for at in (0..SPAN).step_by(S::LANES) {
                let below = S::sub(S::load(start.add(at)), S::splat(running.max));
                S::store(start.add(at), exp::<S>(below));
            }
            scores[..self.visible.start].fill(0.0);
            scores[self.visible.end..].fill(0.0);
            let mut sums = S::splat(0.0);
            for at in (0..SPAN).step_by(S::LANES) {
                sums = S::add(sums, S::load(start.add(at)));
            }
            let zero = S::splat(0.0);
            let sum = S::sum4([sums, zero, zero, zero])[0];
            let correction = (old.to_bits() != running.max.to_bits()).then(|| (old - running.max).exp());
            running.sum = running.sum * correction.unwrap_or(1.0) + sum;
            correction
        }
    }

    /// Adds the weighted values to `C` vectors of each query's output, from element `at` on.
    ///
    /// # Safety
    /// As for [`Run::step`]; the vectors must be within the head.
    #[inline(always)]
    unsafe fn values<S: Simd, const M: usize, const C: usize>(
        &self,
        weights: &[[f32; SPAN]; M],
        outs: [*mut f32; M],
        at: usize,
    ) {
        // SAFETY: the caller's promise; slots are in the cache.
        unsafe {
            let mut sums = [[S::splat(0.0); C]; M];
            for m in 0..M {
                for c in 0..C {
                    sums[m][c] = S::load(outs[m].add(at + c * S::LANES));
                }
            }
            for position in self.visible.clone() {
                let value = self.job.v.as_ptr().add(self.slots[position] + at);
                for c in 0..C {
                    let value = S::load(value.add(c * S::LANES));
                    for m in 0..M {
                        sums[m][c] = S::fma(S::splat(weights[m][position]), value, sums[m][c]);
                    }
                }
            }
            for m in 0..M {
                for c in 0..C {
                    S::store(outs[m].add(at + c * S::LANES), sums[m][c]);
                }
            }
        }
    }

    /// As [`Run::values`] for the elements from `at` to the end of the head, fewer than a vector.
    ///
    /// # Safety
    /// As for [`Run::step`].
    #[inline(always)]
    unsafe fn last_values<S: Simd, const M: usize>(
        &self,
        weights: &[[f32; SPAN]; M],
        outs: [*mut f32; M],
        at: usize,
    ) {
        let rest = self.job.d - at;
        // SAFETY: the caller's promise; slots are in the cache.
        unsafe {
            for m in 0..M {
                let mut sums = S::load_first(outs[m].add(at), rest);
                for position in self.visible.clone() {
                    let value = S::load_first(self.job.v.as_ptr().add(self.slots[position] + at), rest);
                    sums = S::fma(S::splat(weights[m][position]), value, sums);
                }
                S::store_first(outs[m].add(at), rest, sums);
            }
        }
    }
}
