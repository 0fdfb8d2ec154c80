//! The paged keys and values of one layer.

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor, bail};

use super::{elements, elements_mut};

/// Keys and values of one layer, each `[blocks, kv_heads, block_size, head_dim]` in `f32`. Cloning shares the memory.
#[derive(Debug, Clone)]
pub struct KvCache {
    pub k: Tensor,
    pub v: Tensor,
}

impl KvCache {
    /// A zeroed cache of `blocks` blocks of `block_size` tokens on the CPU.
    pub fn new(blocks: usize, block_size: usize, kv_heads: usize, head_dim: usize) -> Result<Self> {
        let shape = (blocks, kv_heads, block_size, head_dim);
        let bytes = [kv_heads, block_size, head_dim, 4]
            .iter()
            .try_fold(blocks, |product, &dim| product.checked_mul(dim));
        if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
            bail!("a cache of {shape:?} is too large");
        }
        Ok(Self {
            k: Tensor::zeros(shape, DType::F32, &Device::Cpu)?,
            v: Tensor::zeros(shape, DType::F32, &Device::Cpu)?,
        })
    }
}

/// Stores the keys and values `[n, kv_heads, d]` of `n` tokens at their `slots` (block times block size plus offset).
/// Nothing is written unless every slot exists. Of equal slots the last one wins.
pub fn write_kv(cache: &KvCache, k: &Tensor, v: &Tensor, slots: &[u32]) -> Result<()> {
    if cache.k.dims() != cache.v.dims() || k.dims() != v.dims() {
        bail!(
            "write_kv: keys and values differ: cache {:?} and {:?}, new {:?} and {:?}",
            cache.k.shape(),
            cache.v.shape(),
            k.shape(),
            v.shape()
        );
    }
    cache.k.inplace_op2(k, &Write { slots })?;
    cache.v.inplace_op2(v, &Write { slots })
}

struct Write<'a> {
    slots: &'a [u32],
}

impl InplaceOp2 for Write<'_> {
    fn name(&self) -> &'static str {
        "write_kv"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        let (&[blocks, heads, block_size, d], &[n, new_heads, new_d]) = (l1.dims(), l2.dims()) else {
            bail!(
                "write_kv: the cache is {:?}, the new tokens {:?}",
                l1.shape(),
                l2.shape()
            )
        };
        if (heads, d) != (new_heads, new_d) || n != self.slots.len() {
            bail!(
                "write_kv: the cache is {:?}, {:?} for {} slots",
                l1.shape(),
                l2.shape(),
                self.slots.len()
            );
        }
        if let Some(slot) = self
            .slots
            .iter()
            .find(|&&slot| slot as usize >= blocks.saturating_mul(block_size))
        {
            bail!(
                "write_kv: slot {slot} is not below {} blocks of {block_size}",
                blocks
            );
        }
        let (cache, new) = (elements_mut("write_kv", s1, l1)?, elements("write_kv", s2, l2)?);
        for (token, &slot) in self.slots.iter().enumerate() {
            let (block, offset) = (slot as usize / block_size, slot as usize % block_size);
            for head in 0..heads {
                let to = ((block * heads + head) * block_size + offset) * d;
                cache[to..to + d].copy_from_slice(&new[(token * heads + head) * d..][..d]);
            }
        }
        Ok(())
    }
}
