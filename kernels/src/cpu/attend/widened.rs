//! A cache of records as a source of attention for instruction sets that do not compute with its codes: each span is
//! widened for all queries of a tile.

#![expect(
    clippy::inline_always,
    reason = "the caller's target features must reach these bodies"
)]

use std::{cell::RefCell, ops::Range};

use super::{GROUPS, SPAN, Source, Span};
use crate::cpu::{
    records::{Records, record_bytes, widen_keys, widen_values},
    simd::Simd,
    stored::{Cells, KEY_GROUP},
};

thread_local! {
    /// Taken and put back, as in `vector`.
    static SCRATCH: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// The keys and the values of one span.
pub(super) struct Widened<'a> {
    records: Records<'a>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl<'a> Widened<'a> {
    pub(super) fn new(records: Records<'a>, d: usize) -> Self {
        let [mut k, mut v] = SCRATCH.take();
        k.resize(SPAN * d, 0.0);
        v.resize(SPAN * d, 0.0);
        Self { records, k, v }
    }

    fn cells(&self) -> Cells<'_, f32> {
        Cells {
            k: &self.k,
            v: &self.v,
        }
    }
}

impl Drop for Widened<'_> {
    fn drop(&mut self) {
        SCRATCH.set([std::mem::take(&mut self.k), std::mem::take(&mut self.v)]);
    }
}

/// The span's groups in [`Widened`].
const OWN: [usize; GROUPS] = {
    let mut own = [0; GROUPS];
    let mut i = 0;
    while i < GROUPS {
        own[i] = i;
        i += 1;
    }
    own
};

impl<S: Simd> Source<S> for Widened<'_> {
    #[inline(always)]
    unsafe fn enter(&mut self, span: &Span<'_>) {
        let (d, bytes) = (span.job.d, record_bytes(span.job.d));
        let groups = self
            .k
            .chunks_exact_mut(KEY_GROUP * d)
            .zip(self.v.chunks_exact_mut(KEY_GROUP * d));
        for (group, (k, v)) in span.groups.iter().zip(groups) {
            widen_keys(&self.records.k[group * bytes..][..bytes], d, k);
            widen_values(&self.records.v[group * bytes..][..bytes], d, v);
        }
    }

    #[inline(always)]
    unsafe fn scores<const M: usize>(
        &self,
        span: &Span<'_>,
        first: usize,
        seen: &Range<usize>,
        scores: &mut [[f32; SPAN]; M],
    ) {
        let own = Span {
            groups: &OWN,
            ..*span
        };
        // SAFETY: the caller's promise; the scratch has all groups of a span.
        unsafe { Source::<S>::scores(&self.cells(), &own, first, seen, scores) }
    }

    #[inline(always)]
    unsafe fn values<const M: usize>(
        &self,
        span: &Span<'_>,
        seen: &Range<usize>,
        weights: &[[f32; SPAN]; M],
        outs: [*mut f32; M],
    ) {
        let own = Span {
            groups: &OWN,
            ..*span
        };
        // SAFETY: as above.
        unsafe { Source::<S>::values(&self.cells(), &own, seen, weights, outs) }
    }
}
