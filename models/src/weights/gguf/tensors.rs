//! The tensor table of a GGUF header, and where in the file each tensor lies.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use rempart_kernels::Format;

use super::super::error::shown;
use super::super::{Refusal, TensorEntry, encoded_bytes};
use super::reader::Reader;
use super::{DIMENSIONS_MAX, NAME_BYTES_MAX};

/// One row of the table, checked on its own.
pub(super) struct Info {
    name: String,
    format: Format,
    shape: Vec<usize>,
    /// From the start of the data, a multiple of the alignment.
    offset: usize,
    size: usize,
}

/// Reads `count` rows and checks each on its own, and that no name comes twice.
pub(super) fn read(reader: &mut Reader<'_>, count: u64, alignment: u64) -> Result<Vec<Info>, Refusal> {
    let mut infos = Vec::new();
    let mut names = BTreeSet::new();
    for index in 0..count {
        let name = reader.string("name", NAME_BYTES_MAX);
        let name = name.map_err(|refusal| refusal.within(format_args!("tensor {index}")))?;
        let at = |refusal: Refusal| refusal.within(format_args!("tensor {index} '{}'", shown(name)));
        if name.is_empty() {
            return Err(at(Refusal::new("name", "an empty string", "tensors have a name")));
        }
        if !names.insert(name) {
            return Err(at(Refusal::new("name", shown(name), "names must be unique")));
        }
        infos.push(read_info(reader, name, alignment).map_err(at)?);
    }
    Ok(infos)
}

fn read_info(reader: &mut Reader<'_>, name: &str, alignment: u64) -> Result<Info, Refusal> {
    let dimensions = reader.u32("n_dims")?;
    if !(1..=DIMENSIONS_MAX).contains(&dimensions) {
        return Err(Refusal::new(
            "n_dims",
            dimensions,
            format!("it must be from 1 to {DIMENSIONS_MAX}"),
        ));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let size = reader.u64("dimension")?;
        let size = usize::try_from(size).ok().filter(|&size| size > 0);
        shape.push(size.ok_or_else(|| Refusal::new("dimension", 0, "every dimension must be at least 1"))?);
    }
    // GGUF lists the contiguous dimension first.
    shape.reverse();
    let kind = reader.u32("type")?;
    let format = Format::from_ggml_type(kind).ok_or_else(|| unknown_type(kind))?;
    let offset = reader.u64("offset")?;
    if offset % alignment != 0 {
        return Err(Refusal::new(
            "offset",
            offset,
            format!("it must be a multiple of the alignment, {alignment}"),
        ));
    }
    let size = encoded_bytes(format, &shape)?;
    let offset =
        usize::try_from(offset).map_err(|_| Refusal::new("offset", offset, "it must lie inside the file"))?;
    Ok(Info {
        name: name.to_owned(),
        format,
        shape,
        offset,
        size,
    })
}

fn unknown_type(kind: u32) -> Refusal {
    let found = match ggml_type_name(kind) {
        Some(name) => format!("type {kind}, {name}"),
        None => format!("type {kind}"),
    };
    let rule = "supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K and Q6_K";
    Refusal::new("type", found, rule)
}

/// Names of the ggml tensor types that Rempart does not compute with.
fn ggml_type_name(kind: u32) -> Option<&'static str> {
    Some(match kind {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        34 => "TQ1_0",
        35 => "TQ2_0",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        39 => "MXFP4",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => return None,
    })
}

/// Finds each tensor's bytes in `file`, whose data start at the first multiple of `alignment` from `header_end`.
///
/// Every tensor must lie wholly inside the file, and no two may share a byte.
pub(super) fn locate(
    infos: Vec<Info>,
    header_end: usize,
    alignment: u64,
    file: &Bytes,
) -> Result<BTreeMap<String, TensorEntry>, Refusal> {
    let alignment = usize::try_from(alignment).unwrap_or(usize::MAX);
    let data = header_end
        .checked_next_multiple_of(alignment)
        .and_then(|start| file.get(start..))
        .unwrap_or(&[]);
    let data = file.slice_ref(data);
    check_overlap(&infos)?;
    let mut tensors = BTreeMap::new();
    for info in infos {
        let end = info
            .offset
            .checked_add(info.size)
            .filter(|&end| end <= data.len());
        let Some(end) = end else {
            let found = format!("{} with {} bytes of data", info.offset, info.size);
            let rule = format!("the file has {} bytes of tensor data", data.len());
            return Err(
                Refusal::new("offset", found, rule).within(format_args!("tensor '{}'", shown(&info.name)))
            );
        };
        let bytes = data.slice(info.offset..end);
        tensors.insert(
            info.name,
            TensorEntry {
                format: info.format,
                shape: info.shape,
                bytes,
            },
        );
    }
    Ok(tensors)
}

fn check_overlap(infos: &[Info]) -> Result<(), Refusal> {
    let mut by_offset: Vec<&Info> = infos.iter().collect();
    by_offset.sort_unstable_by_key(|info| info.offset);
    for pair in by_offset.windows(2) {
        let [first, second] = pair else { continue };
        let first_end = first.offset.saturating_add(first.size);
        if second.offset < first_end {
            let rule = format!("'{}' has the bytes up to {first_end}", shown(&first.name));
            let refusal = Refusal::new("offset", second.offset, rule);
            return Err(refusal.within(format_args!("tensor '{}'", shown(&second.name))));
        }
    }
    Ok(())
}
