//! What a block does between its products: `block.cu`.

use super::args::{Address, Args, Launch, count};
use super::attention::suffix;
use crate::op::{Activation, KvDtype, RopeStyle};

const THREADS: usize = 256;
const WARP: usize = 32;

/// The structure of `block.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct NormArgs {
    pub(crate) x: Address,
    pub(crate) weight: Address,
    pub(crate) residual: Address,
    pub(crate) out: Address,
    pub(crate) d: u32,
    pub(crate) eps: f32,
}

// SAFETY: numbers alone, in the order of the kernel's.
unsafe impl Args for NormArgs {}

/// Normalises `n` rows.
pub(crate) fn rms_norm(n: usize, args: NormArgs) -> Launch<NormArgs> {
    Launch {
        kernel: "rms_norm".to_owned(),
        grid: [count(n), 1, 1],
        block: count(THREADS),
        shared: count(THREADS / WARP * 4),
        args,
    }
}

/// The structure of `block.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct GateArgs {
    pub(crate) x: Address,
    pub(crate) out: Address,
    pub(crate) len: u64,
    pub(crate) d: u32,
    pub(crate) activation: u32,
}

// SAFETY: numbers alone, in the order of the kernel's.
unsafe impl Args for GateArgs {}

/// `activation(gate) * up` of `x` `[n, 2 d]` into `out` `[n, d]`.
pub(crate) fn gate(x: Address, out: Address, n: usize, d: usize, activation: Activation) -> Launch<GateArgs> {
    let activation = match activation {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Relu => 3,
    };
    let args = GateArgs {
        x,
        out,
        len: (n * d) as u64,
        d: count(d),
        activation,
    };
    Launch {
        kernel: "gate".to_owned(),
        grid: [count((n * d).div_ceil(THREADS)), 1, 1],
        block: count(THREADS),
        shared: 0,
        args,
    }
}

/// Rows of heads that are rotated: the structure of `block.cu`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct RotatedArgs {
    pub(crate) x: Address,
    pub(crate) weight: Address,
    pub(crate) factors: Address,
    pub(crate) stride: u64,
    pub(crate) heads: u32,
    pub(crate) eps: f32,
}

/// The structure of `block.cu`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct RopeArgs {
    pub(crate) q: RotatedArgs,
    pub(crate) k: RotatedArgs,
    pub(crate) v: Address,
    pub(crate) v_stride: u64,
    pub(crate) positions: Address,
    pub(crate) inv_freq: Address,
    pub(crate) out: Address,
    pub(crate) slots: Address,
    pub(crate) keys: Address,
    pub(crate) values: Address,
    pub(crate) n: u32,
    pub(crate) d: u32,
    pub(crate) block_size: u32,
    pub(crate) attention_factor: f32,
    pub(crate) interleaved: u32,
    pub(crate) pad: u32,
}

// SAFETY: numbers alone, in the order of the kernel's.
unsafe impl Args for RopeArgs {}

/// 1 for pairs side by side.
pub(crate) fn interleaved(style: RopeStyle) -> u32 {
    match style {
        RopeStyle::Halves => 0,
        RopeStyle::Interleaved => 1,
    }
}

/// Rotates the heads of queries, and those of keys that it stores with the values as a card's cache holds them: in bf16, or in 8
/// bits, of heads of a multiple of 64.
pub(crate) fn rope(dtype: KvDtype, args: RopeArgs) -> Launch<RopeArgs> {
    let heads = args.n as usize * (args.q.heads as usize + 2 * args.k.heads as usize);
    let warps = THREADS / WARP;
    Launch {
        kernel: format!("rope{}", suffix(dtype)),
        grid: [count(heads.div_ceil(warps)), 1, 1],
        block: count(THREADS),
        shared: match dtype {
            KvDtype::Int8 => count(warps * args.d as usize * size_of::<f32>()),
            KvDtype::F32 | KvDtype::Bf16 => 0,
        },
        args,
    }
}
