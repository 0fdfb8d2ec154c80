//! Broken GGUF files.

use crate::Case;
use crate::gguf_tensor_cases;
use crate::writers::gguf::{GgufFile, Value, string};

const F32: u32 = 0;
const Q8_0: u32 = 8;

/// A small valid file: four keys, three tensors.
pub(crate) fn valid() -> GgufFile {
    GgufFile::new("llama")
        .key("llama.block_count", &Value::U32(1))
        .key("tokenizer.ggml.tokens", &Value::strings(&["<s>", "</s>", "a"]))
        .key(
            "tokenizer.ggml.scores",
            &Value::Array(6, vec![Value::F32(0.5), Value::F32(-1.0)]),
        )
        .tensor("token_embd.weight", F32, &[3, 8], &[7; 96])
        .tensor("blk.0.attn_q.weight", Q8_0, &[2, 32], &[9; 68])
        .tensor("output_norm.weight", F32, &[8], &[1; 32])
}

pub(crate) fn all() -> Vec<Case> {
    [
        starts(),
        counts(),
        keys(),
        values(),
        arrays(),
        alignments(),
        meanings(),
        cuts(),
        gguf_tensor_cases::all(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The valid file, with an `edit` that breaks it.
pub(crate) fn edited(edit: impl FnOnce(&mut GgufFile)) -> Vec<u8> {
    let mut file = valid();
    edit(&mut file);
    file.encode()
}

fn starts() -> Vec<Case> {
    let mut cases = vec![
        Case::gguf("empty file", Vec::new(), &["file length", "0 bytes", "24"]),
        Case::gguf("magic alone", b"GGUF".to_vec(), &["file length", "4 bytes"]),
        Case::gguf("zeros", vec![0; 4096], &["magic"]),
        Case::gguf(
            "a zip file",
            [b"PK\x03\x04".as_slice(), &[0; 60]].concat(),
            &["magic", "PK"],
        ),
        Case::gguf(
            "old magic",
            edited(|file| file.magic = *b"ggjt"),
            &["magic", "ggjt", "GGUF"],
        ),
        Case::gguf(
            "magic with control characters",
            edited(|file| file.magic = *b"\x1b[2J"),
            &["magic", "\\x1b"],
        ),
        Case::gguf(
            "magic backwards",
            edited(|file| file.magic = *b"FUGG"),
            &["magic"],
        ),
    ];
    for version in [0, 1, 4, u32::MAX] {
        let bytes = edited(|file| file.version = version);
        cases.push(Case::gguf(
            format!("version {version}"),
            bytes,
            &["version", "2 and 3"],
        ));
    }
    for version in [1_u32, 2, 3] {
        let bytes = edited(|file| file.version = version.swap_bytes());
        cases.push(Case::gguf(
            format!("big-endian version {version}"),
            bytes,
            &["version", "big-endian"],
        ));
    }
    cases
}

fn counts() -> Vec<Case> {
    let mut cases = Vec::new();
    for count in [65_537, 1 << 32, 1 << 60, u64::MAX] {
        let bytes = edited(|file| file.tensor_count = Some(count));
        cases.push(Case::gguf(
            format!("{count} tensors"),
            bytes,
            &["tensor_count", "65536"],
        ));
        let bytes = edited(|file| file.key_count = Some(count));
        cases.push(Case::gguf(
            format!("{count} keys"),
            bytes,
            &["metadata_kv_count", "65536"],
        ));
    }
    // The data after the table are read as more of it, and do not make sense.
    let bytes = edited(|file| file.tensor_count = Some(4));
    cases.push(Case::gguf("a tensor more than there is", bytes, &["tensor 3"]));
    let bytes = edited(|file| file.tensor_count = Some(65_536));
    cases.push(Case::gguf("as many tensors as allowed", bytes, &["tensor 3"]));
    let bytes = edited(|file| file.key_count = Some(5));
    cases.push(Case::gguf(
        "a key more than there is",
        bytes,
        &["tensor 0", "name", "256"],
    ));
    let bytes = edited(|file| file.key_count = Some(3));
    cases.push(Case::gguf(
        "a key less than there is",
        bytes,
        &["tensor 0", "n_dims"],
    ));
    cases
}

fn keys() -> Vec<Case> {
    let value = || Value::U32(1).encode();
    let key = |name: &[u8]| valid().raw_key(name, value()).encode();
    let mut long_claim = valid().encode();
    long_claim[24..32].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    vec![
        Case::gguf("empty key", key(b""), &["metadata 4", "key", "empty"]),
        Case::gguf(
            "key that is not UTF-8",
            key(b"ab\xff"),
            &["metadata 4", "key", "UTF-8"],
        ),
        Case::gguf(
            "key of 65,536 bytes",
            key(&[b'k'; 65_536]),
            &["metadata 4", "key", "65535"],
        ),
        Case::gguf("key length of 2^40", long_claim, &["metadata 0", "key", "65535"]),
        Case::gguf(
            "doubled key",
            key(b"llama.block_count"),
            &["metadata 4", "llama.block_count", "unique"],
        ),
        Case::gguf(
            "doubled alignment",
            {
                valid()
                    .key("general.alignment", &Value::U32(32))
                    .key("general.alignment", &Value::U32(64))
                    .encode()
            },
            &["general.alignment", "unique"],
        ),
        Case::gguf(
            "key with control characters",
            valid().raw_key(b"\x1b[31m\n", vec![99; 8]).encode(),
            &["metadata \\u{1b}", "value type"],
        ),
    ]
}

fn value_case(name: impl Into<String>, encoded: Vec<u8>, mentions: &[&'static str]) -> Case {
    let mentions: Vec<&'static str> = ["metadata x.broken"]
        .into_iter()
        .chain(mentions.iter().copied())
        .collect();
    Case::gguf(name, valid().raw_key(b"x.broken", encoded).encode(), &mentions)
}

fn array(kind: u32, count: u64, rest: &[u8]) -> Vec<u8> {
    [
        9_u32.to_le_bytes().as_slice(),
        &kind.to_le_bytes(),
        &count.to_le_bytes(),
        rest,
    ]
    .concat()
}

fn values() -> Vec<Case> {
    let typed = |kind: u32, rest: &[u8]| [kind.to_le_bytes().as_slice(), rest].concat();
    let text = |length: u64, rest: &[u8]| typed(8, &[length.to_le_bytes().as_slice(), rest].concat());
    vec![
        value_case("value of type 13", typed(13, &[0; 8]), &["value type", "13"]),
        value_case(
            "value of type 2^32-1",
            typed(u32::MAX, &[0; 8]),
            &["value type", "4294967295"],
        ),
        value_case("boolean 2", typed(7, &[2]), &["boolean", "found 2"]),
        value_case(
            "string of 1 MiB and a byte",
            text((1 << 20) + 1, &[b'a'; (1 << 20) + 1]),
            &["string", "1048576"],
        ),
        value_case(
            "string length 2^40",
            text(1 << 40, b""),
            &["string", "1099511627776"],
        ),
        value_case(
            "string length 2^64-1",
            text(u64::MAX, b""),
            &["string", "18446744073709551615"],
        ),
        value_case(
            "string that is not UTF-8",
            text(3, b"a\xc3\x28"),
            &["string", "UTF-8"],
        ),
        value_case(
            "string of a surrogate",
            text(3, b"\xed\xa0\x80"),
            &["string", "UTF-8"],
        ),
    ]
}

fn arrays() -> Vec<Case> {
    let nested: Vec<u8> = array(9, 1, &array(9, 1, &[])[4..].repeat(100_000));
    let mut cases = vec![
        value_case("array of type 13", array(13, 1, &[0; 8]), &["array type", "13"]),
        value_case(
            "array of arrays",
            array(9, 1, &array(4, 1, &[0; 4])[4..]),
            &["array type", "nested"],
        ),
        value_case("arrays nested 100,000 deep", nested, &["array type", "nested"]),
        value_case(
            "booleans with a 7",
            array(7, 3, &[0, 1, 7]),
            &["element 2", "boolean", "7"],
        ),
        value_case(
            "strings, the second not UTF-8",
            array(8, 2, &[string(b"ok"), string(b"\xff")].concat()),
            &["element 1", "UTF-8"],
        ),
        value_case(
            "strings, the second of length 2^62",
            array(
                8,
                2,
                &[string(b"ok"), (1_u64 << 62).to_le_bytes().to_vec()].concat(),
            ),
            &["element 1", "string"],
        ),
    ];
    for (kind, name) in [
        (0, "u8"),
        (4, "u32"),
        (6, "f32"),
        (7, "bool"),
        (8, "string"),
        (12, "f64"),
    ] {
        for count in [(1_u64 << 22) + 1, 1 << 40, 1 << 61, u64::MAX] {
            let encoded = array(kind, count, &[0; 64]);
            cases.push(value_case(
                format!("{count} elements of {name}"),
                encoded,
                &["array length", "4194304"],
            ));
        }
    }
    // Each array keeps its own limit.
    let elements = 1 << 22;
    let two = valid()
        .raw_key(b"x.first", array(10, elements, &vec![0; 32 << 20]))
        .raw_key(b"x.second", array(10, elements, &[]));
    let mut large = Case::gguf(
        "header over its limit",
        two.encode(),
        &["metadata x.second", "array", "67108864"],
    );
    large.sparse_length = Some(1 << 30);
    cases.push(large);
    cases
}

fn alignments() -> Vec<Case> {
    let case = |name: &str, value: &Value, mentions: &[&'static str]| {
        let mentions: Vec<&'static str> = ["general.alignment"]
            .into_iter()
            .chain(mentions.iter().copied())
            .collect();
        Case::gguf(name, valid().key("general.alignment", value).encode(), &mentions)
    };
    let mut bare = GgufFile::new("llama");
    bare.keys.clear();
    let smallest = bare.key("general.alignment", &Value::U32(0)).encode();
    vec![
        Case::gguf(
            "alignment 0 in the smallest file",
            smallest,
            &["general.alignment", "found 0", "power of two"],
        ),
        case("alignment 0", &Value::U32(0), &["found 0", "4096"]),
        case("alignment 3", &Value::U32(3), &["found 3", "power of two"]),
        case("alignment 8192", &Value::U32(8192), &["found 8192", "4096"]),
        case("alignment 2^31", &Value::U32(1 << 31), &["2147483648"]),
        case("alignment 2^63", &Value::U64(1 << 63), &["9223372036854775808"]),
        case("alignment -32", &Value::I32(-32), &["-32"]),
        case(
            "alignment as text",
            &Value::String("32".into()),
            &["string", "integer"],
        ),
        case("alignment as a float", &Value::F32(32.0), &["float", "integer"]),
        case(
            "alignment as an array",
            &Value::Array(4, vec![Value::U32(32)]),
            &["array", "integer"],
        ),
        Case::gguf(
            "alignment that the offsets do not keep",
            valid().key("general.alignment", &Value::U32(4096)).encode(),
            &["offset", "multiple of the alignment, 4096"],
        ),
    ]
}

/// Files whose header is sound, but which are not a model that can be loaded.
fn meanings() -> Vec<Case> {
    let no_architecture = edited(|file| drop(file.keys.remove(0)));
    let architecture = |value: &Value| edited(|file| file.keys[0].1 = value.encode());
    vec![
        Case::gguf(
            "no architecture",
            no_architecture,
            &["general.architecture", "no such key"],
        ),
        Case::gguf(
            "architecture as a number",
            architecture(&Value::U32(7)),
            &["general.architecture", "string"],
        ),
        Case::gguf(
            "unknown architecture",
            architecture(&Value::String("mamba".into())),
            &["general.architecture", "mamba", "gemma3"],
        ),
        Case::gguf(
            "architecture with control characters",
            architecture(&Value::String("\x1b[2J\r\n".into())),
            &["general.architecture"],
        ),
        Case::gguf(
            "architecture of a megabyte",
            architecture(&Value::String("a".repeat(1 << 20))),
            &["general.architecture", "…"],
        ),
        Case::gguf(
            "one of three parts",
            valid().key("split.count", &Value::U16(3)).encode(),
            &["split.count", "found 3", "merge"],
        ),
        Case::gguf(
            "a tensor under both names",
            valid().tensor("model.norm.weight", F32, &[8], &[0; 32]).encode(),
            &["model.norm.weight", "once"],
        ),
    ]
}

/// The valid file, cut before and inside every field of its header.
fn cuts() -> Vec<Case> {
    let (bytes, marks) = valid().encode_marked();
    let header = marks.iter().filter(|(start, _)| *start >= 24);
    header
        .flat_map(|&(start, field)| {
            [start, start + 1].map(|end| {
                Case::gguf(
                    format!("cut at byte {end}"),
                    bytes[..end].to_vec(),
                    &[field, "the end of the file"],
                )
            })
        })
        .collect()
}
