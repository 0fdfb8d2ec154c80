//! The operations of a transformer as Candle custom operations on contiguous `f32` tensors.
//!
//! Every operation checks shapes, types, devices and indices and reports what is wrong with them as a
//! [`candle_core::Error`]; none reads or writes outside its arguments, whatever they are.

mod embed;
mod gated;
mod kv_cache;
mod linear;
mod paged_attention;
mod rms_norm;
mod rope;

pub use embed::embed;
pub use gated::{Activation, gated};
pub use kv_cache::{KvCache, write_kv};
pub use linear::linear;
pub use paged_attention::{AttentionOptions, AttentionRow, paged_attention};
pub use rms_norm::rms_norm;
pub use rope::{RopeStyle, rope};

use candle_core::{CpuStorage, Layout, Result, bail};

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

/// The elements of a contiguous `f32` tensor, to write.
fn elements_mut<'a>(op: &str, storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let dtype = storage_dtype(storage);
    let CpuStorage::F32(all) = storage else {
        bail!("{op}: the tensor must be f32, it is {dtype:?}")
    };
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
