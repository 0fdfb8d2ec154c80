//! The processor's kernels.

pub(crate) mod dequantize;
pub mod scalar;
