//! Paged attention over any vector width: one pass over the cache with a running softmax.
//!
//! Positions are taken in spans that start at multiples of [`SPAN`], so a query's sums are made in the same order
//! whatever tile it is in. What a query does not see of a span weighs zero, which changes no sum
//! of finite values.

#![expect(
    clippy::needless_range_loop,
    reason = "loops over constants unroll, and their indices are registers' numbers"
)]
#![expect(
    clippy::inline_always,
    reason = "the caller's target features must reach these bodies"
)]

use std::ops::Range;

use half::bf16;

use super::{
    jobs::{AttentionJob, Tile},
    simd::Simd,
    stored::{Cache, Cells, KEY_GROUP, Stored},
    vector::{exp, tanh},
};

/// Positions whose scores are held at once; a multiple of every vector's lanes.
const SPAN: usize = 64;
/// Groups of keys in a span.
const GROUPS: usize = SPAN / KEY_GROUP;

/// The running softmax of a query: the largest score so far and the sum of exponentials below it.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

/// Attention of one tile's queries.
///
/// # Safety
/// As for [`Simd`]; the output of the tile's queries must be zero, and no other thread may write it.
#[inline(always)]
pub(super) unsafe fn attention<S: Simd>(job: &AttentionJob<'_>, tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe {
        match job.cache {
            Cache::F32(cells) => over::<S, f32>(job, cells, tile),
            Cache::Bf16(cells) => over::<S, bf16>(job, cells, tile),
        }
    }
}

/// # Safety
/// As for [`attention`].
#[inline(always)]
unsafe fn over<S: Simd, E: Stored>(job: &AttentionJob<'_>, cells: Cells<'_, E>, tile: &Tile) {
    let (row, group) = (&job.rows[tile.row], job.group());
    let queries = tile.tokens.len() * group;
    let mut running = vec![
        Running {
            max: f32::NEG_INFINITY,
            sum: 0.0
        };
        queries
    ];
    let all = job.visible(row, tile.tokens.start).start..job.visible(row, tile.tokens.end - 1).end;
    for span in all.start / SPAN..all.end.div_ceil(SPAN) {
        let within = clip(&all, span);
        // What nobody sees is read from a place that exists, and weighs nothing.
        let mut groups = [job.group_start(row, tile.kv_head, span * SPAN + within.start); GROUPS];
        for i in within.start / KEY_GROUP..within.end.div_ceil(KEY_GROUP) {
            groups[i] = job.group_start(row, tile.kv_head, span * SPAN + i * KEY_GROUP);
        }
        let run = Run {
            job,
            cells,
            tile,
            span,
            groups: &groups,
        };
        let batches = queries.div_ceil(S::BATCH);
        let mut first = 0;
        for batch in 0..batches {
            let count = (queries - first).div_ceil(batches - batch);
            // SAFETY: the caller's promise; `first..first + count` are queries of the tile.
            unsafe { run.step::<S>(first, &mut running[first..first + count]) }
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

/// A span of the positions that some queries see.
struct Run<'a, E> {
    job: &'a AttentionJob<'a>,
    cells: Cells<'a, E>,
    tile: &'a Tile,
    span: usize,
    /// Where the keys and the values of each group of positions start.
    groups: &'a [usize; GROUPS],
}

impl<E: Stored> Run<'_, E> {
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

    /// What a query sees of the span.
    fn visible(&self, query: usize) -> Range<usize> {
        let token = self.tile.tokens.start + query / self.job.group();
        clip(&self.job.visible(&self.job.rows[self.tile.row], token), self.span)
    }

    /// # Safety
    /// As for [`Run::step`], with `M` queries.
    #[inline(always)]
    unsafe fn queries<S: Simd, const M: usize>(&self, first: usize, running: &mut [Running]) {
        let d = self.job.d;
        // Queries are in the order of their tokens: the first sees furthest back, the last furthest ahead.
        let seen = self.visible(first).start..self.visible(first + M - 1).end;
        if seen.is_empty() {
            return;
        }
        let mut scores = [[f32::NEG_INFINITY; SPAN]; M];
        let mut outs = [std::ptr::null_mut(); M];
        // SAFETY: the caller's promise; a tile's queries do not overlap.
        unsafe {
            match S::LANES {
                8 => self.scores::<S, M, 2>(first, &seen, &mut scores),
                _ => self.scores::<S, M, 4>(first, &seen, &mut scores),
            }
            for m in 0..M {
                let out = self.job.out.slice(self.job.query(self.tile, first + m), d);
                let visible = self.visible(first + m);
                if let Some(correction) = self.weigh::<S>(&visible, &mut scores[m], &mut running[m]) {
                    for out in &mut *out {
                        *out *= correction;
                    }
                }
                outs[m] = out.as_mut_ptr();
            }
            let mut at = 0;
            while at + 4 * S::LANES <= d {
                self.values::<S, M, 4>(&seen, &scores, outs, at);
                at += 4 * S::LANES;
            }
            while at + S::LANES <= d {
                self.values::<S, M, 1>(&seen, &scores, outs, at);
                at += S::LANES;
            }
            if at < d {
                self.last_values::<S, M>(&seen, &scores, outs, at);
            }
        }
    }

    /// The scaled products of `M` queries with the keys around those seen, `C` vectors of positions at a time.
    ///
    /// # Safety
    /// As for [`Run::step`], with `M` queries; `C` vectors must divide a span, and groups of keys divide them or they
    /// these.
    #[inline(always)]
    unsafe fn scores<S: Simd, const M: usize, const C: usize>(
        &self,
        first: usize,
        seen: &Range<usize>,
        scores: &mut [[f32; SPAN]; M],
    ) {
        let (job, chunk) = (self.job, C * S::LANES);
        let mut queries = [job.q.as_ptr(); M];
        // SAFETY: queries are in `q`, groups in the cache.
        unsafe {
            for (m, query) in queries.iter_mut().enumerate() {
                *query = query.add(job.query(self.tile, first + m));
            }
            for start in (seen.start / chunk * chunk..seen.end).step_by(chunk) {
                let mut keys = [self.cells.k.as_ptr(); C];
                for c in 0..C {
                    let position = start + c * S::LANES;
                    keys[c] = keys[c].add(self.groups[position / KEY_GROUP] + position % KEY_GROUP);
                }
                let mut sums = [[S::splat(0.0); C]; M];
                for i in 0..job.d {
                    let mut key = [S::splat(0.0); C];
                    for c in 0..C {
                        key[c] = E::load::<S>(keys[c].add(i * KEY_GROUP));
                    }
                    for m in 0..M {
                        let query = S::splat(*queries[m].add(i));
                        for c in 0..C {
                            sums[m][c] = S::fma(query, key[c], sums[m][c]);
                        }
                    }
                }
                let scale = S::splat(job.options.scale);
                for m in 0..M {
                    for c in 0..C {
                        let to = scores[m].as_mut_ptr().add(start + c * S::LANES);
                        S::store(to, S::mul(sums[m][c], scale));
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
    unsafe fn weigh<S: Simd>(
        &self,
        visible: &Range<usize>,
        scores: &mut [f32; SPAN],
        running: &mut Running,
    ) -> Option<f32> {
        if visible.is_empty() {
            scores.fill(0.0);
            return None;
        }
        let start = scores.as_mut_ptr();
        // SAFETY: the span is a multiple of the lanes.
        unsafe {
            if let Some(cap) = self.job.options.softcap {
                for at in (0..SPAN).step_by(S::LANES) {
                    let capped = tanh::<S>(S::div(S::load(start.add(at)), S::splat(cap)));
                    S::store(start.add(at), S::mul(S::splat(cap), capped));
                }
            }
            scores[..visible.start].fill(f32::NEG_INFINITY);
            scores[visible.end..].fill(f32::NEG_INFINITY);
            let mut max = S::splat(running.max);
            for at in (0..SPAN).step_by(S::LANES) {
                max = S::max(max, S::load(start.add(at)));
            }
            let old = std::mem::replace(&mut running.max, S::max_lane(max));
            for at in (0..SPAN).step_by(S::LANES) {
                let below = S::sub(S::load(start.add(at)), S::splat(running.max));
                S::store(start.add(at), exp::<S>(below));
            }
            scores[..visible.start].fill(0.0);
            scores[visible.end..].fill(0.0);
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

    /// Where the values of a position of the span start.
    #[inline(always)]
    fn value(&self, position: usize) -> *const E {
        let at = self.groups[position / KEY_GROUP] + position % KEY_GROUP * self.job.d;
        self.cells.v.as_ptr().wrapping_add(at)
    }

    /// Adds the weighted values to `C` vectors of each query's output, from element `at` on.
    ///
    /// # Safety
    /// As for [`Run::step`]; the vectors must be within the head.
    #[inline(always)]
    unsafe fn values<S: Simd, const M: usize, const C: usize>(
        &self,
        seen: &Range<usize>,
        weights: &[[f32; SPAN]; M],
        outs: [*mut f32; M],
        at: usize,
    ) {
        // SAFETY: the caller's promise; groups are in the cache.
        unsafe {
            let mut sums = [[S::splat(0.0); C]; M];
            for m in 0..M {
                for c in 0..C {
                    sums[m][c] = S::load(outs[m].add(at + c * S::LANES));
                }
            }
            for position in seen.clone() {
                let value = self.value(position).add(at);
                for c in 0..C {
                    let value = E::load::<S>(value.add(c * S::LANES));
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
        seen: &Range<usize>,
        weights: &[[f32; SPAN]; M],
        outs: [*mut f32; M],
        at: usize,
    ) {
        let rest = self.job.d - at;
        // SAFETY: the caller's promise; groups are in the cache.
        unsafe {
            for m in 0..M {
                let mut sums = S::load_first(outs[m].add(at), rest);
                for position in seen.clone() {
                    let value = E::load_first::<S>(self.value(position).add(at), rest);
                    sums = S::fma(S::splat(weights[m][position]), value, sums);
                }
                S::store_first(outs[m].add(at), rest, sums);
            }
        }
    }
}
