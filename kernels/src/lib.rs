//! Arithmetic of the models: weight formats, the processor's kernels, and the Candle operation around each.
//!
//! Between operations activations are `f32`. Weights with integer codes are packed ([`Packed`]) and meet activations
//! rounded to whole numbers ([`Activations`]); others are read in the format of their file, and multiplied in `f32`. The
//! result of a row never depends on the other rows of its batch: every kernel sums one row in one order, whatever
//! surrounds it.

// Unit tests share what the integration tests have in common.
#[cfg(all(test, target_arch = "x86_64"))]
extern crate self as rempart_kernels;

mod card;
pub mod cpu;
// On the host the kernels are tested once: under an emulated processor that would take an hour.
#[cfg(any(feature = "cuda", all(test, target_arch = "x86_64")))]
mod cuda;
mod dense;
mod device;
mod error;
mod format;
mod graphs;
mod heap;
mod matrix;
pub mod op;
mod packed;
pub mod pool;
pub mod roof;
mod weight;

pub use card::CardNeeds;
#[cfg(feature = "cuda")]
pub use cuda::CardWeight;
#[cfg(feature = "nccl")]
pub use cuda::{CARD_GROUP_BYTES, CardGroup};
pub use dense::{Dense, Precision};
pub use device::{
    HAS_CUDA, MemoryUse, forget_scratch, free_memory, is_out_of_memory, open_cuda, take_memory_use,
};
pub use error::Error;
pub use format::Format;
pub use graphs::{Graphs, Heads, RECORDED_SEQUENCES_MAX, StepArrays};
pub use heap::{keep_freed_memory, trim_heap, use_one_heap};
pub use matrix::Matrix;
pub use op::{
    Activation, AttentionOptions, AttentionRow, InputNorm, KvCache, KvDtype, Projection, RopeOptions,
    RopeStyle, edit, embed, gated_projections, linear, linear_add, paged_attention, projections, rms_norm,
    rms_norm_add, rope, rope_and_write_kv, write_kv,
};
pub use packed::{Activations, Packed, Pages};
pub use weight::Weight;
