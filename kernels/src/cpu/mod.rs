//! The processor's kernels: one table of functions for each instruction set, chosen at run time.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(any(
    target_arch = "x86_64",
    all(target_arch = "aarch64", target_endian = "little")
))]
mod attend;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_packed;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
#[cfg(target_arch = "x86_64")]
mod avx512_codes;
#[cfg(target_arch = "x86_64")]
mod avx512_decode;
#[cfg(target_arch = "x86_64")]
mod avx512_vnni;
mod bidirectional;
#[cfg(target_arch = "x86_64")]
mod blocks;
mod dense;
mod dequantize;
mod jobs;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon_dotprod;
mod operand;
mod packed;
mod panel;
mod peak;
mod product;
mod records;
#[cfg(any(
    target_arch = "x86_64",
    all(target_arch = "aarch64", target_endian = "little")
))]
mod rows;
pub(crate) mod scalar;
mod simd;
mod stored;
#[cfg(any(
    target_arch = "x86_64",
    all(target_arch = "aarch64", target_endian = "little")
))]
mod vector;

use std::{cell::Cell, ops::Range, sync::OnceLock};

pub(crate) use bidirectional::BidirectionalJob;
pub(crate) use dense::DenseFinish;
pub(crate) use dense::Inputs;
pub use dense::{DenseLayer, FeedForwardLayers, LayerNorm};
pub(crate) use dequantize::{f16, scale_min};
pub(crate) use jobs::{Angles, AttentionJob, Output, StridedRows, filled};
use jobs::{LinearJob, Tile};
use operand::OperandBlock;
use packed::PackedJob;
use panel::{PanelJob, PanelOut};
pub use peak::Peak;
pub(crate) use product::{Factor, Finish, Norm, Product};

#[cfg(test)]
pub(crate) use records::quantise;
pub(crate) use records::{Records, record_bytes, write_key, write_value};
pub use stored::KEY_GROUP;
pub(crate) use stored::{Cache, Cells, Stored};

use crate::{Format, op::Activation, op::RopeStyle};

type RopeKernel = unsafe fn(RopeStyle, &[f32], (&[f32], &[f32]), &mut [f32]);

/// The kernels of one instruction set. [`best`], [`all`] and [`emulated`] hand out only those that this processor runs, which
/// is what the functions require; the methods of `jobs` and `product` call them.
#[derive(Clone, Copy)]
pub struct Kernels {
    /// The instruction set.
    pub name: &'static str,
    /// Widens whole blocks of a format, as many as both slices hold.
    dequantize: unsafe fn(Format, &[u8], &mut [f32]),
    /// The columns of a linear layer's output that belong to a range of weight rows.
    linear: unsafe fn(&LinearJob<'_>, Range<usize>),
    /// The columns of a linear layer's output that belong to a range of panels of packed weights.
    linear_packed: unsafe fn(&PackedJob<'_>, Range<usize>),
    /// Rounds a row of activations to whole numbers, in its place among a block's; the same bits in every table.
    round: unsafe fn(&[f32], &mut OperandBlock<'_>, usize),
    /// The outputs of one tile of queries.
    attention: unsafe fn(&AttentionJob<'_>, &Tile),
    /// One row: input, weight, epsilon, output; the slices are of one length.
    rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    /// The heads of one token: input, cosines and sines `[d/2]`, output.
    rope: RopeKernel,
    /// `activation(gate) * up` for slices of one length.
    gated: unsafe fn(Activation, &[f32], &[f32], &mut [f32]),
    /// Words that two activations rounded to bf16 take: one where instructions read pairs.
    bf16_words: usize,
    /// Rounds an even number of activations to bf16, `bf16_words` for two.
    operand: unsafe fn(&[f32], &mut [u32]),
    /// The products of rows with a panel of 32 outputs.
    panel: unsafe fn(&PanelJob<'_>, &mut PanelOut<'_>),
    /// `activation(x)` in place.
    activate: unsafe fn(Activation, &mut [f32]),
    /// Layer normalisation of a row in place: weight, bias or nothing, epsilon.
    layer_norm: unsafe fn(&mut [f32], &[f32], &[f32], f32),
    /// The exponentials of a row, multiplied by a positive number, less its largest element, in place; returns their sum.
    exponentials: unsafe fn(&mut [f32], f32) -> f32,
}

/// Finds a table where this processor runs it.
type Detect = fn() -> Option<&'static Kernels>;

/// The tables by name, the fastest first.
const TABLES: &[(&str, Detect)] = &[
    #[cfg(target_arch = "x86_64")]
    ("amx", amx::detect),
    #[cfg(target_arch = "x86_64")]
    ("avx512-bf16", avx512_bf16::detect),
    #[cfg(target_arch = "x86_64")]
    ("avx512-vnni", avx512_vnni::detect),
    #[cfg(target_arch = "x86_64")]
    ("avx512", avx512::detect),
    #[cfg(target_arch = "x86_64")]
    ("avx2", avx2::detect),
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    ("neon-dotprod", neon_dotprod::detect),
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    ("neon", || Some(&neon::KERNELS)),
    ("scalar", || Some(&scalar::KERNELS)),
];

static BEST: OnceLock<&'static Kernels> = OnceLock::new();

thread_local! {
    static FORCED: Cell<Option<&'static Kernels>> = const { Cell::new(None) };
}

/// The fastest table that this processor runs, found once, unless [`choose`] or [`with_table`] named another.
pub fn best() -> &'static Kernels {
    FORCED.get().unwrap_or_else(|| BEST.get_or_init(|| all()[0]))
}

/// Makes the table called `name` the one that [`best`] returns, to look for a fault in another. Returns whether it took
/// effect: this processor must run it, and no kernel may have run yet.
pub fn choose(name: &str) -> bool {
    // Looks for no other: who avoids a table must not run a single instruction of it.
    let wanted = TABLES.iter().find(|(known, _)| *known == name);
    let table = wanted.and_then(|(_, detect)| detect());
    table.is_some_and(|table| BEST.set(table).is_ok())
}

/// Calls `work` with `table` as the one that operations use on this thread: how tests compare the tables.
pub fn with_table<R>(table: &'static Kernels, work: impl FnOnce() -> R) -> R {
    let before = FORCED.replace(Some(table));
    let result = work();
    FORCED.set(before);
    result
}

/// Every table that this processor runs, the fastest first, the scalar one last.
pub fn all() -> Vec<&'static Kernels> {
    TABLES.iter().filter_map(|(_, detect)| detect()).collect()
}

/// Tables that some processors run, computed here by plain loops where they have instructions of their own: how tests reach
/// their code on other processors. Never the best.
pub fn emulated() -> Vec<&'static Kernels> {
    #[cfg(target_arch = "x86_64")]
    return amx::emulated().into_iter().collect();
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}
