//! Broken safetensors files, indexes and directories.

use crate::Case;
use crate::writers::safetensors::{encode, with_header};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A small valid file: three tensors.
pub(crate) fn valid() -> Vec<u8> {
    encode(&[
        ("model.norm.weight", "F32", &[2], &[1; 8]),
        ("lm_head.weight", "BF16", &[3, 2], &[2; 12]),
        ("model.embed_tokens.weight", "F16", &[3, 2], &[3; 12]),
    ])
}

pub(crate) fn all() -> Vec<Case> {
    [
        lengths(),
        json(),
        names(),
        shapes(),
        fields(),
        places(),
        indexes(),
        index_files(),
        directories(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn single(name: impl Into<String>, bytes: Vec<u8>, mentions: &[&'static str]) -> Case {
    Case::files(
        format!("safetensors: {}", name.into()),
        vec![(SINGLE.to_owned(), bytes)],
        mentions,
    )
}

/// A file of this header, with `data_bytes` zeros after it.
fn header(name: &str, header: &str, data_bytes: usize, mentions: &[&'static str]) -> Case {
    single(
        name,
        with_header(header.as_bytes(), &vec![0; data_bytes]),
        mentions,
    )
}

fn lengths() -> Vec<Case> {
    let claim = |length: u64| [length.to_le_bytes().as_slice(), &valid()[8..]].concat();
    let mut cases = vec![
        single("empty", Vec::new(), &["file length", "0 bytes"]),
        single(
            "length alone",
            2_u64.to_le_bytes().to_vec(),
            &["file length", "8 bytes"],
        ),
        single("header empty", with_header(b"", b"  "), &["header", "'{'"]),
    ];
    for length in [(32 << 20) + 1, 1 << 40, 1 << 63, u64::MAX - 7, u64::MAX] {
        cases.push(single(
            format!("header of {length} bytes"),
            claim(length),
            &["header length", "33554432"],
        ));
    }
    let bytes = valid();
    cases.push(single(
        "header past the end",
        claim(bytes.len() as u64 - 7),
        &["header length", "bytes after it"],
    ));
    cases.push(single(
        "header cut off",
        bytes[..bytes.len() / 2].to_vec(),
        &["header length", "bytes after it"],
    ));
    cases.push(single("header shorter than it is", claim(20), &["header", "EOF"]));
    cases
}

fn json() -> Vec<Case> {
    let entry = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let deep = |open: &str| open.repeat(100_000);
    vec![
        header("array instead of object", "[1]", 0, &["header", "'{'"]),
        header("pickle", "\u{80}\u{2}cos", 0, &["header", "'{'"]),
        single(
            "not UTF-8",
            with_header(b"{\"\xff\":1}", b""),
            &["header", "UTF-8"],
        ),
        header("two values", "{}{}", 0, &["header", "trailing"]),
        header(
            "comma at the end",
            &format!(r#"{{"a":{entry},}}"#),
            4,
            &["header"],
        ),
        header("objects nested 100,000 deep", &deep("{\"a\":"), 0, &["header"]),
        header(
            "metadata nested 100,000 deep",
            &format!("{{\"__metadata__\":{{\"a\":{}", deep("[")),
            0,
            &["__metadata__"],
        ),
        header(
            "shape nested 100,000 deep",
            &format!("{{\"a\":{{\"shape\":{}", deep("[")),
            0,
            &["header"],
        ),
    ]
}

fn names() -> Vec<Case> {
    let entry = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    vec![
        header(
            "metadata as a list",
            r#"{"__metadata__":["a"]}"#,
            0,
            &["__metadata__"],
        ),
        header(
            "metadata with a number",
            r#"{"__metadata__":{"a":1}}"#,
            0,
            &["__metadata__", "strings"],
        ),
        header(
            "metadata twice",
            r#"{"__metadata__":{},"__metadata__":{}}"#,
            0,
            &["__metadata__", "doubled"],
        ),
        header(
            "doubled name",
            &format!(r#"{{"a":{entry},"a":{entry}}}"#),
            4,
            &["tensor name", "'a'", "doubled"],
        ),
        header(
            "doubled name, escaped",
            &format!(r#"{{"a":{entry},"\u0061":{entry}}}"#),
            4,
            &["tensor name", "doubled"],
        ),
        header(
            "name of 1025 bytes",
            &format!(r#"{{"{}":{entry}}}"#, "n".repeat(1025)),
            4,
            &["tensor name", "1024"],
        ),
        header(
            "65,537 tensors",
            &many_tensors(65_537),
            0,
            &["tensor count", "65536"],
        ),
        header("tensor as a number", r#"{"a":1}"#, 0, &["header", "integer"]),
        header(
            "name with control characters",
            &format!(r#"{{"\u001b[2J\n":{entry}}}"#),
            0,
            &["data_offsets", "\\u{1b}"],
        ),
    ]
}

fn many_tensors(count: usize) -> String {
    let rows: Vec<String> = (0..count)
        .map(|index| format!(r#""{index}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#))
        .collect();
    format!("{{{}}}", rows.join(","))
}

/// A file of one tensor of four bytes.
fn row(name: &str, dtype: &str, shape: &str, mentions: &[&'static str]) -> Case {
    let text = format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,4]}}}}"#);
    header(name, &text, 4, mentions)
}

fn shapes() -> Vec<Case> {
    vec![
        row("dimension 0", "F32", "[0,4]", &["'a'", "shape", "at least 1"]),
        row("dimension -1", "F32", "[-1]", &["header", "-1"]),
        row("dimension 1.5", "F32", "[1.5]", &["header", "1.5"]),
        row("dimension 1e999", "F32", "[1e999]", &["header", "number"]),
        row("dimension 2^64", "F32", "[18446744073709551616]", &["header"]),
        row(
            "2^40 x 2^40",
            "F32",
            "[1099511627776,1099511627776]",
            &["'a'", "shape", "64 bits"],
        ),
        row(
            "2^32 x 2^32",
            "F16",
            "[4294967296,4294967296]",
            &["'a'", "shape", "64 bits"],
        ),
        row(
            "2^62 F32",
            "F32",
            "[4611686018427387904]",
            &["'a'", "shape", "64 bits"],
        ),
        row(
            "9 dimensions",
            "F32",
            "[1,1,1,1,1,1,1,1,1]",
            &["shape", "8 dimensions"],
        ),
        row(
            "a million dimensions",
            "F32",
            &format!("[{}1]", "1,".repeat(1_000_000)),
            &["shape", "8 dimensions"],
        ),
    ]
}

fn fields() -> Vec<Case> {
    let mut cases = vec![
        row("shape as text", "F32", "\"4\"", &["header", "shape"]),
        row(
            "shape too large for the range",
            "F32",
            "[2]",
            &["'a'", "data_offsets", "8 bytes"],
        ),
        row(
            "shape too small for the range",
            "F16",
            "[1]",
            &["'a'", "data_offsets", "2 bytes"],
        ),
        header(
            "no shape",
            r#"{"a":{"dtype":"F32","data_offsets":[0,4]}}"#,
            4,
            &["header", "shape"],
        ),
        header(
            "no type",
            r#"{"a":{"shape":[1],"data_offsets":[0,4]}}"#,
            4,
            &["header", "dtype"],
        ),
        header(
            "an unknown field",
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}"#,
            4,
            &["header", "`x`"],
        ),
        header(
            "a doubled field",
            r#"{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            4,
            &["dtype"],
        ),
        header(
            "positions of 2^62",
            r#"{"a.position_ids":{"dtype":"I64","shape":[4611686018427387904],"data_offsets":[0,4]}}"#,
            4,
            &["data_offsets"],
        ),
    ];
    for dtype in [
        "F64",
        "I64",
        "I8",
        "U8",
        "BOOL",
        "F8_E4M3",
        "F4",
        "C64",
        "Q4_0",
        "f32",
        "",
        "\\u001b[2J",
    ] {
        cases.push(row(
            &format!("type '{dtype}'"),
            dtype,
            "[1]",
            &["'a'", "dtype", "F32, F16 and BF16"],
        ));
    }
    cases
}

fn places() -> Vec<Case> {
    let row = |name: &str, offsets: &str, mentions: &[&'static str]| {
        let text = format!(r#"{{"a":{{"dtype":"F32","shape":[1],"data_offsets":{offsets}}}}}"#);
        header(name, &text, 4, mentions)
    };
    let pair = |name: &str, first: &str, second: &str, data: usize, mentions: &[&'static str]| {
        let entry = |offsets: &str| format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":{offsets}}}"#);
        header(
            name,
            &format!(r#"{{"a":{},"b":{}}}"#, entry(first), entry(second)),
            data,
            mentions,
        )
    };
    let shorter = valid().len() - 1;
    vec![
        row("range backwards", "[4,0]", &["'a'", "data_offsets", "[4, 0]"]),
        row(
            "range near 2^64",
            "[18446744073709551612,18446744073709551615]",
            &["'a'", "data_offsets"],
        ),
        row(
            "range across 2^64",
            "[18446744073709551612,0]",
            &["'a'", "data_offsets"],
        ),
        row(
            "range past the data",
            "[4,8]",
            &["'a'", "data_offsets", "4 bytes"],
        ),
        row("range of 1 number", "[4]", &["header", "length"]),
        row("range of 3 numbers", "[0,4,8]", &["header"]),
        row("range of -4", "[-4,0]", &["header", "-4"]),
        pair(
            "the same place twice",
            "[0,4]",
            "[0,4]",
            8,
            &["data_offsets", "overlap"],
        ),
        pair(
            "overlap",
            "[0,4]",
            "[2,6]",
            8,
            &["'b'", "data_offsets", "overlap"],
        ),
        pair("gap", "[0,4]", "[8,12]", 12, &["'b'", "data_offsets", "gap"]),
        pair(
            "gap at the start",
            "[4,8]",
            "[8,12]",
            12,
            &["'a'", "data_offsets", "gap"],
        ),
        pair(
            "bytes after the tensors",
            "[0,4]",
            "[4,8]",
            9,
            &["file length", "9 bytes", "nothing may follow"],
        ),
        header("data without tensors", "{}", 1, &["file length", "1 bytes"]),
        single(
            "last byte missing",
            valid()[..shorter].to_vec(),
            &["data_offsets", "tensor data"],
        ),
    ]
}

fn index(name: &str, json: &str, mentions: &[&'static str]) -> Case {
    let files = vec![
        (INDEX.to_owned(), json.as_bytes().to_vec()),
        ("one.safetensors".to_owned(), valid()),
    ];
    Case::files(format!("index: {name}"), files, mentions)
}

fn indexes() -> Vec<Case> {
    vec![
        index("empty", "", &["file length", "0 bytes"]),
        index("cut off", "{\"weight_map\":", &["index", "EOF"]),
        index("a list", "[]", &["index"]),
        index("no map", r#"{"metadata":{}}"#, &["weight_map"]),
        index("empty map", r#"{"weight_map":{}}"#, &["weight_map", "no tensor"]),
        index(
            "map of numbers",
            r#"{"weight_map":{"a":1}}"#,
            &["index", "integer"],
        ),
        index(
            "nested 100,000 deep",
            &format!("{{\"weight_map\":{}", "{\"a\":".repeat(100_000)),
            &["index"],
        ),
        index(
            "metadata nested 100,000 deep",
            &format!("{{\"metadata\":{}", "[".repeat(100_000)),
            &["index"],
        ),
        index(
            "missing tensor",
            r#"{"weight_map":{"gone.weight":"one.safetensors"}}"#,
            &["weight_map", "gone.weight", "one.safetensors"],
        ),
        index(
            "missing file",
            r#"{"weight_map":{"model.norm.weight":"two.safetensors"}}"#,
            &["two.safetensors", "open"],
        ),
        index(
            "doubled tensor",
            r#"{"weight_map":{"model.norm.weight":"one.safetensors","model.norm.weight":"one.safetensors"}}"#,
            &["weight_map", "doubled"],
        ),
        index(
            "not UTF-8",
            "{\"weight_map\":{\"\\ud800\":\"one.safetensors\"}}",
            &["index"],
        ),
    ]
}

fn index_files() -> Vec<Case> {
    let mut cases = Vec::new();
    let names = [
        "../one.safetensors",
        "/etc/one.safetensors",
        "./one.safetensors",
        "sub/one.safetensors",
        "..\\\\one.safetensors",
        "C:one.safetensors",
        "..",
        ".",
        "",
        ".safetensors",
        ".hidden.safetensors",
        "one.safetensors\\u0000",
        "model.bin",
        "pytorch_model.pkl",
        "\\u001b[2J.safetensors",
    ];
    for name in names {
        let json = format!(r#"{{"weight_map":{{"model.norm.weight":"{name}"}}}}"#);
        cases.push(index(
            &format!("file '{name}'"),
            &json,
            &["weight_map", "plain name"],
        ));
    }
    let long = format!(
        r#"{{"weight_map":{{"model.norm.weight":"{}.safetensors"}}}}"#,
        "n".repeat(300)
    );
    cases.push(index(
        "file name of 312 bytes",
        &long,
        &["weight_map", "plain name"],
    ));
    let files: Vec<String> = (0..1025)
        .map(|file| format!(r#""{file}":"{file}.safetensors""#))
        .collect();
    cases.push(index(
        "1025 files",
        &format!(r#"{{"weight_map":{{{}}}}}"#, files.join(",")),
        &["weight_map", "1024"],
    ));
    let mut large = index("over 32 MiB", "", &["file length", "33554432"]);
    large.sparse_length = Some(1 << 30);
    cases.push(large);
    cases
}

fn directories() -> Vec<Case> {
    let map = r#"{"weight_map":{"model.norm.weight":"one.safetensors","lm_head.weight":"two.safetensors"}}"#;
    let twice = vec![
        (INDEX.to_owned(), map.as_bytes().to_vec()),
        ("one.safetensors".to_owned(), valid()),
        ("two.safetensors".to_owned(), valid()),
    ];
    vec![
        Case::files("directory: nothing", Vec::new(), &["model.safetensors", "index"]),
        Case::files(
            "directory: pickle",
            vec![("pytorch_model.bin".to_owned(), vec![0; 64])],
            &["pytorch_model.bin", "never"],
        ),
        Case::files(
            "directory: a tensor in two files",
            twice,
            &["tensor name", "once"],
        ),
    ]
}
