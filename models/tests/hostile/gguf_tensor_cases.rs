//! GGUF files with a broken tensor table.

use crate::Case;
use crate::gguf_cases::edited;
use crate::writers::gguf::TensorRow;

pub(crate) fn all() -> Vec<Case> {
    [shapes(), names(), types(), places()]
        .into_iter()
        .flatten()
        .collect()
}

/// The valid file, with an `edit` of its second tensor that breaks it.
fn row(edit: impl FnOnce(&mut TensorRow)) -> Vec<u8> {
    edited(|file| edit(&mut file.tensors[1]))
}

fn shapes() -> Vec<Case> {
    let dimensions = |dimensions: &[u64]| row(|row| row.dimensions = dimensions.to_vec());
    let at = "blk.0.attn_q.weight";
    vec![
        Case::gguf("no dimension", dimensions(&[]), &[at, "n_dims", "found 0"]),
        Case::gguf(
            "5 dimensions",
            dimensions(&[32, 1, 1, 1, 1]),
            &[at, "n_dims", "found 5"],
        ),
        Case::gguf(
            "2^32-1 dimensions",
            row(|row| row.dimension_count = Some(u32::MAX)),
            &[at, "n_dims"],
        ),
        Case::gguf(
            "first dimension 0",
            dimensions(&[0, 2]),
            &[at, "dimension", "at least 1"],
        ),
        Case::gguf(
            "last dimension 0",
            dimensions(&[32, 0]),
            &[at, "dimension", "at least 1"],
        ),
        Case::gguf(
            "2^40 x 2^40",
            dimensions(&[1 << 40, 1 << 40]),
            &[at, "shape", "1099511627776"],
        ),
        Case::gguf("2^59 x 32", dimensions(&[1 << 59, 32]), &[at, "shape"]),
        Case::gguf("32 x 2^59", dimensions(&[32, 1 << 59]), &[at, "shape", "64 bits"]),
        Case::gguf(
            "2^32 x 2^32",
            dimensions(&[1 << 32, 1 << 32]),
            &[at, "shape", "64 bits"],
        ),
        Case::gguf("2^63", dimensions(&[1 << 63]), &[at]),
        Case::gguf("2^64-32", dimensions(&[u64::MAX - 31]), &[at]),
        Case::gguf(
            "2^16 four times",
            dimensions(&[1 << 16; 4]),
            &[at, "shape", "64 bits"],
        ),
        Case::gguf(
            "2^62 F32",
            row(|row| (row.kind, row.dimensions) = (0, vec![1 << 62])),
            &[at, "shape", "64 bits"],
        ),
        Case::gguf(
            "2^61 F32",
            row(|row| (row.kind, row.dimensions) = (0, vec![1 << 61])),
            &[at, "offset"],
        ),
        Case::gguf(
            "row of half a block",
            dimensions(&[16, 4]),
            &[at, "shape", "Q8_0", "32"],
        ),
        Case::gguf(
            "row of 255 in a K format",
            row(|row| (row.kind, row.dimensions) = (12, vec![255])),
            &[at, "shape", "Q4_K", "256"],
        ),
    ]
}

fn names() -> Vec<Case> {
    vec![
        Case::gguf(
            "empty name",
            row(|row| row.name.clear()),
            &["tensor 1", "name", "empty"],
        ),
        Case::gguf(
            "name of 257 bytes",
            row(|row| row.name = vec![b'n'; 257]),
            &["tensor 1", "name", "256"],
        ),
        Case::gguf(
            "name that is not UTF-8",
            row(|row| row.name = vec![0xc0, 0x80]),
            &["tensor 1", "name", "UTF-8"],
        ),
        Case::gguf(
            "doubled name",
            row(|row| row.name = b"token_embd.weight".to_vec()),
            &["tensor 1", "token_embd.weight", "unique"],
        ),
        Case::gguf(
            "name with control characters",
            row(|row| (row.name, row.kind) = (b"\x1b]0;owned\x07\n".to_vec(), 99)),
            &["tensor 1", "type 99", "\\u{1b}"],
        ),
    ]
}

fn types() -> Vec<Case> {
    let named = [
        (4, "Q4_2"),
        (9, "Q8_1"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (23, "IQ4_XS"),
        (24, "I8"),
        (26, "I32"),
        (28, "F64"),
        (31, "Q4_0_4_4"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
        (40, "NVFP4"),
        (99, "type 99"),
        (u32::MAX, "type 4294967295"),
    ];
    let case = |(kind, name): (u32, &'static str)| {
        Case::gguf(
            format!("type {name}"),
            row(|row| row.kind = kind),
            &["blk.0.attn_q.weight", "type", name, "supported"],
        )
    };
    named.into_iter().map(case).collect()
}

fn places() -> Vec<Case> {
    let offset = |offset: u64| row(|row| row.offset = offset);
    let at = "blk.0.attn_q.weight";
    let shorter = |bytes: usize| edited(|file| file.data.truncate(file.data.len() - bytes));
    vec![
        Case::gguf("offset 1", offset(1), &[at, "offset", "found 1", "32"]),
        Case::gguf(
            "offset 2^64-1",
            offset(u64::MAX),
            &[at, "offset", "18446744073709551615"],
        ),
        Case::gguf("offset 2^64-32", offset(u64::MAX - 31), &[at, "offset"]),
        Case::gguf("offset 2^63", offset(1 << 63), &[at, "offset"]),
        Case::gguf(
            "offset at the end of the file",
            offset(1 << 12),
            &[at, "offset", "4096"],
        ),
        Case::gguf(
            "the same place twice",
            offset(0),
            &["offset", "token_embd.weight"],
        ),
        Case::gguf(
            "overlap by its last block",
            offset(64),
            &[at, "offset", "token_embd.weight"],
        ),
        Case::gguf(
            "larger than its place",
            row(|row| row.dimensions = vec![32, 4]),
            &["output_norm.weight", "offset", at],
        ),
        Case::gguf(
            "last tensor short of a byte",
            shorter(1),
            &["output_norm.weight", "offset", "data"],
        ),
        Case::gguf(
            "last tensor missing",
            shorter(32),
            &["output_norm.weight", "offset", "data"],
        ),
        Case::gguf(
            "no data",
            edited(|file| file.data.clear()),
            &["offset", "0 bytes of tensor data"],
        ),
        Case::gguf(
            "a tensor larger than the file",
            row(|row| row.dimensions = vec![1 << 20, 1 << 10]),
            &["offset"],
        ),
    ]
}
