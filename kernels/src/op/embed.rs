//! Rows of an embedding.

use candle_core::{Device, Result, Tensor, bail};

use crate::Weight;

/// The rows `ids` of `weight` `[vocab, d]` times `scale`, as `[ids.len(), d]` where the weight is. An id that is not below the
/// number of rows is an error.
pub fn embed(weight: &Weight, ids: &[u32], scale: f32) -> Result<Tensor> {
    let (vocab, d) = (weight.rows(), weight.cols());
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
        bail!("embed: token {id} is not below the vocabulary's {vocab}");
    }
    #[cfg(feature = "cuda")]
    if let Weight::Card(weight) = weight {
        return crate::cuda::ops::embed(weight, ids, scale);
    }
    let mut out = vec![0.0; ids.len() * d];
    if d > 0 {
        for (out, &id) in out.chunks_exact_mut(d).zip(ids) {
            weight.row(id as usize, out);
            for x in out {
                *x *= scale;
            }
        }
    }
    Tensor::from_vec(out, (ids.len(), d), &Device::Cpu)
}
