//! Attention of ragged rows over the paged cache.

use std::ops::Range;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::{KvCache, elements};
use crate::cpu::{self, AttentionJob, Cache, Cells, KEY_GROUP, Output, Records};

/// One sequence's part of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionRow {
    /// The sequence's tokens among the rows of `q`.
    pub tokens: Range<usize>,
    /// Tokens of the sequence in the cache, these included: the last of `tokens` is at position `context_len - 1`.
    pub context_len: usize,
    /// The blocks that hold the context, in order.
    pub block_table: Vec<u32>,
}

/// What does not differ between the rows of a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionOptions {
    /// Multiplies the products of queries and keys.
    pub scale: f32,
    /// A token at position `t` sees `(t - window, t]`; without, all of its past.
    pub window: Option<usize>,
    /// Scores pass through `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
}

/// Causal attention of `q` `[n, heads * d]` over the cache; the result has the same shape. Query head `h` reads the
/// cache's head `h / (heads / kv_heads)`. Tokens that no row names come out as zeros. A token's result is the same
/// bits whatever chunk or batch computes it, as long as keys and values are finite.
pub fn paged_attention(
    q: &Tensor,
    cache: &KvCache,
    rows: &[AttentionRow],
    options: &AttentionOptions,
) -> Result<Tensor> {
    q.apply_op3_no_bwd(&cache.k, &cache.v, &PagedAttention { cache, rows, options })
}

struct PagedAttention<'a> {
    cache: &'a KvCache,
    rows: &'a [AttentionRow],
    options: &'a AttentionOptions,
}

struct Dims {
    n: usize,
    heads: usize,
    kv_heads: usize,
    block_size: usize,
    d: usize,
}

impl CustomOp3 for PagedAttention<'_> {
    fn name(&self) -> &'static str {
        "paged_attention"
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
        let q = elements(self.name(), s1, l1)?;
        let cache = match (s2, s3) {
            (CpuStorage::BF16(k), CpuStorage::BF16(v)) => Cache::Bf16(Cells {
                k: part(k, l2)?,
                v: part(v, l3)?,
            }),
            (CpuStorage::F32(k), CpuStorage::F32(v)) => Cache::F32(Cells {
                k: part(k, l2)?,
                v: part(v, l3)?,
            }),
            (CpuStorage::U8(k), CpuStorage::U8(v)) => Cache::Int8(Records {
                k: part(k, l2)?,
                v: part(v, l3)?,
            }),
            _ => bail!("paged_attention: keys and values must both be f32, bf16 or codes"),
        };
        let Dims {
            n,
            heads,
            kv_heads,
            block_size,
            d,
        } = self.check(l1, l2)?;
        let mut out = vec![0.0; q.len()];
        let job = AttentionJob {
            q,
            cache,
            heads,
            kv_heads,
            block_size,
            d,
            rows: self.rows,
            options: self.options,
            out: Output::new(&mut out),
        };
        // SAFETY: `check` has compared the rows with the shapes, and the output was made of zeros.
        unsafe { cpu::best().attention(&job) };
        Ok((CpuStorage::F32(out), Shape::from((n, heads * d))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        _s2: &CudaStorage,
        l2: &Layout,
        _s3: &CudaStorage,
        _l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.check(l1, l2)?;
        crate::cuda::ops::paged_attention((s1, l1), self.cache.on_card()?, self.rows, self.options)
    }
}

fn part<'a, E>(all: &'a [E], layout: &Layout) -> Result<&'a [E]> {
    let part = layout
        .contiguous_offsets()
        .and_then(|(start, end)| all.get(start..end));
    part.map_or_else(|| bail!("paged_attention: the cache must be contiguous"), Ok)
}

impl PagedAttention<'_> {
    fn check(&self, q: &Layout, keys: &Layout) -> Result<Dims> {
        // Nothing but `KvCache::new` makes these tensors, of one size and for the cache's `head_dim`.
        let (&[n, width], &[blocks, kv_heads, groups, ..]) = (q.dims(), keys.dims()) else {
            bail!(
                "paged_attention: q is {:?}, the keys {:?}",
                q.shape(),
                keys.shape()
            )
        };
        let (d, block_size) = (self.cache.head_dim, groups * KEY_GROUP);
        if kv_heads == 0 || d == 0 || !width.is_multiple_of(kv_heads * d) {
            bail!(
                "paged_attention: q is {:?}, the cache has {kv_heads} heads of {d}",
                q.shape()
            );
        }
        let heads = width / d;
        if heads == 0 || self.options.window == Some(0) {
            bail!(
                "paged_attention: {heads} heads and a window of {:?} tokens",
                self.options.window
            );
        }
        let mut ranges: Vec<_> = self
            .rows
            .iter()
            .map(|row| row.tokens.clone())
            .filter(|tokens| !tokens.is_empty())
            .collect();
        ranges.sort_unstable_by_key(|range| range.start);
        if ranges.last().is_some_and(|last| last.end > n)
            || ranges.windows(2).any(|pair| pair[0].end > pair[1].start)
        {
            bail!("paged_attention: the rows' tokens overlap or pass the {n} of q");
        }
        for row in self.rows.iter().filter(|row| !row.tokens.is_empty()) {
            if row.context_len < row.tokens.len()
                || row.context_len.div_ceil(block_size) > row.block_table.len()
            {
                bail!(
                    "paged_attention: {} tokens, a context of {} and {} blocks of {block_size} do not agree",
                    row.tokens.len(),
                    row.context_len,
                    row.block_table.len()
                );
            }
            if let Some(block) = row.block_table.iter().find(|&&block| block as usize >= blocks) {
                bail!("paged_attention: block {block} is not below the cache's {blocks}");
            }
        }
        Ok(Dims {
            n,
            heads,
            kv_heads,
            block_size,
            d,
        })
    }
}
