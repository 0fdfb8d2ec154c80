//! Options that are one of a few words.

use clap::ValueEnum;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvDtype {
    Int8,
    Bf16,
    F32,
}

/// How activations are rounded before they meet integer weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Activations {
    Int8,
    Int16,
}
