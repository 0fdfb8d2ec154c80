//! The key-value pairs of a GGUF header, read by key and type.
//!
//! Values stay in the memory map and are decoded when they are asked for; reading the header only validates them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::super::error::shown;
use super::super::{Error, Refusal};
use super::reader::Reader;
use super::{ARRAY_ELEMENTS_MAX, KEY_BYTES_MAX, STRING_BYTES_MAX};

/// The metadata of one file.
#[derive(Debug)]
pub struct Metadata {
    path: Arc<Path>,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    /// The value at `key`, which must be there.
    ///
    /// # Errors
    /// The key is missing, or its value is of another type or does not fit `T`.
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, Error> {
        self.find(key)?
            .ok_or_else(|| Refusal::new(key, "no such key", "the model needs it").of(&self.path))
    }

    /// The value at `key`, or `None` where the key is missing.
    ///
    /// # Errors
    /// The value is of another type or does not fit `T`.
    pub fn find<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, Error> {
        self.find_checked(key).map_err(|refusal| refusal.of(&self.path))
    }

    pub(super) fn find_checked<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, Refusal> {
        let value = self.values.get(key);
        value
            .map(T::from_value)
            .transpose()
            .map_err(|refusal| refusal.within(key))
    }

    /// Any integer that fits.
    pub fn get_u32(&self, key: &str) -> Result<u32, Error> {
        self.get(key)
    }

    /// Any finite float, or an integer that a float holds exactly.
    pub fn get_f32(&self, key: &str) -> Result<f32, Error> {
        self.get(key)
    }

    /// A boolean.
    pub fn get_bool(&self, key: &str) -> Result<bool, Error> {
        self.get(key)
    }

    /// A string.
    pub fn get_str(&self, key: &str) -> Result<&str, Error> {
        self.get(key)
    }

    /// An array of strings.
    pub fn get_strings(&self, key: &str) -> Result<Vec<String>, Error> {
        self.get(key)
    }

    /// An array of integers that all fit.
    pub fn get_i32s(&self, key: &str) -> Result<Vec<i32>, Error> {
        self.get(key)
    }

    /// An array of finite numbers.
    pub fn get_f32s(&self, key: &str) -> Result<Vec<f32>, Error> {
        self.get(key)
    }

    /// Whether the file has `key`.
    pub fn contains(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }
}

/// Reads and validates `count` pairs.
pub(super) fn read(reader: &mut Reader<'_>, count: u64, path: &Arc<Path>) -> Result<Metadata, Refusal> {
    let mut values = BTreeMap::new();
    for index in 0..count {
        let at = |refusal: Refusal| refusal.within(format_args!("metadata {index}"));
        let key = reader.string("key", KEY_BYTES_MAX).map_err(at)?;
        if key.is_empty() {
            return Err(at(Refusal::new("key", "an empty string", "keys have a name")));
        }
        let value =
            read_value(reader).map_err(|refusal| refusal.within(format_args!("metadata {}", shown(key))))?;
        match values.entry(key.to_owned()) {
            Entry::Vacant(entry) => entry.insert(value),
            Entry::Occupied(_) => return Err(at(Refusal::new("key", shown(key), "keys must be unique"))),
        };
    }
    Ok(Metadata {
        path: Arc::clone(path),
        values,
    })
}

/// A validated value, still encoded.
#[derive(Debug)]
pub struct Value {
    kind: Kind,
    /// `None` for a single value.
    elements: Option<u64>,
    bytes: Bytes,
}

fn read_value(reader: &mut Reader<'_>) -> Result<Value, Refusal> {
    let kind_id = reader.u32("value type")?;
    if kind_id != ARRAY_KIND {
        let kind = Kind::from_id("value type", kind_id)?;
        let start = reader.position();
        kind.decode(reader)?;
        return Ok(Value {
            kind,
            elements: None,
            bytes: reader.since(start),
        });
    }
    let element_id = reader.u32("array type")?;
    if element_id == ARRAY_KIND {
        return Err(Refusal::new(
            "array type",
            "an array",
            "arrays must not be nested",
        ));
    }
    let kind = Kind::from_id("array type", element_id)?;
    let count = reader.u64("array length")?;
    if count > ARRAY_ELEMENTS_MAX {
        return Err(Refusal::new(
            "array length",
            count,
            format!("the limit is {ARRAY_ELEMENTS_MAX}"),
        ));
    }
    let start = reader.position();
    match kind.fixed_bytes() {
        // Every bit pattern is valid, so there is nothing to look at.
        Some(size) if kind != Kind::Bool => {
            reader.take("array", count * size)?;
        }
        _ => {
            for index in 0..count {
                kind.decode(reader)
                    .map_err(|refusal| refusal.within(format_args!("element {index}")))?;
            }
        }
    }
    Ok(Value {
        kind,
        elements: Some(count),
        bytes: reader.since(start),
    })
}

const ARRAY_KIND: u32 = 9;

/// The types of single values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    U64,
    I64,
    F64,
}

impl Kind {
    fn from_id(field: &'static str, id: u32) -> Result<Self, Refusal> {
        Ok(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return Err(Refusal::new(field, id, "the known types are 0 to 12")),
        })
    }

    /// Encoded size, where it does not depend on the value.
    fn fixed_bytes(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String => None,
        }
    }

    fn decode<'a>(self, reader: &mut Reader<'a>) -> Result<Scalar<'a>, Refusal> {
        let field = "value";
        Ok(match self {
            Self::U8 => Scalar::Integer(u8::from_le_bytes(reader.array(field)?).into()),
            Self::I8 => Scalar::Integer(i8::from_le_bytes(reader.array(field)?).into()),
            Self::U16 => Scalar::Integer(u16::from_le_bytes(reader.array(field)?).into()),
            Self::I16 => Scalar::Integer(i16::from_le_bytes(reader.array(field)?).into()),
            Self::U32 => Scalar::Integer(u32::from_le_bytes(reader.array(field)?).into()),
            Self::I32 => Scalar::Integer(i32::from_le_bytes(reader.array(field)?).into()),
            Self::U64 => Scalar::Integer(u64::from_le_bytes(reader.array(field)?).into()),
            Self::I64 => Scalar::Integer(i64::from_le_bytes(reader.array(field)?).into()),
            Self::F32 => Scalar::Float(f32::from_le_bytes(reader.array(field)?).into()),
            Self::F64 => Scalar::Float(f64::from_le_bytes(reader.array(field)?)),
            Self::Bool => match u8::from_le_bytes(reader.array(field)?) {
                0 => Scalar::Bool(false),
                1 => Scalar::Bool(true),
                byte => return Err(Refusal::new("boolean", byte, "it must be 0 or 1")),
            },
            Self::String => Scalar::String(reader.string("string", STRING_BYTES_MAX)?),
        })
    }
}

/// A decoded single value, the widths of its type forgotten.
#[derive(Clone, Copy, Debug)]
pub enum Scalar<'a> {
    /// Of any width and sign.
    Integer(i128),
    /// Of either width.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// UTF-8.
    String(&'a str),
}

impl fmt::Display for Scalar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(value) => write!(f, "the integer {value}"),
            Self::Float(value) => write!(f, "the float {value}"),
            Self::Bool(value) => write!(f, "the boolean {value}"),
            Self::String(value) => write!(f, "the string '{}'", shown(value)),
        }
    }
}

/// Types that a metadata value can be read as.
pub trait FromValue<'a>: Sized {
    /// Decodes `value`, or says why it cannot be one of these.
    fn from_value(value: &'a Value) -> Result<Self, Refusal>;
}

impl<'a, T: FromScalar<'a>> FromValue<'a> for T {
    fn from_value(value: &'a Value) -> Result<Self, Refusal> {
        if let Some(count) = value.elements {
            return Err(Refusal::new(
                "value",
                format!("an array of {count}"),
                format!("{} is needed", T::NEEDED),
            ));
        }
        T::from_scalar(
            value
                .kind
                .decode(&mut Reader::new(&value.bytes, value.bytes.len()))?,
        )
    }
}

impl<'a, T: FromScalar<'a>> FromValue<'a> for Vec<T> {
    fn from_value(value: &'a Value) -> Result<Self, Refusal> {
        let mut reader = Reader::new(&value.bytes, value.bytes.len());
        let Some(count) = value.elements else {
            let found = value.kind.decode(&mut reader)?;
            return Err(Refusal::new(
                "value",
                found,
                format!("an array is needed, each element {}", T::NEEDED),
            ));
        };
        (0..count)
            .map(|index| {
                let element = value.kind.decode(&mut reader).and_then(T::from_scalar);
                element.map_err(|refusal| refusal.within(format_args!("element {index}")))
            })
            .collect()
    }
}

/// Types that a single value, or an element of an array, can be read as.
pub trait FromScalar<'a>: Sized {
    /// What a message asks for.
    const NEEDED: &'static str;

    /// Converts where the value is of this type and fits.
    fn from_scalar(scalar: Scalar<'a>) -> Result<Self, Refusal>;
}

fn unfit<'a, T: FromScalar<'a>>(found: Scalar<'_>) -> Refusal {
    Refusal::new("value", found, format!("{} is needed", T::NEEDED))
}

fn integer<'a, T: FromScalar<'a> + TryFrom<i128>>(scalar: Scalar<'_>) -> Result<T, Refusal> {
    match scalar {
        Scalar::Integer(value) => T::try_from(value).map_err(|_| unfit::<T>(scalar)),
        _ => Err(unfit::<T>(scalar)),
    }
}

impl FromScalar<'_> for u32 {
    const NEEDED: &'static str = "an integer from 0 to 4294967295";

    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, Refusal> {
        integer(scalar)
    }
}

impl FromScalar<'_> for u64 {
    const NEEDED: &'static str = "an integer from 0 to 18446744073709551615";

    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, Refusal> {
        integer(scalar)
    }
}

impl FromScalar<'_> for i32 {
    const NEEDED: &'static str = "an integer from -2147483648 to 2147483647";

    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, Refusal> {
        integer(scalar)
    }
}

impl FromScalar<'_> for f32 {
    const NEEDED: &'static str = "a finite number of 32 bits";

    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, Refusal> {
        const EXACT: i128 = 1 << f32::MANTISSA_DIGITS;
        let value = match scalar {
            Scalar::Float(value) => value as f32,
            Scalar::Integer(value) if (-EXACT..=EXACT).contains(&value) => value as f32,
            _ => return Err(unfit::<Self>(scalar)),
        };
        if value.is_finite() {
            Ok(value)
        } else {
            Err(unfit::<Self>(scalar))
        }
    }
}

impl FromScalar<'_> for bool {
    const NEEDED: &'static str = "a boolean";

    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, Refusal> {
        match scalar {
            Scalar::Bool(value) => Ok(value),
            _ => Err(unfit::<Self>(scalar)),
        }
    }
}

impl<'a> FromScalar<'a> for &'a str {
    const NEEDED: &'static str = "a string";

    fn from_scalar(scalar: Scalar<'a>) -> Result<Self, Refusal> {
        match scalar {
            Scalar::String(value) => Ok(value),
            _ => Err(unfit::<Self>(scalar)),
        }
    }
}

impl FromScalar<'_> for String {
    const NEEDED: &'static str = "a string";

    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, Refusal> {
        <&str>::from_scalar(scalar).map(str::to_owned)
    }
}
