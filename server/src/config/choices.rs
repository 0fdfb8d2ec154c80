//! Options that are one of a few words.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How lines of the log are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Human,
    Json,
}

/// How much is logged. Prompts, answers and keys are in no line at any level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Where the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// A CUDA card where this binary has CUDA and the machine a card, otherwise the CPU.
    Auto,
    Cpu,
    Cuda,
}

/// How keys and values are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum KvDtype {
    Int8,
    Bf16,
    F32,
}

impl From<KvDtype> for rempart_models::KvDtype {
    fn from(dtype: KvDtype) -> Self {
        match dtype {
            KvDtype::Int8 => Self::Int8,
            KvDtype::Bf16 => Self::Bf16,
            KvDtype::F32 => Self::F32,
        }
    }
}

/// How activations are rounded before they meet integer weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Activations {
    Int8,
    Int16,
}

impl From<Activations> for rempart_kernels::Activations {
    fn from(activations: Activations) -> Self {
        match activations {
            Activations::Int8 => Self::Int8,
            Activations::Int16 => Self::Int16,
        }
    }
}
