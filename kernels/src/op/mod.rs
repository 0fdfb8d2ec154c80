//! The operations of a transformer as Candle custom operations on `f32` tensors; a cache may hold bf16.
//!
//! Every operation checks shapes, types, devices and indices and reports what is wrong with them as a
//! [`candle_core::Error`]; none reads or writes outside its arguments, whatever they are.

mod bidirectional;
mod dense;
mod edit;
mod embed;
mod kv_cache;
mod paged_attention;
mod product;
mod rms_norm;
mod rope;
mod sample;

pub use bidirectional::{BidirectionalOptions, bidirectional_attention};
pub use dense::{Around, dense, feed_forward, layer_norm};
pub use edit::{activate, edit};
pub use embed::embed;
pub use kv_cache::{KvCache, KvDtype, write_kv};
pub use paged_attention::{AttentionOptions, AttentionRow, paged_attention};
pub use product::{Activation, InputNorm, Projection, gated_projections, linear, linear_add, projections};
pub use rms_norm::{rms_norm, rms_norm_add};
pub use rope::{RopeOptions, RopeStyle, rope, rope_and_write_kv};
pub use sample::{SampledToken, SamplingRow, TokenLogprobs, sample};

pub use crate::cpu::{DenseLayer, FeedForwardLayers, KEY_GROUP, LayerNorm};

use crate::cpu::StridedRows;
use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

/// The elements of a contiguous `f32` tensor.
fn elements<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(all) = storage else {
        bail!("{op}: the tensor must be f32, it is {:?}", storage_dtype(storage))
    };
    match layout
        .contiguous_offsets()
        .and_then(|(start, end)| all.get(start..end))
    {
        Some(elements) => Ok(elements),
        None => bail!("{op}: the tensor {:?} must be contiguous", layout.shape()),
    }
}

/// Calls `work` with the elements of each of some contiguous `f32` tensors on the CPU.
fn with_elements<'a, R>(
    op: &str,
    tensors: impl Iterator<Item = &'a Tensor>,
    work: impl FnOnce(&[&[f32]]) -> Result<R>,
) -> Result<R> {
    let guards: Vec<_> = tensors.map(Tensor::storage_and_layout).collect();
    let slices = guards
        .iter()
        .map(|(storage, layout)| match &**storage {
            Storage::Cpu(storage) => elements(op, storage, layout),
            _ => bail!("{op}: every tensor must be on the CPU"),
        })
        .collect::<Result<Vec<_>>>()?;
    work(&slices)
}

/// The rows of an `f32` tensor `[n, width]`, each contiguous: a part of the columns of a wider one, say.
fn rows<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<StridedRows<'a>> {
    let CpuStorage::F32(all) = storage else {
        bail!("{op}: the tensor must be f32, it is {:?}", storage_dtype(storage))
    };
    let (&[n, width], &[stride, step]) = (layout.dims(), layout.stride()) else {
        bail!("{op}: the tensor must be [n, width], it is {:?}", layout.shape())
    };
    let len = if n == 0 { 0 } else { (n - 1) * stride + width };
    // A part without rows may begin behind the end.
    let start = if n == 0 { 0 } else { layout.start_offset() };
    match all.get(start..start + len) {
        Some(elements) if step == 1 || width <= 1 => Ok(StridedRows {
            elements,
            stride,
            n,
            width,
        }),
        _ => bail!(
            "{op}: the rows of the tensor {:?} must be contiguous",
            layout.shape()
        ),
    }
}

/// The elements of a contiguous tensor, to write.
fn contiguous_mut<'a, T>(op: &str, all: &'a mut [T], layout: &Layout) -> Result<&'a mut [T]> {
    match layout
        .contiguous_offsets()
        .and_then(|(start, end)| all.get_mut(start..end))
    {
        Some(elements) => Ok(elements),
        None => bail!("{op}: the tensor {:?} must be contiguous", layout.shape()),
    }
}

fn storage_dtype(storage: &CpuStorage) -> candle_core::DType {
    use candle_core::backend::BackendStorage as _;
    storage.dtype()
}
