//! Random files and random damage never panic, and what the writers write is what is read.

use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;
use rempart_models::weights::gguf::Gguf;
use rempart_models::weights::safetensors;

use crate::writers::gguf::{GgufFile, Value};
use crate::{gguf_cases, safetensors_cases};

fn parse_gguf(bytes: Vec<u8>) -> Result<Gguf, rempart_models::weights::Error> {
    Gguf::parse(&Bytes::from(bytes), Path::new("memory.gguf"))
}

/// Reads everything that was accepted, so that a wrong range would show.
fn touch_all(gguf: &Gguf) -> usize {
    let keys = gguf.metadata().keys().map(|key| {
        let numbers = gguf.metadata().get_f32s(key).map_or(0, |values| values.len());
        numbers + gguf.metadata().get_strings(key).map_or(0, |values| values.len())
    });
    let tensors = gguf
        .tensors()
        .map(|(_, tensor)| tensor.bytes.iter().map(|&byte| usize::from(byte)).sum::<usize>());
    keys.sum::<usize>() + tensors.sum::<usize>()
}

/// Bytes to put over a file's: mostly the values that size fields break on.
fn damage() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        any::<u8>().prop_map(|byte| vec![byte]),
        any::<u32>().prop_map(|number| number.to_le_bytes().to_vec()),
        prop_oneof![Just(u64::MAX), Just(1 << 63), Just(1 << 40), Just(0), 0_u64..100]
            .prop_map(|number| number.to_le_bytes().to_vec()),
    ]
}

fn damaged(mut file: Vec<u8>, hits: &[(prop::sample::Index, Vec<u8>)], end: prop::sample::Index) -> Vec<u8> {
    for (at, bytes) in hits {
        let start = at.index(file.len());
        let stop = (start + bytes.len()).min(file.len());
        file[start..stop].copy_from_slice(&bytes[..stop - start]);
    }
    // Half of the files stay whole.
    let end = end.index(file.len() * 2);
    file.truncate(end);
    file
}

fn hits() -> impl Strategy<Value = Vec<(prop::sample::Index, Vec<u8>)>> {
    prop::collection::vec((any::<prop::sample::Index>(), damage()), 1..4)
}

/// Metadata that a file may hold, without floats that are not numbers.
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        (-1e30_f32..1e30).prop_map(Value::F32),
        (-1e300_f64..1e300).prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
        ".{0,20}".prop_map(Value::String),
        prop::collection::vec(".{0,8}", 0..9).prop_map(|values| Value::strings(&values)),
        prop::collection::vec(any::<i32>(), 0..9)
            .prop_map(|values| Value::Array(5, values.into_iter().map(Value::I32).collect())),
    ]
}

fn assert_reads_back(gguf: &Gguf, key: &str, value: &Value) {
    let metadata = gguf.metadata();
    let integer = |number: i128| {
        assert_eq!(metadata.get::<u64>(key).ok(), u64::try_from(number).ok());
        assert_eq!(metadata.get_u32(key).ok(), u32::try_from(number).ok());
        assert_eq!(metadata.get::<i32>(key).ok(), i32::try_from(number).ok());
    };
    match value {
        Value::U8(number) => integer((*number).into()),
        Value::I8(number) => integer((*number).into()),
        Value::U16(number) => integer((*number).into()),
        Value::I16(number) => integer((*number).into()),
        Value::U32(number) => integer((*number).into()),
        Value::I32(number) => integer((*number).into()),
        Value::U64(number) => integer((*number).into()),
        Value::I64(number) => integer((*number).into()),
        Value::F32(number) => assert_eq!(metadata.get_f32(key).unwrap().to_bits(), number.to_bits()),
        Value::F64(number) => {
            let narrow = *number as f32;
            assert_eq!(metadata.get_f32(key).ok(), narrow.is_finite().then_some(narrow));
        }
        Value::Bool(flag) => assert_eq!(metadata.get_bool(key).unwrap(), *flag),
        Value::String(text) => assert_eq!(metadata.get_str(key).unwrap(), text),
        Value::Array(8, _) => {
            let read = metadata.get_strings(key).unwrap();
            assert_eq!(Value::strings(&read).encode(), value.encode());
        }
        Value::Array(kind, _) => {
            let read = metadata.get_i32s(key).unwrap();
            let again = Value::Array(*kind, read.into_iter().map(Value::I32).collect());
            assert_eq!(again.encode(), value.encode());
        }
    }
}

/// ggml's number, block length and block bytes of some formats.
const FORMATS: &[(u32, usize, usize)] = &[
    (0, 1, 4),
    (1, 1, 2),
    (30, 1, 2),
    (2, 32, 18),
    (8, 32, 34),
    (12, 256, 144),
    (14, 256, 210),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(parse_gguf(bytes.clone()).is_err());
        let with_magic = [b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0".as_slice(), &bytes].concat();
        let _ = parse_gguf(with_magic);
        let _ = safetensors::parse(&Bytes::from(bytes), Path::new("memory.safetensors"));
    }

    #[test]
    fn random_damage_to_gguf_never_panics(hits in hits(), end in any::<prop::sample::Index>()) {
        if let Ok(gguf) = parse_gguf(damaged(gguf_cases::valid().encode(), &hits, end)) {
            prop_assert!(touch_all(&gguf) < 1_000_000);
        }
    }

    #[test]
    fn random_damage_to_safetensors_never_panics(hits in hits(), end in any::<prop::sample::Index>()) {
        let bytes = Bytes::from(damaged(safetensors_cases::valid(), &hits, end));
        if let Ok(tensors) = safetensors::parse(&bytes, Path::new("memory.safetensors")) {
            prop_assert!(tensors.values().map(|tensor| tensor.bytes.len()).sum::<usize>() <= bytes.len());
        }
    }

    #[test]
    fn written_gguf_reads_back(
        values in prop::collection::vec(value(), 0..8),
        shapes in prop::collection::vec((0..FORMATS.len(), prop::collection::vec(1_usize..4, 1..=4)), 0..6),
        alignment_log in 0_u32..=12,
        version in 2_u32..=3,
    ) {
        let mut file = GgufFile::new("llama").key("general.alignment", &Value::U32(1 << alignment_log));
        file.alignment = 1 << alignment_log;
        file.version = version;
        for (index, value) in values.iter().enumerate() {
            file = file.key(&format!("key.{index}"), value);
        }
        let mut written = Vec::new();
        for (index, (format, mut shape)) in shapes.into_iter().enumerate() {
            let (kind, block_len, block_bytes) = FORMATS[format];
            let blocks: usize = shape.iter().product();
            *shape.last_mut().unwrap() *= block_len;
            let bytes: Vec<u8> = (0..blocks * block_bytes).map(|byte| (byte * 31 + index) as u8).collect();
            file = file.tensor(&format!("tensor.{index}"), kind, &shape, &bytes);
            written.push((shape, bytes));
        }
        let gguf = parse_gguf(file.encode()).unwrap();
        prop_assert_eq!(gguf.tensors().len(), written.len());
        for (index, (shape, bytes)) in written.iter().enumerate() {
            let tensor = gguf.tensor(&format!("tensor.{index}")).unwrap();
            prop_assert_eq!(&tensor.shape, shape);
            prop_assert_eq!(tensor.bytes.as_ref(), bytes.as_slice());
        }
        for (index, value) in values.iter().enumerate() {
            assert_reads_back(&gguf, &format!("key.{index}"), value);
        }
    }

    #[test]
    fn written_safetensors_reads_back(shapes in prop::collection::vec((0_usize..3, prop::collection::vec(1_usize..5, 0..=4)), 0..8)) {
        let written: Vec<(String, &str, Vec<usize>, Vec<u8>)> = shapes
            .into_iter()
            .enumerate()
            .map(|(index, (dtype, shape))| {
                let size = shape.iter().product::<usize>() * [4, 2, 2][dtype];
                let bytes = (0..size).map(|byte| (byte * 37 + index) as u8).collect();
                (format!("layer.{index}.weight"), ["F32", "F16", "BF16"][dtype], shape, bytes)
            })
            .collect();
        let rows: Vec<_> = written
            .iter()
            .map(|(name, dtype, shape, bytes)| (name.as_str(), *dtype, shape.as_slice(), bytes.as_slice()))
            .collect();
        let file = Bytes::from(crate::writers::safetensors::encode(&rows));
        let tensors = safetensors::parse(&file, Path::new("memory.safetensors")).unwrap();
        prop_assert_eq!(tensors.len(), written.len());
        for (name, dtype, shape, bytes) in &written {
            let tensor = &tensors[name];
            prop_assert_eq!(tensor.format.name(), *dtype);
            prop_assert_eq!(&tensor.shape, shape);
            prop_assert_eq!(tensor.bytes.as_ref(), bytes.as_slice());
        }
    }
}
