//! Safetensors: one file, or several named by an index.
//!
//! Layout of a file: the length of the header, the header as JSON, then the tensors without gaps. The header is
//! checked here first, for what the `safetensors` crate leaves open (doubled names, dimensions, types, counts), and
//! then read by that crate, whose ranges are the ones used.

mod header;
mod index;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::mapping::Mapping;
use super::{Error, Refusal, TensorEntry};

pub use header::{DIMENSIONS_MAX, HEADER_BYTES_MAX, NAME_BYTES_MAX, TENSORS_MAX};
pub use index::{INDEX_BYTES_MAX, INDEX_TENSORS_MAX, SHARDS_MAX};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The header's length and the shortest header, `{}`.
const FILE_BYTES_MIN: u64 = 10;

/// One opened file.
#[derive(Debug)]
pub(super) struct ShardFile {
    pub(super) tensors: BTreeMap<String, TensorEntry>,
    pub(super) mapping: Mapping,
}

/// Opens a single file, or the directory of a model. Every error names the file that it is about.
pub(super) fn open(path: &Path) -> Result<Vec<ShardFile>, Error> {
    let kind = std::fs::metadata(path).map_err(|source| Error::io(path, "open", source))?;
    if !kind.is_dir() {
        return Ok(vec![open_file(path)?]);
    }
    if path.join(SINGLE).exists() {
        return Ok(vec![open_file(&shard_path(path, SINGLE)?)?]);
    }
    if !path.join(INDEX).exists() {
        return Err(no_weights(path));
    }
    let index = index::read(&shard_path(path, INDEX)?)?;
    let mut files = Vec::new();
    for (shard, names) in index {
        let file = open_file(&shard_path(path, &shard)?)?;
        if let Some(missing) = names.iter().find(|name| !file.tensors.contains_key(*name)) {
            let rule = format!("{INDEX} says that the tensor is in this file");
            return Err(Refusal::new("weight_map", super::error::shown(missing), rule).of(&path.join(shard)));
        }
        files.push(file);
    }
    Ok(files)
}

/// Validates a whole file held in `bytes`; `path` only serves messages.
///
/// # Errors
/// The file breaks a rule: the message names the field, its value and the rule.
pub fn parse(bytes: &Bytes, path: &Path) -> Result<BTreeMap<String, TensorEntry>, Error> {
    header::read(bytes).map_err(|refusal| refusal.of(path))
}

fn open_file(path: &Path) -> Result<ShardFile, Error> {
    let mapping = Mapping::open(path, FILE_BYTES_MIN)?;
    let tensors = parse(mapping.bytes(), path)?;
    Ok(ShardFile { tensors, mapping })
}

fn no_weights(directory: &Path) -> Error {
    let pickle = [
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.pt",
        "model.pkl",
        "consolidated.00.pth",
    ];
    let found = pickle.iter().find(|name| directory.join(name).exists());
    let found = found.map_or_else(
        || "neither".to_owned(),
        |name| format!("only {name}, which can run code and is never loaded"),
    );
    Refusal::new("directory", found, format!("{SINGLE} or {INDEX} is needed")).of(directory)
}

/// Where the file `name` of `directory` really is.
///
/// A symbolic link must stay in the directory, except in the Hugging Face cache, whose `snapshots/<revision>/` holds
/// links into the same repository's `blobs/`.
fn shard_path(directory: &Path, name: &str) -> Result<PathBuf, Error> {
    let resolve = |path: &Path| {
        path.canonicalize()
            .map_err(|source| Error::io(path, "open", source))
    };
    let root = resolve(directory)?;
    let file = resolve(&directory.join(name))?;
    let blobs = root
        .parent()
        .filter(|parent| parent.file_name().is_some_and(|folder| folder == "snapshots"))
        .and_then(Path::parent)
        .map(|repository| repository.join("blobs"));
    if file.starts_with(&root) || blobs.is_some_and(|blobs| file.starts_with(blobs)) {
        return Ok(file);
    }
    let rule = "weight files must lie in the model's own directory";
    Err(Refusal::new("file", "a symbolic link out of the directory", rule).of(&directory.join(name)))
}
