//! The paged keys and values of one layer.

use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Result, Tensor, bail};
use half::{bf16, vec::HalfBitsVecExt as _};

use super::{contiguous_mut, rows, storage_dtype};
use crate::{
    cpu::{KEY_GROUP, Output, Stored, StridedRows},
    pool,
};

/// Copying fewer numbers than this is not worth a second thread.
const PARALLEL_ELEMENTS: usize = 1 << 11;

/// How keys and values are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvDtype {
    /// As attention computes with them.
    F32,
    /// Rounded to bf16, 8 bits of precision, in half the memory.
    #[default]
    Bf16,
}

impl KvDtype {
    /// Bytes of one number.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Keys and values of one layer. Cloning shares the memory.
///
/// Keys are `[blocks, kv_heads, block_size / 16, head_dim, 16]`: sixteen positions lie side by side, so that a vector of
/// scores is made without adding up lanes. Values are `[blocks, kv_heads, block_size, head_dim]`.
#[derive(Debug, Clone)]
pub struct KvCache {
    pub(super) k: Tensor,
    pub(super) v: Tensor,
}

impl KvCache {
    /// A zeroed cache of `blocks` blocks of `block_size` tokens, a multiple of 16, on the CPU.
    pub fn new(
        blocks: usize,
        block_size: usize,
        kv_heads: usize,
        head_dim: usize,
        dtype: KvDtype,
    ) -> Result<Self> {
        if block_size == 0 || !block_size.is_multiple_of(KEY_GROUP) {
            bail!("a cache's blocks hold a multiple of {KEY_GROUP} tokens, not {block_size}");
        }
        let (keys, values) = (
            (blocks, kv_heads, block_size / KEY_GROUP, head_dim, KEY_GROUP),
            (blocks, kv_heads, block_size, head_dim),
        );
        let len = [kv_heads, block_size, head_dim]
            .iter()
            .try_fold(blocks, |product, &dim| product.checked_mul(dim));
        let Some(len) = len.filter(|len| *len <= isize::MAX as usize / size_of::<f32>()) else {
            bail!("a cache of {values:?} is too large");
        };
        // The allocator has zeroed pages, which take no memory until they are written.
        let zeros = |shape: candle_core::Shape| match dtype {
            KvDtype::F32 => Tensor::from_vec(vec![0.0_f32; len], shape, &Device::Cpu),
            KvDtype::Bf16 => {
                Tensor::from_vec(vec![0_u16; len].reinterpret_into::<bf16>(), shape, &Device::Cpu)
            }
        };
        Ok(Self {
            k: zeros(keys.into())?,
            v: zeros(values.into())?,
        })
    }
}

/// Stores the keys and values `[n, kv_heads * d]` of `n` tokens at their `slots` (block times block size plus offset).
/// Nothing is written unless every slot exists. Of equal slots the last one wins.
pub fn write_kv(cache: &KvCache, k: &Tensor, v: &Tensor, slots: &[u32]) -> Result<()> {
    if k.dims() != v.dims() {
        bail!(
            "write_kv: keys and values differ: {:?} and {:?}",
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
        let new = rows("write_kv", s2, l2)?;
        match s1 {
            CpuStorage::BF16(all) => self.write(contiguous_mut("write_kv", all, l1)?, l1, &new),
            CpuStorage::F32(all) => self.write(contiguous_mut("write_kv", all, l1)?, l1, &new),
            other => bail!("write_kv: a cache of {:?}", storage_dtype(other)),
        }
    }
}

impl Write<'_> {
    fn write<E: Stored>(&self, cache: &mut [E], layout: &Layout, new: &StridedRows<'_>) -> Result<()> {
        let ([blocks, heads, block_size, d], keys) = match *layout.dims() {
            [blocks, heads, groups, d, KEY_GROUP] => ([blocks, heads, groups * KEY_GROUP, d], true),
            [blocks, heads, block_size, d] => ([blocks, heads, block_size, d], false),
            _ => bail!("write_kv: the cache is {:?}", layout.shape()),
        };
        if heads * d != new.width || new.n != self.slots.len() {
            bail!(
                "write_kv: the cache is {:?}, {} tokens of {} numbers come for {} slots",
                layout.shape(),
                new.n,
                new.width,
                self.slots.len()
            );
        }
        let slots = blocks.saturating_mul(block_size);
        if let Some(slot) = self.slots.iter().find(|&&slot| slot as usize >= slots) {
            bail!("write_kv: slot {slot} is not below {blocks} blocks of {block_size}");
        }
        let cache = Output::new(cache);
        let write_head = |head: usize| {
            for (token, &slot) in self.slots.iter().enumerate() {
                let (block, offset) = (slot as usize / block_size, slot as usize % block_size);
                let group = ((block * heads + head) * block_size + offset - offset % KEY_GROUP) * d;
                // SAFETY: each head is one task's own.
                let to = unsafe { cache.slice(group, KEY_GROUP * d) };
                let from = &new.row(token)[head * d..][..d];
                if keys {
                    for (to, &x) in to[offset % KEY_GROUP..].iter_mut().step_by(KEY_GROUP).zip(from) {
                        *to = E::from_f32(x);
                    }
                } else {
                    for (to, &x) in to[offset % KEY_GROUP * d..].iter_mut().zip(from) {
                        *to = E::from_f32(x);
                    }
                }
            }
        };
        if new.n * new.width < PARALLEL_ELEMENTS {
            (0..heads).for_each(write_head);
        } else {
            pool::run(heads, write_head);
        }
        Ok(())
    }
}
