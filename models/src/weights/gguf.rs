//! GGUF files, versions 2 and 3, little-endian.
//!
//! Layout: magic, version, tensor count, key count; the metadata; the tensor table; then, at the next multiple of
//! `general.alignment`, the tensors. The format is described in ggml's docs/gguf.md.

mod metadata;
mod names;
mod reader;
mod tensors;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

pub use metadata::{FromValue, Metadata};
pub(super) use names::ARCHITECTURES;
pub use names::hugging_face_name;

use super::mapping::Mapping;
use super::{Error, Refusal, TensorEntry};
use reader::Reader;

/// Tensors in one file.
pub const TENSORS_MAX: u64 = 65_536;
/// Metadata keys in one file.
pub const KEYS_MAX: u64 = 65_536;
/// Dimensions of one tensor.
pub const DIMENSIONS_MAX: u32 = 4;
/// Bytes of one string, a tokenizer's tokens included.
pub const STRING_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a metadata key, which is also the format's own limit.
pub const KEY_BYTES_MAX: u64 = 65_535;
/// Bytes of a tensor's name; ggml itself stops at 64.
pub const NAME_BYTES_MAX: u64 = 256;
/// Elements of one metadata array; the largest vocabularies have some 500,000 merges.
pub const ARRAY_ELEMENTS_MAX: u64 = 1 << 22;
/// Bytes of all that comes before the tensors; a vocabulary of 262,144 tokens takes six million.
pub const HEADER_BYTES_MAX: usize = 64 << 20;
/// Largest `general.alignment`.
pub const ALIGNMENT_MAX: u64 = 4096;

const ALIGNMENT_DEFAULT: u64 = 32;
const ALIGNMENT_KEY: &str = "general.alignment";
/// Magic, version and the two counts.
const FILE_BYTES_MIN: u64 = 24;

/// A validated GGUF file.
#[derive(Debug)]
pub struct Gguf {
    metadata: Metadata,
    tensors: BTreeMap<String, TensorEntry>,
    mapping: Option<Mapping>,
}

impl Gguf {
    /// Maps and validates the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, or breaks a rule: the message names the field, its value and the rule.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mapping = Mapping::open(path, FILE_BYTES_MIN)?;
        let mut gguf = Self::parse(mapping.bytes(), path)?;
        gguf.mapping = Some(mapping);
        Ok(gguf)
    }

    /// Validates a whole file held in `bytes`; `path` only serves messages.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn parse(bytes: &Bytes, path: &Path) -> Result<Self, Error> {
        let path: Arc<Path> = Arc::from(path);
        parse(bytes, &path).map_err(|refusal| refusal.of(&path))
    }

    /// The key-value pairs of the header.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensor that the file calls `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.tensors.get(name)
    }

    /// All tensors by the file's own names, in order of name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &TensorEntry)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    pub(super) fn into_parts(self) -> (Metadata, BTreeMap<String, TensorEntry>, Option<Mapping>) {
        (self.metadata, self.tensors, self.mapping)
    }
}

fn parse(bytes: &Bytes, path: &Arc<Path>) -> Result<Gguf, Refusal> {
    let mut reader = Reader::new(bytes, HEADER_BYTES_MAX);
    read_magic(&mut reader)?;
    read_version(&mut reader)?;
    let tensor_count = read_count(&mut reader, "tensor_count", TENSORS_MAX)?;
    let key_count = read_count(&mut reader, "metadata_kv_count", KEYS_MAX)?;
    let metadata = metadata::read(&mut reader, key_count, path)?;
    let alignment = alignment(&metadata)?;
    let infos = tensors::read(&mut reader, tensor_count, alignment)?;
    let tensors = tensors::locate(infos, reader.position(), alignment, bytes)?;
    Ok(Gguf {
        metadata,
        tensors,
        mapping: None,
    })
}

fn read_magic(reader: &mut Reader<'_>) -> Result<(), Refusal> {
    let magic = reader.take("magic", 4)?;
    if magic != b"GGUF" {
        return Err(Refusal::new(
            "magic",
            format!("'{}'", magic.escape_ascii()),
            "a GGUF file starts with 'GGUF'",
        ));
    }
    Ok(())
}

fn read_version(reader: &mut Reader<'_>) -> Result<(), Refusal> {
    let version = reader.u32("version")?;
    match version {
        2 | 3 => Ok(()),
        _ if matches!(version.swap_bytes(), 1..=3) => Err(Refusal::new(
            "version",
            format!("{} in big-endian order", version.swap_bytes()),
            "the file must be little-endian",
        )),
        _ => Err(Refusal::new("version", version, "versions 2 and 3 can be read")),
    }
}

fn read_count(reader: &mut Reader<'_>, field: &'static str, max: u64) -> Result<u64, Refusal> {
    let count = reader.u64(field)?;
    if count > max {
        return Err(Refusal::new(field, count, format!("the limit is {max}")));
    }
    Ok(count)
}

fn alignment(metadata: &Metadata) -> Result<u64, Refusal> {
    let alignment = metadata
        .find_checked::<u64>(ALIGNMENT_KEY)?
        .unwrap_or(ALIGNMENT_DEFAULT);
    if !alignment.is_power_of_two() || alignment > ALIGNMENT_MAX {
        let rule = format!("it must be a power of two from 1 to {ALIGNMENT_MAX}");
        return Err(Refusal::new(ALIGNMENT_KEY, alignment, rule));
    }
    Ok(alignment)
}
