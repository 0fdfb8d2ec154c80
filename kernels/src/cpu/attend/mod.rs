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

#[cfg(target_arch = "x86_64")]
mod vnni;
mod widened;

use std::ops::Range;

use super::{
    jobs::{AttentionJob, Tile},
    simd::Simd,
    stored::{Cache, KEY_GROUP},
    vector::{exp, tanh},
};
#[cfg(target_arch = "x86_64")]
pub(super) use vnni::attention as attention_vnni;

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

impl Running {
    /// Takes a span's largest score, if it is the largest so far, and the sum of exponentials below the larger; returns the
    /// factor by which what was summed before shrinks, if it does.
    #[inline(always)]
    fn add(&mut self, largest: f32, sum: f32) -> Option<f32> {
        let old = std::mem::replace(&mut self.max, largest);
        let correction = (old.to_bits() != largest.to_bits()).then(|| (old - largest).exp());
        self.sum = self.sum * correction.unwrap_or(1.0) + sum;
        correction
    }
}

/// What a tile's queries read.
trait Source<S: Simd> {
    /// The scaled products of `M` queries, those from number `first` on, with the keys around those seen.
    ///
    /// # Safety
    /// As for [`Simd`]; the queries must be the tile's, the span's groups in the cache.
    unsafe fn scores<const M: usize>(
        &self,
        span: &Span<'_>,
        first: usize,
        seen: &Range<usize>,
        scores: &mut [[f32; SPAN]; M],
    );

    /// As [`Span::weigh`].
    ///
    /// # Safety
    /// As for [`Simd`].
    #[inline(always)]
    unsafe fn weigh(
        &self,
        span: &Span<'_>,
        visible: &Range<usize>,
        scores: &mut [f32; SPAN],
        running: &mut Running,
    ) -> Option<f32> {
        // SAFETY: the caller's promise.
        unsafe { span.weigh::<S>(visible, scores, running) }
    }

    /// Adds the weighted values to each query's output. A position that none of them sees has no weight, and what is read
    /// there may be anything.
    ///
    /// # Safety
    /// As for [`Source::scores`]; the outputs must be valid for a head.
    unsafe fn values<const M: usize>(
        &self,
        span: &Span<'_>,
        seen: &Range<usize>,
        weights: &[[f32; SPAN]; M],
        outs: [*mut f32; M],
    );
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
            Cache::F32(cells) => over::<S, _>(job, &cells, tile),
            Cache::Bf16(cells) => over::<S, _>(job, &cells, tile),
            Cache::Int8(records) => over::<S, _>(job, &records, tile),
        }
    }
}

/// # Safety
/// As for [`attention`].
#[inline(always)]
unsafe fn over<S: Simd, C: Source<S>>(job: &AttentionJob<'_>, source: &C, tile: &Tile) {
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
    for number in all.start / SPAN..all.end.div_ceil(SPAN) {
        let within = clip(&all, number);
        // What nobody sees is read from a place that exists, and weighs nothing.
        let mut groups = [job.key_group(row, tile.kv_head, number * SPAN + within.start); GROUPS];
        for i in within.start / KEY_GROUP..within.end.div_ceil(KEY_GROUP) {
            groups[i] = job.key_group(row, tile.kv_head, number * SPAN + i * KEY_GROUP);
        }
        let span = Span {
            job,
            tile,
            number,
            groups: &groups,
        };
        let batches = queries.div_ceil(S::BATCH);
        let mut first = 0;
        for batch in 0..batches {
            let count = (queries - first).div_ceil(batches - batch);
            // SAFETY: the caller's promise; `first..first + count` are queries of the tile.
            unsafe { span.step::<S, C>(source, first, &mut running[first..first + count]) }
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
struct Span<'a> {
    job: &'a AttentionJob<'a>,
    tile: &'a Tile,
    number: usize,
    /// The groups of positions: of the cache's groups of all heads, which.
    groups: &'a [usize; GROUPS],
}

impl Span<'_> {
    /// # Safety
    /// As for [`attention`]; `running` must belong to the tile's queries from number `first` on.
    #[inline(always)]
    unsafe fn step<S: Simd, C: Source<S>>(&self, source: &C, first: usize, running: &mut [Running]) {
        // SAFETY: the caller's promise, with as many queries as `running` has.
        unsafe {
            match running.len() {
                1 => self.queries::<S, C, 1>(source, first, running),
                2 => self.queries::<S, C, 2>(source, first, running),
                3 => self.queries::<S, C, 3>(source, first, running),
                4 => self.queries::<S, C, 4>(source, first, running),
                5 => self.queries::<S, C, 5>(source, first, running),
                _ => self.queries::<S, C, 6>(source, first, running),
            }
        }
    }

    /// What a query sees of the span.
    fn visible(&self, query: usize) -> Range<usize> {
        let token = self.tile.tokens.start + query / self.job.group();
        clip(
            &self.job.visible(&self.job.rows[self.tile.row], token),
            self.number,
        )
    }

    /// # Safety
    /// As for [`Span::step`], with `M` queries.
    #[inline(always)]
    unsafe fn queries<S: Simd, C: Source<S>, const M: usize>(
        &self,
        source: &C,
        first: usize,
        running: &mut [Running],
    ) {
        // Queries are in the order of their tokens: the first sees furthest back, the last furthest ahead.
        let seen = self.visible(first).start..self.visible(first + M - 1).end;
        if seen.is_empty() {
            return;
        }
        let mut scores = [[f32::NEG_INFINITY; SPAN]; M];
        let mut outs = [std::ptr::null_mut(); M];
        // SAFETY: the caller's promise; a tile's queries do not overlap.
        unsafe {
            source.scores::<M>(self, first, &seen, &mut scores);
            for m in 0..M {
                let out = self
                    .job
                    .out
                    .slice(self.job.query(self.tile, first + m), self.job.d);
                let visible = self.visible(first + m);
                let (scores, running) = (&mut scores[m], &mut running[m]);
                if let Some(correction) = source.weigh(self, &visible, scores, running) {
                    for out in &mut *out {
                        *out *= correction;
                    }
                }
                outs[m] = out.as_mut_ptr();
            }
            source.values::<M>(self, &seen, &scores, outs);
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
            let largest = S::max_lane(max);
            for at in (0..SPAN).step_by(S::LANES) {
                let below = S::sub(S::load(start.add(at)), S::splat(largest));
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
            running.add(largest, sum)
        }
    }
}
