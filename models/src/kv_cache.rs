//! The paged keys and values of all layers.

use rempart_kernels::op;

use crate::{ModelConfig, Result};

/// Keys and values of every layer, in blocks of `block_size` token slots shared by all sequences.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<op::KvCache>,
}

impl KvCache {
    /// Allocates zeroed f32 keys and values: per layer two tensors `[blocks, kv_heads, block_size, head_dim]`.
    ///
    /// # Errors
    /// When the device cannot hold them.
    pub fn new(config: &ModelConfig, blocks: usize, block_size: usize) -> Result<Self> {
        let layers = (0..config.layers)
            .map(|_| {
                let layer = op::KvCache::new(blocks, block_size, config.kv_heads, config.head_dim)?;
                // Zeroed memory takes no room until it is written: write it now, so that the process has its full
                // size before the first request instead of growing into it.
                layer.k.zero_set()?;
                layer.v.zero_set()?;
                Ok(layer)
            })
            .collect::<candle_core::Result<_>>()?;
        Ok(Self { layers })
    }

    /// Bytes that one block takes over all layers.
    pub fn block_bytes(config: &ModelConfig, block_size: usize) -> usize {
        2 * config.layers * block_size * config.kv_heads * config.head_dim * size_of::<f32>()
    }

    pub(crate) fn layer(&self, index: usize) -> &op::KvCache {
        &self.layers[index]
    }
}
