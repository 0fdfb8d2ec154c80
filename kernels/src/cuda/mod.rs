//! The CUDA kernels of `kernels/cuda`: what each is started with, on a card or, in tests, on the host.
//!
//! Arguments are one structure, laid out as the kernel's. The functions here that make a [`Launch`] decide how many threads
//! there are of; they see addresses alone, so that the same ones serve a card and the host.

mod args;
mod attention;
mod block;
#[cfg(feature = "cuda")]
pub(crate) mod device;
#[cfg(feature = "cuda")]
mod graph;
#[cfg(feature = "nccl")]
mod nccl;
#[cfg(feature = "cuda")]
pub(crate) mod ops;
mod packed;
mod panels;
mod sample;
#[cfg(feature = "cuda")]
mod staging;
#[cfg(test)]
mod tests;
#[cfg(feature = "cuda")]
mod weight;

#[cfg(test)]
pub(crate) use args::{Address, Args, Launch};
#[cfg(feature = "cuda")]
pub(crate) use device::{forget_scratch, free_memory, open, take_memory_use, trim};
#[cfg(feature = "cuda")]
pub(crate) use graph::{StepGraph, graph_splits};
#[cfg(feature = "nccl")]
pub use nccl::{CARD_GROUP_BYTES, CardGroup};
#[cfg(feature = "cuda")]
pub use weight::CardWeight;
