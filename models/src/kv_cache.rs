//! The paged keys and values of all layers.

use candle_core::Device;
use rempart_kernels::{KvDtype, op};

use crate::{ModelConfig, Result};

/// Keys and values of every layer, in blocks of `block_size` token slots shared by all sequences.
#[derive(Debug)]
pub struct KvCache {
    block_size: usize,
    layers: Vec<op::KvCache>,
}

impl KvCache {
    /// Allocates zeroed keys and values. On the CPU their memory is taken as it is written.
    ///
    /// # Errors
    /// When they are too large to be counted, or the block size is no multiple of 16.
    pub fn new(
        config: &ModelConfig,
        blocks: usize,
        block_size: usize,
        dtype: KvDtype,
        device: &Device,
    ) -> Result<Self> {
        let (heads, d) = (config.kv_heads, config.head_dim);
        let layer = |_| op::KvCache::new(blocks, block_size, heads, d, dtype, device);
        let layers = (0..config.layers)
            .map(layer)
            .collect::<candle_core::Result<_>>()?;
        Ok(Self { block_size, layers })
    }

    /// Bytes that one block takes over all layers.
    pub fn block_bytes(config: &ModelConfig, block_size: usize, dtype: KvDtype) -> usize {
        let heads = 2 * config.layers * config.kv_heads;
        heads * block_size.div_ceil(op::KEY_GROUP) * dtype.group_bytes(config.head_dim)
    }

    /// Token slots of a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    pub(crate) fn layer(&self, index: usize) -> &op::KvCache {
        &self.layers[index]
    }
}
