//! A model without its text: what computes, to be measured.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use candle_core::Device;
use rempart_engine::EngineConfig;
use rempart_models::parallel::{Collective, Single};
use rempart_models::{KvCache, ModelFiles, Steps};

use super::generator;
use crate::config::{self, ComputeSettings};
use crate::runner::CandleRunner;

/// Prepares the device, the pool of threads and the kernels that were asked for, of one of `ranks` processes that compute together.
///
/// # Errors
/// Says which setting can't work here.
pub fn prepare(compute: &ComputeSettings, ranks: usize) -> anyhow::Result<Device> {
    let device = super::open(compute.device)?;
    ensure!(
        ranks == 1 || device.is_cpu(),
        "--tensor-parallel {ranks} shares a model out among processes on the CPU: add --device cpu"
    );
    let threads = compute
        .threads
        .unwrap_or_else(rempart_kernels::pool::default_threads);
    rempart_kernels::pool::init((threads / ranks).max(1));
    super::choose_kernels(compute.kernels.as_deref())?;
    Ok(device)
}

/// Why the device can't compute a model, if it is a card and can't.
pub(super) fn card_refuses(files: &ModelFiles, compute: &ComputeSettings, device: &Device) -> Option<String> {
    let refused = || files.card_refuses(compute.activations.into(), compute.kv_dtype_on(false).into());
    (!device.is_cpu()).then(refused).flatten()
}

/// Where a model of this name is computed: on the device, or on the processor where that is a card that can't and was not asked for.
///
/// # Errors
/// It was asked for.
pub fn device_for(
    name: &str,
    files: &ModelFiles,
    compute: &ComputeSettings,
    device: &Device,
) -> anyhow::Result<Device> {
    let Some(why) = card_refuses(files, compute, device) else {
        return Ok(device.clone());
    };
    ensure!(
        compute.device == config::Device::Auto,
        "--device cuda: {why}; --device cpu computes this model"
    );
    tracing::warn!(
        model = name,
        "{why}: the models compute on the CPU; --device cpu leaves the card to others"
    );
    Ok(Device::Cpu)
}

/// Loads the model, with keys and values for the blocks of `config`.
///
/// # Errors
/// When a file is malformed, or the keys and values find no memory.
pub fn bare(
    compute: &ComputeSettings,
    files: &ModelFiles,
    device: &Device,
    config: &EngineConfig,
) -> anyhow::Result<CandleRunner> {
    let alone: Arc<dyn Collective> = Arc::new(Single);
    let model = generator::weights(files, compute, device, &alone)
        .with_context(|| format!("loading {}", files.checkpoint.path().display()))?;
    let dtype = compute.kv_dtype_on(device.is_cpu()).into();
    let kv = KvCache::new(&files.config, config.blocks, config.block_size, dtype, device)?;
    let steps = Steps::new(model, kv, &files.config, device);
    Ok(CandleRunner::new(steps, None))
}
