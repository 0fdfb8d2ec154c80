//! The index of a checkpoint in several safetensors files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::super::error::shown;
use super::super::mapping::Mapping;
use super::super::{Error, Refusal};

/// Bytes of the index; that of a model with 92,000 tensors has nine million.
pub const INDEX_BYTES_MAX: u64 = 32 << 20;
/// Tensors that an index may name.
pub const INDEX_TENSORS_MAX: usize = 1 << 18;
/// Files that an index may name.
pub const SHARDS_MAX: usize = 1024;

const SHARD_NAME_BYTES_MAX: usize = 255;
/// The shortest JSON object.
const FILE_BYTES_MIN: u64 = 2;

/// Names of the tensors of each file.
pub(super) type Index = BTreeMap<String, Vec<String>>;

/// Reads and validates the index at `path`.
pub(super) fn read(path: &Path) -> Result<Index, Error> {
    let mapping = Mapping::open(path, FILE_BYTES_MIN)?;
    let json = mapping.bytes();
    if json.len() as u64 > INDEX_BYTES_MAX {
        let rule = format!("the limit is {INDEX_BYTES_MAX}");
        return Err(Refusal::new("file length", json.len(), rule).of(path));
    }
    parse(json).map_err(|refusal| refusal.of(path))
}

fn parse(json: &[u8]) -> Result<Index, Refusal> {
    let file: File = serde_json::from_slice(json).map_err(|error| {
        Refusal::new(
            "index",
            shown(&error.to_string()),
            "it must be a safetensors index",
        )
    })?;
    if file.weight_map.0.is_empty() {
        return Err(Refusal::new(
            "weight_map",
            "no tensor",
            "an index names at least one",
        ));
    }
    for shard in file.weight_map.0.keys() {
        if !is_plain(shard) {
            let rule = "it must be the plain name of a .safetensors file in the same directory";
            return Err(Refusal::new(
                "weight_map",
                format!("the file '{}'", shown(shard)),
                rule,
            ));
        }
    }
    Ok(file.weight_map.0)
}

fn is_plain(name: &str) -> bool {
    let forbidden = |character: char| matches!(character, '/' | '\\' | ':') || character.is_control();
    name.len() <= SHARD_NAME_BYTES_MAX
        && !name.starts_with('.')
        && !name.contains(forbidden)
        && name
            .strip_suffix(".safetensors")
            .is_some_and(|stem| !stem.is_empty())
}

#[derive(Deserialize)]
struct File {
    weight_map: WeightMap,
    #[expect(dead_code, reason = "totals that writers add for information")]
    metadata: Option<IgnoredAny>,
}

struct WeightMap(Index);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(WeightMapVisitor)
    }
}

struct WeightMapVisitor;

impl<'de> Visitor<'de> for WeightMapVisitor {
    type Value = WeightMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("weight_map as an object of file names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
        let mut index = Index::new();
        let mut seen = BTreeSet::new();
        while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
            if !seen.insert(tensor.clone()) {
                return Err(A::Error::custom(format_args!(
                    "weight_map has a doubled tensor '{tensor}'"
                )));
            }
            if seen.len() > INDEX_TENSORS_MAX {
                return Err(A::Error::custom(format_args!(
                    "weight_map is over the limit of {INDEX_TENSORS_MAX} tensors"
                )));
            }
            index.entry(shard).or_default().push(tensor);
            if index.len() > SHARDS_MAX {
                return Err(A::Error::custom(format_args!(
                    "weight_map is over the limit of {SHARDS_MAX} files"
                )));
            }
        }
        Ok(WeightMap(index))
    }
}
