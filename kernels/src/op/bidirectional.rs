//! Bidirectional self-attention of ragged sequences.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::rows;
use crate::{
    Precision,
    cpu::{self, BidirectionalJob},
};

/// How an encoder's tokens attend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BidirectionalOptions {
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Multiplies the products of queries and keys; positive.
    pub scale: f32,
    /// A token at position `t` sees `t - window ..= t + window`; without, all of its sequence.
    pub window: Option<usize>,
    /// How queries, keys, values and exponentials may be rounded: they are where that is faster.
    pub precision: Precision,
}

/// `softmax(scale * q k^T) v` of each head within each sequence: `q`, `k`, `v` and the result `[n, heads * head_dim]`, all
/// sequences' tokens behind one another, `lengths` of them in each. A sequence's result is the same bits alone and in any
/// batch.
pub fn bidirectional_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lengths: &[usize],
    options: &BidirectionalOptions,
) -> Result<Tensor> {
    q.apply_op3_no_bwd(k, v, &Bidirectional { lengths, options })
}

struct Bidirectional<'a> {
    lengths: &'a [usize],
    options: &'a BidirectionalOptions,
}

impl CustomOp3 for Bidirectional<'_> {
    fn name(&self) -> &'static str {
        "bidirectional_attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let name = self.name();
        let (q, k, v) = (rows(name, s1, l1)?, rows(name, s2, l2)?, rows(name, s3, l3)?);
        let BidirectionalOptions {
            head_dim,
            scale,
            window,
            precision,
        } = *self.options;
        let (n, width) = (q.n, q.width);
        if [(k.n, k.width), (v.n, v.width)] != [(n, width); 2]
            || head_dim == 0
            || !width.is_multiple_of(head_dim)
        {
            bail!(
                "{name}: {:?}, {:?} and {:?} in heads of {head_dim}",
                l1.shape(),
                l2.shape(),
                l3.shape()
            );
        }
        let total = self
            .lengths
            .iter()
            .try_fold(0_usize, |sum, &len| sum.checked_add(len));
        if total != Some(n) {
            bail!("{name}: the sequences' lengths do not add up to {n} tokens");
        }
        if !(scale > 0.0 && scale.is_finite()) {
            bail!("{name}: the scale is {scale}");
        }
        let attend = |out: &cpu::Output<'_>| {
            let kernels = cpu::best();
            kernels.bidirectional(&BidirectionalJob {
                q,
                k,
                v,
                d: head_dim,
                lengths: self.lengths,
                scale,
                precision: kernels.attention_precision(precision, head_dim),
                window,
                out: out.share(),
            });
        };
        // SAFETY: every query of every head is written.
        let out = unsafe { cpu::filled(n * width, attend) };
        Ok((CpuStorage::F32(out), Shape::from((n, width))))
    }
}
