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

/// Whether an operation failed as its device had no memory, by what the driver or cuBLAS said. (Errors of our own kernels reach Candle as
/// texts.)
pub fn is_out_of_memory(error: &candle_core::Error) -> bool {
    let text = error.to_string();
    ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"]
        .iter()
        .any(|name| text.contains(name))
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

/// Bytes of a card's memory that tensors of this process have, on whichever of its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    /// Now.
    pub now: u64,
    /// The most since this was taken before, now included.
    pub peak: u64,
}

/// What this process has of a card, once all that was started on `device` has ended; the peak begins anew. `None` for the CPU.
///
/// # Errors
/// The driver's.
pub fn take_memory_use(device: &Device) -> Result<Option<MemoryUse>> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return crate::cuda::take_memory_use(device).map(Some);
    }
    let _ = device;
    Ok(None)
}

/// Has a card's operations make anew what memory they keep for passing use, as large as they then need it. Recorded steps go on
/// with theirs. Of the CPU there is none.
///
/// # Errors
/// The driver's.
pub fn forget_scratch(device: &Device) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        crate::cuda::forget_scratch(device)?;
    }
    let _ = device;
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Error;

    use super::is_out_of_memory;

    #[cfg(feature = "cuda")]
    #[test]
    fn the_peak_of_memory_is_kept_until_it_is_taken() {
        use candle_core::{DType, Tensor};

        // Other tests use the same card, but no such amounts.
        const BYTES: usize = 4 << 30;
        let device = super::open_cuda().unwrap();
        let peak = || super::take_memory_use(&device).unwrap().unwrap().peak as usize;
        peak();
        drop(Tensor::zeros(BYTES, DType::U8, &device).unwrap());
        assert!(peak() >= BYTES);
        assert!(peak() < BYTES);
    }

    #[test]
    fn a_lack_of_memory_is_told_from_other_failures() {
        let wrapped = |text: &'static str| Error::wrap(std::io::Error::other(text)).bt();
        assert!(is_out_of_memory(&wrapped(
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"
        )));
        assert!(is_out_of_memory(
            &wrapped("CublasError(CUBLAS_STATUS_ALLOC_FAILED)").context("a product")
        ));
        assert!(!is_out_of_memory(&wrapped(
            "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access\")"
        )));
    }
}
