//! Where a model computes.

use candle_core::{Device, Result};

/// Whether this build can use CUDA cards.
pub const HAS_CUDA: bool = cfg!(feature = "cuda");

/// Opens the first CUDA card. Each call makes a device with a stream of its own: models on devices of their own never wait for
/// each other's copies, nor record them.
///
/// # Errors
/// This binary is without CUDA, or there is no driver or no card, or the kernels were compiled for another generation.
pub fn open_cuda() -> Result<Device> {
    #[cfg(feature = "cuda")]
    return crate::cuda::open(0);
    #[cfg(not(feature = "cuda"))]
    candle_core::bail!("this binary was built without the feature cuda")
}

/// Bytes of a device's own memory that are free; `None` for the CPU, which has the system's.
///
/// # Errors
/// The driver's.
pub fn free_memory(device: &Device) -> Result<Option<u64>> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return crate::cuda::free_memory(device).map(Some);
    }
    let _ = device;
    Ok(None)
}
