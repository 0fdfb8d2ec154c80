//! The header of one safetensors file.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use bytes::Bytes;
use rempart_kernels::Format;
use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::super::error::shown;
use super::super::{Refusal, TensorEntry, encoded_bytes};

/// Bytes of the JSON. The format allows 100 MB; the header of the largest checkpoints has some ten.
pub const HEADER_BYTES_MAX: u64 = 32 << 20;
/// Tensors in one file.
pub const TENSORS_MAX: usize = 65_536;
/// Dimensions of one tensor.
pub const DIMENSIONS_MAX: usize = 8;
/// Bytes of a tensor's name.
pub const NAME_BYTES_MAX: usize = 1024;

const LENGTH_BYTES: usize = 8;

/// Validates the file and finds its tensors.
pub(super) fn read(file: &Bytes) -> Result<BTreeMap<String, TensorEntry>, Refusal> {
    let header_end = header_end(file)?;
    let json = std::str::from_utf8(&file[LENGTH_BYTES..header_end])
        .map_err(|error| Refusal::new("header", error, "it must be UTF-8"))?;
    if !json.starts_with('{') {
        let found = shown(&json.chars().take(8).collect::<String>());
        return Err(Refusal::new("header", found, "it must start with '{'"));
    }
    let header: Header = serde_json::from_str(json).map_err(|error| {
        Refusal::new(
            "header",
            shown(&error.to_string()),
            "it must be a safetensors header",
        )
    })?;
    let formats = check(&header, file.len() - header_end)?;
    slices(file, &formats)
}

fn header_end(file: &Bytes) -> Result<usize, Refusal> {
    let Some(length) = file.first_chunk::<LENGTH_BYTES>() else {
        let found = format!("the end of the file at byte {}", file.len());
        return Err(Refusal::new(
            "header length",
            found,
            "8 bytes are needed from byte 0",
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX {
        return Err(Refusal::new(
            "header length",
            length,
            format!("the limit is {HEADER_BYTES_MAX}"),
        ));
    }
    let end = usize::try_from(length)
        .ok()
        .and_then(|length| length.checked_add(LENGTH_BYTES));
    end.filter(|&end| end <= file.len()).ok_or_else(|| {
        let rule = format!("the file has {} bytes after it", file.len() - LENGTH_BYTES);
        Refusal::new("header length", length, rule)
    })
}

/// Checks every tensor on its own and that together they fill the `data_bytes` exactly.
fn check(header: &Header, data_bytes: usize) -> Result<BTreeMap<&str, Format>, Refusal> {
    let mut formats = BTreeMap::new();
    let mut ranges = Vec::new();
    for (name, row) in &header.0 {
        let at = |refusal: Refusal| refusal.within(format_args!("tensor '{}'", shown(name)));
        let size = if is_position_buffer(name, row) {
            row.shape
                .0
                .iter()
                .try_fold(8_usize, |size, &count| size.checked_mul(count))
        } else {
            let format = format(&row.dtype).map_err(at)?;
            formats.insert(name.as_str(), format);
            Some(encoded_bytes(format, &row.shape.0).map_err(at)?)
        };
        let [start, end] = row.data_offsets;
        if size.is_none() || end.checked_sub(start) != size {
            let rule = format!("dtype and shape need {} bytes", size.unwrap_or(usize::MAX));
            return Err(at(Refusal::new(
                "data_offsets",
                format!("[{start}, {end}]"),
                rule,
            )));
        }
        if end > data_bytes {
            let rule = format!("the file has {data_bytes} bytes of tensor data");
            return Err(at(Refusal::new(
                "data_offsets",
                format!("[{start}, {end}]"),
                rule,
            )));
        }
        ranges.push((start, end, name));
    }
    ranges.sort_unstable();
    let mut filled = 0;
    for (start, end, name) in ranges {
        if start != filled {
            let rule = format!("the tensor before it ends at {filled}: no gap or overlap is allowed");
            let refusal = Refusal::new("data_offsets", format!("[{start}, {end}]"), rule);
            return Err(refusal.within(format_args!("tensor '{}'", shown(name))));
        }
        filled = end;
    }
    if filled != data_bytes {
        let rule = format!("the tensors end at {filled}: nothing may follow them");
        return Err(Refusal::new(
            "file length",
            format!("{data_bytes} bytes of tensor data"),
            rule,
        ));
    }
    Ok(formats)
}

/// Whether this is the list 0, 1, 2, … that writers of BERT checkpoints store with the weights; it is left out.
fn is_position_buffer(name: &str, row: &Row) -> bool {
    row.dtype == "I64" && name.rsplit('.').next() == Some("position_ids")
}

fn format(dtype: &str) -> Result<Format, Refusal> {
    match dtype {
        "F32" => Ok(Format::F32),
        "F16" => Ok(Format::F16),
        "BF16" => Ok(Format::Bf16),
        _ => Err(Refusal::new(
            "dtype",
            shown(dtype),
            "supported are F32, F16 and BF16",
        )),
    }
}

fn slices(file: &Bytes, formats: &BTreeMap<&str, Format>) -> Result<BTreeMap<String, TensorEntry>, Refusal> {
    let disagrees = || {
        Refusal::new(
            "header",
            "another reading of it by the safetensors crate",
            "both must agree",
        )
    };
    let parsed = SafeTensors::deserialize(file).map_err(|error| {
        Refusal::new(
            "header",
            shown(&error.to_string()),
            "the safetensors crate must accept it",
        )
    })?;
    let mut tensors = BTreeMap::new();
    for (&name, &format) in formats {
        let view = parsed.tensor(name).map_err(|_| disagrees())?;
        let (shape, bytes) = (view.shape().to_vec(), file.slice_ref(view.data()));
        if encoded_bytes(format, &shape)? != bytes.len() {
            return Err(disagrees());
        }
        tensors.insert(name.to_owned(), TensorEntry { format, shape, bytes });
    }
    Ok(tensors)
}

/// Tensors by name, each name once.
struct Header(BTreeMap<String, Row>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    dtype: String,
    shape: Shape,
    data_offsets: [usize; 2],
}

struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut rows = BTreeMap::new();
        let mut has_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name.len() > NAME_BYTES_MAX {
                let length = name.len();
                return Err(A::Error::custom(format_args!(
                    "tensor name of {length} bytes, the limit is {NAME_BYTES_MAX}"
                )));
            }
            if name == "__metadata__" {
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(A::Error::custom("__metadata__ is doubled"));
                }
                map.next_value::<TextMap>()?;
                continue;
            }
            if rows.len() == TENSORS_MAX {
                return Err(A::Error::custom(format_args!(
                    "tensor count is over the limit of {TENSORS_MAX}"
                )));
            }
            match rows.entry(name) {
                Entry::Vacant(entry) => entry.insert(map.next_value()?),
                Entry::Occupied(entry) => {
                    return Err(A::Error::custom(format_args!(
                        "doubled tensor name '{}'",
                        entry.key()
                    )));
                }
            };
        }
        Ok(Header(rows))
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a shape of at most {DIMENSIONS_MAX} dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Shape, A::Error> {
        let mut shape = Vec::new();
        while let Some(size) = sequence.next_element()? {
            if shape.len() == DIMENSIONS_MAX {
                return Err(A::Error::custom(format_args!(
                    "shape has more than {DIMENSIONS_MAX} dimensions"
                )));
            }
            shape.push(size);
        }
        Ok(Shape(shape))
    }
}

/// The free-form part of the header: text by name, which nothing here needs.
struct TextMap;

impl<'de> Deserialize<'de> for TextMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TextMap)
    }
}

impl<'de> Visitor<'de> for TextMap {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("__metadata__ as an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut entries = 0;
        while map.next_key::<IgnoredAny>()?.is_some() {
            map.next_value::<Text>()?;
            entries += 1;
            if entries > TENSORS_MAX {
                return Err(A::Error::custom(format_args!(
                    "__metadata__ has more than {TENSORS_MAX} entries"
                )));
            }
        }
        Ok(self)
    }
}

/// A string whose content is not kept.
struct Text;

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text)
    }
}

impl Visitor<'_> for Text {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("__metadata__ with strings only")
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }
}
