//! Attention over the paged cache: `attention.cu`.

use super::args::{Address, Args, Launch, count};
use crate::{
    Heads,
    op::{AttentionOptions, AttentionRow, KvDtype},
};

/// Rows of queries, a token and a head each, of a tile.
const ROWS: usize = 16;
/// Positions of a split.
pub(crate) const SPLIT: usize = 128;
/// Warps of a block.
const WARPS: usize = 4;
/// A sequence with at least so many rows of queries has blocks of whole tiles that walk over its keys together.
const MANY: usize = WARPS * ROWS;

/// The structure of `attention.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct AttentionSequence {
    pub(crate) table: u32,
    pub(crate) first: u32,
    pub(crate) tokens: u32,
    pub(crate) context: u32,
    pub(crate) first_tile: u32,
    pub(crate) first_part: u32,
}

/// The structure of `attention.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct AttentionArgs {
    pub(crate) q: Address,
    pub(crate) keys: Address,
    pub(crate) values: Address,
    pub(crate) sequences: Address,
    pub(crate) tiles: Address,
    pub(crate) blocks: Address,
    pub(crate) out: Address,
    pub(crate) parts: Address,
    pub(crate) heads: u32,
    pub(crate) kv_heads: u32,
    pub(crate) block_size: u32,
    pub(crate) window: u32,
    pub(crate) scale: f32,
    pub(crate) softcap: f32,
}

// SAFETY: numbers alone, in the order of the kernel's.
unsafe impl Args for AttentionArgs {}

/// Sequences that one kernel computes, and their tiles.
#[derive(Debug, Clone, Default)]
pub(crate) struct Work {
    /// As words, [`AttentionSequence`] each.
    pub(crate) sequences: Vec<u32>,
    /// The sequence of each tile.
    pub(crate) tiles: Vec<u32>,
    /// Most of any sequence.
    pub(crate) splits: usize,
    /// Rows of parts of all sequences.
    pub(crate) part_rows: usize,
}

/// A batch as the kernels take it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    /// Sequences with few rows of queries, those that decode: a warp for each split.
    pub(crate) few: Work,
    /// The others: a warp for each tile; a sequence has whole blocks of tiles, the last of which may have no rows.
    pub(crate) many: Work,
    /// All block tables, one after the other.
    pub(crate) blocks: Vec<u32>,
}

impl Plan {
    pub(crate) fn new(rows: &[AttentionRow], heads: &Heads) -> Self {
        let (mut plan, group) = (Self::default(), heads.heads / heads.kv_heads);
        for row in rows.iter().filter(|row| !row.tokens.is_empty()) {
            let len = row.tokens.len() * group;
            let (work, warps) = if len < MANY {
                (&mut plan.few, 1)
            } else {
                // A block's tiles are of one sequence.
                (&mut plan.many, WARPS)
            };
            let number = count(work.sequences.len() / WORDS);
            let tiles = len.div_ceil(ROWS).next_multiple_of(warps);
            let sequence = AttentionSequence {
                table: count(plan.blocks.len()),
                first: count(row.tokens.start),
                tokens: count(row.tokens.len()),
                context: count(row.context_len),
                first_tile: count(work.tiles.len()),
                first_part: count(work.part_rows),
            };
            work.sequences.extend(words(&sequence));
            work.tiles.extend(std::iter::repeat_n(number, tiles));
            let splits = row.context_len.div_ceil(SPLIT);
            work.splits = work.splits.max(splits);
            if len < MANY {
                work.part_rows += part_rows(heads, row.tokens.len(), splits);
            }
            plan.blocks
                .extend(&row.block_table[..row.context_len.div_ceil(heads.block_size)]);
        }
        plan
    }

    /// Numbers that the parts of [`Plan::few`] take.
    pub(crate) fn parts(&self, heads: &Heads) -> usize {
        self.few.part_rows * (heads.d + 2)
    }
}

/// Rows of parts of a sequence with few tokens: `[tiles, kv_heads, splits]` of as many as its tiles have.
pub(crate) fn part_rows(heads: &Heads, tokens: usize, splits: usize) -> usize {
    let len = tokens * heads.heads / heads.kv_heads;
    len.div_ceil(ROWS) * heads.kv_heads * splits * len.min(ROWS)
}

const WORDS: usize = size_of::<AttentionSequence>() / 4;

fn words(sequence: &AttentionSequence) -> [u32; WORDS] {
    let AttentionSequence {
        table,
        first,
        tokens,
        context,
        first_tile,
        first_part,
    } = *sequence;
    [table, first, tokens, context, first_tile, first_part]
}

/// Arrays of a [`Plan`] on a device: the sequences, the tiles, and the blocks of both works.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrays {
    pub(crate) sequences: Address,
    pub(crate) tiles: Address,
    pub(crate) blocks: Address,
}

/// Where the tensors are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tensors {
    pub(crate) q: Address,
    pub(crate) keys: Address,
    pub(crate) values: Address,
    pub(crate) out: Address,
    /// As [`Plan::parts`] says.
    pub(crate) parts: Address,
    /// Of keys and values.
    pub(crate) dtype: KvDtype,
}

/// What kernels are named by that read or write a cache of a type; those without are of bf16, and of f32 there are none.
pub(super) const fn suffix(dtype: KvDtype) -> &'static str {
    match dtype {
        KvDtype::F32 | KvDtype::Bf16 => "",
        KvDtype::Int8 => "_int8",
    }
}

/// Bytes of a chunk's keys, or of its values, in shared memory: `kStageBytes` of attention.cu.
fn stage_bytes(dtype: KvDtype, d: usize) -> usize {
    // As `kStaged` and `kChunk` have it.
    const STAGED_MAX: usize = 128;
    const CHUNK: usize = 64;
    match dtype {
        _ if d > STAGED_MAX => 0,
        // A scale of four bytes for 64 numbers.
        KvDtype::Int8 => CHUNK * (d + d / 16),
        // Of f32 there is no cache on a card.
        KvDtype::Bf16 | KvDtype::F32 => CHUNK * d * 2,
    }
}

/// Bytes of a row's totals over splits in shared memory: unless `kTotalsInRegisters` of attention.cu.
fn totals_bytes(dtype: KvDtype, d: usize, options: &AttentionOptions) -> usize {
    let in_registers = d == 128 && dtype != KvDtype::Int8 && options.softcap.is_none();
    if in_registers { 0 } else { d * 4 }
}

/// The launches for a work; `few` says which it is.
pub(crate) fn attention(
    work: &Work,
    few: bool,
    arrays: Arrays,
    tensors: &Tensors,
    heads: &Heads,
    options: &AttentionOptions,
) -> Vec<Launch<AttentionArgs>> {
    if work.tiles.is_empty() {
        return Vec::new();
    }
    let log2_e = std::f32::consts::LOG2_E;
    let args = AttentionArgs {
        q: tensors.q,
        keys: tensors.keys,
        values: tensors.values,
        sequences: arrays.sequences,
        tiles: arrays.tiles,
        blocks: arrays.blocks,
        out: tensors.out,
        parts: tensors.parts,
        heads: count(heads.heads),
        kv_heads: count(heads.kv_heads),
        block_size: count(heads.block_size),
        // A window beyond every context sees all.
        window: options
            .window
            .map_or(0, |window| u32::try_from(window).unwrap_or(0)),
        scale: options.scale * log2_e,
        softcap: options.softcap.unwrap_or(0.0) * log2_e,
    };
    let (tiles, d) = (work.tiles.len(), heads.d);
    let capped = if options.softcap.is_some() { "_capped" } else { "" };
    let of = suffix(tensors.dtype);
    let launch = |kernel: String, grid: [usize; 2], shared: usize| Launch {
        kernel,
        grid: [count(grid[0]), count(heads.kv_heads), count(grid[1])],
        block: count(32 * WARPS),
        shared: count(shared),
        args,
    };
    // Queries of two bytes; totals of four beside them, and a chunk's keys and values.
    if few {
        vec![
            launch(
                format!("attend_few{capped}{of}_{d}"),
                [tiles, work.splits.div_ceil(WARPS)],
                WARPS * ROWS * d * 2,
            ),
            launch(format!("attend_merge_{d}"), [tiles, 1], 0),
        ]
    } else {
        vec![launch(
            format!("attend_many{capped}{of}_{d}"),
            [tiles / WARPS, 1],
            WARPS * ROWS * (d * 2 + totals_bytes(tensors.dtype, d, options))
                + 2 * stage_bytes(tensors.dtype, d),
        )]
    }
}
