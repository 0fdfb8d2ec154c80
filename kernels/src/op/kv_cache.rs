//! The paged keys and values of one layer.

#[cfg(feature = "cuda")]
use candle_core::Storage;
use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor, bail};
use half::{bf16, vec::HalfBitsVecExt as _};

use super::{contiguous_mut, rows, storage_dtype};
#[cfg(feature = "cuda")]
use crate::cuda::ops::Written;
use crate::{
    card::refused_cache,
    cpu::{KEY_GROUP, Output, Stored, StridedRows, record_bytes, write_key, write_value},
    pool,
};

/// Copying fewer numbers than this is not worth a second thread.
const PARALLEL_ELEMENTS: usize = 1 << 11;

/// How keys and values are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvDtype {
    /// 32 bits.
    F32,
    /// Rounded to bf16, 8 bits of precision, in half the memory.
    Bf16,
    /// Whole numbers of 8 bits, a scale for each position and at most 64 dimensions of a head: a quarter of the memory, and
    /// the scales.
    #[default]
    Int8,
}

impl KvDtype {
    /// Bytes of 16 positions' keys, or values, of a head of `head_dim`.
    pub const fn group_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 => KEY_GROUP * head_dim * 4,
            Self::Bf16 => KEY_GROUP * head_dim * 2,
            Self::Int8 => record_bytes(head_dim),
        }
    }

    /// The dimensions of a group of positions.
    pub(super) fn group_dims(self, side: Side, head_dim: usize) -> Vec<usize> {
        match (self, side) {
            (Self::F32 | Self::Bf16, Side::Keys) => vec![head_dim, KEY_GROUP],
            (Self::F32 | Self::Bf16, Side::Values) => vec![KEY_GROUP, head_dim],
            (Self::Int8, _) => vec![record_bytes(head_dim)],
        }
    }
}

/// Keys and values of one layer. Cloning shares the memory.
///
/// Keys are `[blocks, kv_heads, block_size / 16, head_dim, 16]`: sixteen positions lie side by side, so that a vector of
/// scores is made without adding up lanes. Values are `[blocks, kv_heads, block_size / 16, 16, head_dim]`. With
/// [`KvDtype::Int8`] the last two dimensions of both are the bytes of a record, `cpu::records`. On a card, whose kernels add up
/// across lanes, it is the values whose positions lie side by side: the last two dimensions change places, and the codes of a
/// record are in the order of `kv_int8.cuh`.
#[derive(Debug, Clone)]
pub struct KvCache {
    pub(super) k: Tensor,
    pub(super) v: Tensor,
    pub(super) head_dim: usize,
    pub(super) dtype: KvDtype,
}

/// One of a cache's two tensors.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Keys,
    Values,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Keys => Self::Values,
            Self::Values => Self::Keys,
        }
    }
}

impl KvCache {
    /// A zeroed cache of `blocks` blocks of `block_size` tokens, a multiple of 16. On a card it is in bf16 or in 8 bits.
    pub fn new(
        blocks: usize,
        block_size: usize,
        kv_heads: usize,
        head_dim: usize,
        dtype: KvDtype,
        device: &Device,
    ) -> Result<Self> {
        if block_size == 0 || !block_size.is_multiple_of(KEY_GROUP) {
            bail!("a cache's blocks hold a multiple of {KEY_GROUP} tokens, not {block_size}");
        }
        if head_dim > HEAD_DIM_MAX {
            bail!("a cache's heads have at most {HEAD_DIM_MAX} dimensions, not {head_dim}");
        }
        let groups = (blocks, kv_heads, block_size / KEY_GROUP);
        let bytes = [kv_heads, block_size / KEY_GROUP, dtype.group_bytes(head_dim)]
            .iter()
            .try_fold(blocks, |product, &dim| product.checked_mul(dim));
        let Some(bytes) = bytes.filter(|bytes| *bytes <= isize::MAX as usize - LINE) else {
            bail!("a cache of {groups:?} groups of heads of {head_dim} is too large");
        };
        if !device.is_cpu()
            && let Some(why) = refused_cache(head_dim, dtype)
        {
            bail!("{why}; a CPU has them (--device cpu)");
        }
        let shape = |side| {
            [
                &[groups.0, groups.1, groups.2],
                &*dtype.group_dims(side, head_dim),
            ]
            .concat()
        };
        let tensor = |side: Side| match device {
            Device::Cpu => zeros(dtype, bytes, &shape(side)),
            _ if dtype == KvDtype::Int8 => Tensor::zeros(shape(side), DType::U8, device),
            _ => Tensor::zeros(shape(side.other()), DType::BF16, device),
        };
        Ok(Self {
            k: tensor(Side::Keys)?,
            v: tensor(Side::Values)?,
            head_dim,
            dtype,
        })
    }

    /// As the kernels of a card take it.
    #[cfg(feature = "cuda")]
    pub(super) fn on_card(&self) -> Result<crate::cuda::ops::Cache<'_>> {
        let &[_, kv_heads, groups, ..] = self.k.dims() else {
            bail!("the cache is {:?}", self.k.shape())
        };
        Ok(crate::cuda::ops::Cache {
            k: &self.k,
            v: &self.v,
            kv_heads,
            d: self.head_dim,
            block_size: groups * KEY_GROUP,
            dtype: self.dtype,
        })
    }
}

/// More than any model has, and few enough that a group's bytes are a number.
const HEAD_DIM_MAX: usize = 1 << 20;
/// Bytes of a line of the processor's caches.
const LINE: usize = 64;

/// Zeros of a shape that takes `bytes`, from the start of a line on, so that vectors do not cross lines.
fn zeros(dtype: KvDtype, bytes: usize, shape: &[usize]) -> Result<Tensor> {
    // The allocator has zeroed pages, which take no memory until they are written.
    match dtype {
        KvDtype::F32 => at_a_line(vec![0.0_f32; bytes / 4 + LINE / 4], bytes / 4, shape),
        KvDtype::Bf16 => {
            let zeros = vec![0_u16; bytes / 2 + LINE / 2].reinterpret_into::<bf16>();
            at_a_line(zeros, bytes / 2, shape)
        }
        KvDtype::Int8 => at_a_line(vec![0_u8; bytes + LINE], bytes, shape),
    }
}

/// The first `len` elements of a vector that start at a line as a tensor, whose shape has as many.
fn at_a_line<T: candle_core::WithDType>(elements: Vec<T>, len: usize, shape: &[usize]) -> Result<Tensor> {
    let before = elements.as_ptr().align_offset(LINE).min(elements.len() - len);
    Tensor::from_vec(elements, len + LINE / size_of::<T>(), &Device::Cpu)?
        .narrow(0, before, len)?
        .reshape(shape)
}

/// Stores the keys and values `[n, kv_heads * d]` of `n` tokens at their `slots` (block times block size plus offset).
/// Nothing is written unless every slot exists. Of equal slots the last one wins.
pub fn write_kv(cache: &KvCache, k: &Tensor, v: &Tensor, slots: &[u32]) -> Result<()> {
    #[cfg(feature = "cuda")]
    if cache.k.device().is_cuda() {
        return with_written(cache, [k, v], slots, crate::cuda::ops::write_kv);
    }
    check_alike(k, v)?;
    let write = |side| Write { slots, cache, side };
    cache.k.inplace_op2(k, &write(Side::Keys))?;
    cache.v.inplace_op2(v, &write(Side::Values))
}

/// Does something with keys and values as the kernels of a card take them, which store both in one launch.
#[cfg(feature = "cuda")]
pub(super) fn with_written<R>(
    cache: &KvCache,
    [k, v]: [&Tensor; 2],
    slots: &[u32],
    work: impl FnOnce(Written<'_>) -> Result<R>,
) -> Result<R> {
    check_alike(k, v)?;
    check(cache, cache.k.dims(), k.dims(), slots)?;
    let (k, v) = (k.storage_and_layout(), v.storage_and_layout());
    match ((&*k.0, k.1), (&*v.0, v.1)) {
        ((Storage::Cuda(k), k_layout), (Storage::Cuda(v), v_layout)) => work(Written {
            cache: cache.on_card()?,
            k: (k, k_layout),
            v: (v, v_layout),
            slots,
        }),
        _ => bail!("write_kv: the cache is on a card, keys or values are not"),
    }
}

fn check_alike(k: &Tensor, v: &Tensor) -> Result<()> {
    if k.dims() != v.dims() {
        bail!(
            "write_kv: keys and values differ: {:?} and {:?}",
            k.shape(),
            v.shape()
        );
    }
    Ok(())
}

/// Whether keys or values `new` `[n, kv_heads * d]` fit the cache, and every slot is there.
fn check(cache: &KvCache, dims: &[usize], new: &[usize], slots: &[u32]) -> Result<()> {
    let (&[blocks, heads, groups, ..], &[n, width]) = (dims, new) else {
        bail!("write_kv: the cache is {dims:?}, {new:?} come")
    };
    let (d, block_size) = (cache.head_dim, groups * KEY_GROUP);
    if heads * d != width || n != slots.len() {
        bail!(
            "write_kv: the cache is {dims:?} with heads of {d}, {n} tokens of {width} numbers come for {} slots",
            slots.len()
        );
    }
    let end = blocks.saturating_mul(block_size);
    if let Some(slot) = slots.iter().find(|&&slot| slot as usize >= end) {
        bail!("write_kv: slot {slot} is not below {blocks} blocks of {block_size}");
    }
    Ok(())
}

struct Write<'a> {
    slots: &'a [u32],
    cache: &'a KvCache,
    side: Side,
}

impl InplaceOp2 for Write<'_> {
    fn name(&self) -> &'static str {
        "write_kv"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        let new = rows("write_kv", s2, l2)?;
        match s1 {
            CpuStorage::BF16(all) => {
                self.write(contiguous_mut("write_kv", all, l1)?, l1, &new, number::<bf16>)
            }
            CpuStorage::F32(all) => self.write(contiguous_mut("write_kv", all, l1)?, l1, &new, number::<f32>),
            CpuStorage::U8(all) => self.write(contiguous_mut("write_kv", all, l1)?, l1, &new, code),
            other => bail!("write_kv: a cache of {:?}", storage_dtype(other)),
        }
    }
}

/// Writes the numbers of a position to its group of a head.
fn number<E: Stored>(side: Side, group: &mut [E], position: usize, x: &[f32]) {
    match side {
        Side::Keys => {
            for (to, &x) in group[position..].iter_mut().step_by(KEY_GROUP).zip(x) {
                *to = E::from_f32(x);
            }
        }
        Side::Values => {
            for (to, &x) in group[position * x.len()..].iter_mut().zip(x) {
                *to = E::from_f32(x);
            }
        }
    }
}

/// As [`number`] to a record.
fn code(side: Side, record: &mut [u8], position: usize, x: &[f32]) {
    match side {
        Side::Keys => write_key(record, position, x),
        Side::Values => write_value(record, position, x),
    }
}

impl Write<'_> {
    fn write<E: Send + Sync>(
        &self,
        cache: &mut [E],
        layout: &Layout,
        new: &StridedRows<'_>,
        write: impl Fn(Side, &mut [E], usize, &[f32]) + Sync,
    ) -> Result<()> {
        check(self.cache, layout.dims(), &[new.n, new.width], self.slots)?;
        let (heads, groups, d) = (layout.dims()[1], layout.dims()[2], self.cache.head_dim);
        let block_size = groups * KEY_GROUP;
        let (cache, len) = (
            Output::new(cache),
            self.cache.dtype.group_dims(self.side, d).iter().product(),
        );
        let write_head = |head: usize| {
            for (token, &slot) in self.slots.iter().enumerate() {
                let (block, offset) = (slot as usize / block_size, slot as usize % block_size);
                let group = (block * heads + head) * groups + offset / KEY_GROUP;
                // SAFETY: each head is one task's own.
                let to = unsafe { cache.slice(group * len, len) };
                write(
                    self.side,
                    to,
                    offset % KEY_GROUP,
                    &new.row(token)[head * d..][..d],
                );
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
