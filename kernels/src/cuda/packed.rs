//! Products with weights, rounding of what they meet, and rows of an embedding: `round.cu`, `product.cu` and `dense.cu`.

use super::args::{Address, Args, Launch, count};
use crate::{
    Format,
    packed::{GROUP, PANEL},
};

/// Rows of the activations come in tiles of so many.
pub(crate) const TILE: usize = 8;
/// Most strands, and so most warps of a block of `product_few`.
const STRANDS_MAX: usize = 16;
/// A strand is whole records of scales, which serve at most 8 groups.
const STRAND: usize = 8;
/// Blocks that rounding is cut into, and warps of one.
const ROUND_BLOCKS: usize = 256;
const ROUND_WARPS: usize = 8;
/// Rows of activations up to which each block reads its weights once.
const FEW: usize = 32;
/// As many for which blocks of [`Shape::Few`] may still be faster: they leave no multiprocessor without work.
const FEW_MAX: usize = 128;
/// Blocks below which tiles of `product_many` leave multiprocessors without work.
const BLOCKS_MIN: usize = 112;
/// Panels of a block of `product_many`, and its warps along the rows of activations.
const MANY_PANELS: usize = 8;
const MANY_WARPS: usize = 2;
/// Groups in its shared memory at once, twice over, of whole numbers and of numbers of 16 bits.
const MANY_GROUPS: usize = 8;
const MANY_GROUPS_16: usize = 4;
/// Numbers from a row's sums to the next in the shared memory of `product_few`.
const SUMS: usize = PANEL + 4;

/// The structure of `round.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct RoundArgs {
    pub(crate) x: Address,
    pub(crate) weight: Address,
    pub(crate) codes: Address,
    pub(crate) scales: Address,
    pub(crate) shares: Address,
    pub(crate) stride: u64,
    pub(crate) k: u32,
    pub(crate) rows: u32,
    pub(crate) eps: f32,
    pub(crate) pad: u32,
}

// SAFETY: numbers alone, in the order of the kernel's.
unsafe impl Args for RoundArgs {}

/// The structure of `round.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Round16Args {
    pub(crate) x: Address,
    pub(crate) weight: Address,
    pub(crate) out: Address,
    pub(crate) scales: Address,
    pub(crate) stride: u64,
    pub(crate) k: u32,
    pub(crate) groups: u32,
    pub(crate) eps: f32,
    pub(crate) pad: u32,
}

// SAFETY: numbers alone, in the order of the kernel's.
unsafe impl Args for Round16Args {}

/// Rounded activations: `n` rows of `k`, padded to whole tiles; as whole numbers, in bf16 and in f16, as weights ask for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rounded {
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// `[padded, k]` bytes.
    pub(crate) codes: Address,
    /// `[k / 32, padded]` numbers of 4 bytes.
    pub(crate) scales: Address,
    /// `[k / 32, 3, padded]` numbers of 4 bytes.
    pub(crate) shares: Address,
    /// `[padded, k up to a multiple of 32]` numbers of 2 bytes.
    pub(crate) bf16: Address,
    /// The same, and `[padded]` numbers of 4 bytes that multiply the rows.
    pub(crate) f16: Address,
    pub(crate) f16_scales: Address,
}

impl Rounded {
    pub(crate) fn padded(n: usize) -> usize {
        n.next_multiple_of(TILE)
    }

    /// Bytes of codes, of scales and of shares.
    pub(crate) fn bytes(n: usize, k: usize) -> [usize; 3] {
        let (padded, groups) = (Self::padded(n), k / GROUP);
        [padded * k, padded * groups * 4, padded * groups * 12]
    }

    /// Bytes of numbers in bf16 or f16.
    pub(crate) fn bytes_16(n: usize, k: usize) -> usize {
        Self::padded(n) * k.next_multiple_of(GROUP) * 2
    }

    /// Where products with weights of a format find them, and their scales.
    fn operand(&self, format: Format) -> (Address, Address) {
        match format {
            Format::Bf16 => (self.bf16, Address::default()),
            Format::F16 => (self.f16, self.f16_scales),
            _ => (self.codes, self.scales),
        }
    }
}

/// Whether weights meet activations in their own format, and not in whole numbers.
pub(crate) fn is_dense(format: Format) -> bool {
    matches!(format, Format::Bf16 | Format::F16)
}

/// Rounds rows of `x`, `stride` numbers apart; `norm`: the weight of a norm before, and its epsilon.
pub(crate) fn round(
    x: Address,
    stride: usize,
    norm: Option<(Address, f32)>,
    to: &Rounded,
) -> Launch<RoundArgs> {
    let (weight, eps) = norm.unwrap_or_default();
    // Enough blocks for the card, each of at least a group for each of its warps.
    let parts = (ROUND_BLOCKS / to.n.max(1)).clamp(1, (to.k / GROUP).div_ceil(ROUND_WARPS).max(1));
    Launch {
        kernel: "round_rows".to_owned(),
        grid: [count(to.n), count(parts), 1],
        block: count(32 * ROUND_WARPS),
        shared: 32 * 4,
        args: RoundArgs {
            x,
            weight,
            codes: to.codes,
            scales: to.scales,
            shares: to.shares,
            stride: stride as u64,
            k: count(to.k),
            rows: count(Rounded::padded(to.n)),
            eps,
            pad: 0,
        },
    }
}

/// As [`round`], to the numbers of weights in 16 bits.
pub(crate) fn round_16(
    format: Format,
    (x, stride): (Address, usize),
    norm: Option<(Address, f32)>,
    to: &Rounded,
) -> Launch<Round16Args> {
    let (weight, eps) = norm.unwrap_or_default();
    let (out, scales) = to.operand(format);
    let groups = to.k.div_ceil(GROUP);
    // A thread takes two numbers.
    let parts = (ROUND_BLOCKS / to.n.max(1)).clamp(1, groups.div_ceil(2 * ROUND_WARPS).max(1));
    Launch {
        kernel: "round_rows_16".to_owned(),
        grid: [count(to.n), count(parts), 1],
        block: count(32 * ROUND_WARPS),
        shared: 32 * 4,
        args: Round16Args {
            x,
            weight,
            out,
            scales,
            stride: stride as u64,
            k: count(to.k),
            groups: count(groups),
            eps,
            pad: 0,
        },
    }
}

/// A matrix whose products stand side by side with others'.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct ProductPart {
    pub(crate) panels: Address,
    pub(crate) bias: Address,
    pub(crate) rows: u32,
    pub(crate) column: u32,
    pub(crate) first_panel: u32,
    pub(crate) pad: u32,
}

const PARTS_MAX: usize = 3;

/// The structure of `product.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct ProductArgs {
    pub(crate) x: Address,
    pub(crate) scales: Address,
    pub(crate) shares: Address,
    pub(crate) addends: Address,
    pub(crate) out: Address,
    pub(crate) parts: [ProductPart; PARTS_MAX],
    pub(crate) panel_bytes: u64,
    pub(crate) parts_len: u32,
    pub(crate) n: u32,
    pub(crate) padded: u32,
    pub(crate) groups: u32,
    pub(crate) width: u32,
    pub(crate) strand: u32,
}

// SAFETY: numbers alone, in the order of the kernel's.
unsafe impl Args for ProductArgs {}

/// Where a matrix of a product is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Factor {
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) panels: Address,
    pub(crate) panel_bytes: usize,
    /// `[rows]`, or nowhere.
    pub(crate) bias: Address,
}

/// The products of `x` with some matrices, side by side in `out` `[n, sum of their rows]`, onto `addends` of that shape where
/// they are somewhere. Neighbours of one format share a launch.
pub(crate) fn products(
    x: &Rounded,
    factors: &[Factor],
    addends: Address,
    out: Address,
) -> Vec<Launch<ProductArgs>> {
    products_in(shape, x, factors, (addends, out))
}

/// [`products`] in the shape that `choose` gives for a number of rows of activations and of panels.
pub(crate) fn products_in(
    choose: impl Fn(usize, usize) -> Shape,
    x: &Rounded,
    factors: &[Factor],
    (addends, out): (Address, Address),
) -> Vec<Launch<ProductArgs>> {
    let width: usize = factors.iter().map(|factor| factor.rows).sum();
    let mut column = 0;
    let runs = factors.chunk_by(|a, b| a.format == b.format);
    let mut launches = Vec::new();
    for run in runs.flat_map(|run| run.chunks(PARTS_MAX)) {
        let (mut parts, mut panels) = ([ProductPart::default(); PARTS_MAX], 0);
        for (part, factor) in parts.iter_mut().zip(run) {
            *part = ProductPart {
                panels: factor.panels,
                bias: factor.bias,
                rows: count(factor.rows),
                column: count(column),
                first_panel: count(panels),
                pad: 0,
            };
            column += factor.rows;
            panels += factor.rows.div_ceil(PANEL);
        }
        let (groups, (operand, scales)) = (x.k.div_ceil(GROUP), x.operand(run[0].format));
        let args = ProductArgs {
            x: operand,
            scales,
            shares: x.shares,
            addends,
            out,
            parts,
            panel_bytes: run[0].panel_bytes as u64,
            parts_len: count(run.len()),
            n: count(x.n),
            padded: count(Rounded::padded(x.n)),
            groups: count(groups),
            width: count(width),
            strand: count(strand(groups)),
        };
        launches.push(product(choose(x.n, panels), run[0].format, panels, args));
    }
    launches
}

/// Groups of a strand: a function of the matrix alone, so that sums are the same in every batch.
fn strand(groups: usize) -> usize {
    groups.div_ceil(STRANDS_MAX * STRAND).max(1) * STRAND
}

/// How a product is cut into blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// So many tiles of activations and panels, a warp for each strand.
    Few { tiles: usize, panels: usize },
    /// [`MANY_PANELS`], and two warps of so many tiles.
    Many { tiles: usize },
}

/// What is fastest for `n` rows of activations, as measured on an H200.
pub(crate) fn shape(n: usize, panels: usize) -> Shape {
    let blocks = |tiles: usize| panels.div_ceil(MANY_PANELS) * n.div_ceil(MANY_WARPS * TILE * tiles);
    let few = |tiles, panels| Shape::Few { tiles, panels };
    match n {
        0..=8 => few(1, 1),
        9..=16 => few(2, 2),
        17..=FEW => few(4, 2),
        65.. if blocks(8) >= BLOCKS_MIN => Shape::Many { tiles: 8 },
        33..=FEW_MAX if blocks(4) < BLOCKS_MIN => few(4, 2),
        _ => Shape::Many { tiles: 4 },
    }
}

fn product(shape: Shape, format: Format, panels: usize, args: ProductArgs) -> Launch<ProductArgs> {
    let (n, dense, format) = (args.n as usize, is_dense(format), name(format));
    let (kernel, grid, block, shared) = match shape {
        Shape::Few { tiles, panels: each } => {
            let strands = (args.groups as usize).div_ceil(args.strand as usize);
            let grid = [panels.div_ceil(each), n.div_ceil(tiles * TILE)];
            let shared = strands * each * tiles * TILE * SUMS * 4;
            (
                format!("product_few_{tiles}_{each}_{format}"),
                grid,
                strands * 32,
                shared,
            )
        }
        Shape::Many { tiles } => {
            let rows = MANY_WARPS * TILE * tiles;
            let stage = if dense {
                // Numbers of two bytes, padded by a group.
                rows * (MANY_GROUPS_16 + 1) * GROUP * 2
            } else {
                // Codes, padded by a group; a scale and two shares for each group.
                rows * ((MANY_GROUPS + 1) * GROUP + MANY_GROUPS * 3 * 4)
            };
            let grid = [n.div_ceil(rows), panels.div_ceil(MANY_PANELS)];
            (format!("product_many_{tiles}_{format}"), grid, 256, 2 * stage)
        }
    };
    Launch {
        kernel,
        grid: [count(grid[0]), count(grid[1]), 1],
        block: count(block),
        shared: count(shared),
        args,
    }
}

/// As kernels' names end.
fn name(format: Format) -> &'static str {
    match format {
        Format::F32 => "F32",
        Format::F16 => "F16",
        Format::Bf16 => "Bf16",
        Format::Q4_0 => "Q4_0",
        Format::Q4_1 => "Q4_1",
        Format::Q5_0 => "Q5_0",
        Format::Q5_1 => "Q5_1",
        Format::Q8_0 => "Q8_0",
        Format::Q2K => "Q2K",
        Format::Q3K => "Q3K",
        Format::Q4K => "Q4K",
        Format::Q5K => "Q5K",
        Format::Q6K => "Q6K",
    }
}

/// The structure of `product.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct EmbedArgs {
    pub(crate) panels: Address,
    pub(crate) ids: Address,
    pub(crate) out: Address,
    pub(crate) panel_bytes: u64,
    pub(crate) k: u32,
    pub(crate) scale: f32,
}

// SAFETY: numbers alone, in the order of the kernel's.
unsafe impl Args for EmbedArgs {}

/// The rows at `ids` of a matrix, `n` of `k` numbers, times `scale`.
pub(crate) fn embed(
    (weight, k): (&Factor, usize),
    (ids, n): (Address, usize),
    scale: f32,
    out: Address,
) -> Launch<EmbedArgs> {
    Launch {
        kernel: format!("embed_{}", name(weight.format)),
        grid: [count(n), 1, 1],
        block: 256,
        shared: 0,
        args: EmbedArgs {
            panels: weight.panels,
            ids,
            out,
            panel_bytes: weight.panel_bytes as u64,
            k: count(k),
            scale,
        },
    }
}
