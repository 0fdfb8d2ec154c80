//! Where and with what a model computes: options that serving, planning and measuring share.

use std::num::NonZeroUsize;

use clap::Args;

use super::{Activations, Device, Error, KvDtype, THREADS_MAX, at_most};

/// Options of what computes, as typed.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct ComputeArgs {
    /// Where the model runs
    #[arg(long, env = "REMPART_DEVICE", value_enum, default_value = "auto")]
    pub device: Device,
    /// Threads that compute [default: the physical cores]
    #[arg(long, env = "REMPART_THREADS")]
    pub threads: Option<NonZeroUsize>,
    /// How layers with integer weights round their activations: to 8 bits, or to 16, which is slower and more exact
    #[arg(long, env = "REMPART_ACTIVATIONS", value_enum, default_value = "int8")]
    pub activations: Activations,
    /// How keys and values are held: rounded to 8 or 16 bits, or as computed [default: int8 on the CPU, bf16 on CUDA]
    #[arg(long, env = "REMPART_KV_DTYPE")]
    pub kv_dtype: Option<KvDtype>,
    /// Kernels of one instruction set, to look for a fault in another [default: the best this processor runs]
    #[arg(long, env = "REMPART_KERNELS")]
    pub kernels: Option<String>,
}

/// The same, checked.
#[derive(Debug, Clone)]
pub struct ComputeSettings {
    pub device: Device,
    pub threads: Option<usize>,
    pub activations: Activations,
    /// What the device is best at, unless asked for.
    pub kv_dtype: Option<KvDtype>,
    pub kernels: Option<String>,
}

impl ComputeArgs {
    /// Makes settings of what was typed, or says what is wrong with it.
    pub fn check(self) -> Result<ComputeSettings, Error> {
        let threads = self.threads.map(|n| at_most("--threads", n, THREADS_MAX));
        Ok(ComputeSettings {
            device: self.device,
            threads: threads.transpose()?,
            activations: self.activations,
            kv_dtype: self.kv_dtype,
            kernels: self.kernels,
        })
    }
}

impl ComputeSettings {
    /// How keys and values are held: as asked, or as the device is best at.
    pub fn kv_dtype_on(&self, on_cpu: bool) -> KvDtype {
        let best = if on_cpu { KvDtype::Int8 } else { KvDtype::Bf16 };
        self.kv_dtype.unwrap_or(best)
    }
}
