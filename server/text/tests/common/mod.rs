//! Fixtures, real vocabularies and a reader of GGUF metadata for the tests.
#![expect(dead_code, reason = "each test file uses its own part")]

use std::collections::HashMap;
use std::path::PathBuf;

use rempart_text::{GgufVocab, Tokenizer};
use serde_json::Value;

/// The lines of a fixture.
pub(crate) fn lines(name: &str) -> Vec<Value> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // Not str::lines: strings hold other line ends.
    text.split_terminator('\n')
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A file of the models' folder, or a failure that says how to fetch it.
pub(crate) fn model_file(name: &str, fetch: &str) -> Vec<u8> {
    #[expect(clippy::disallowed_methods, reason = "tests have no configuration")]
    let folder = std::env::var("REMPART_MODELS").map_or_else(
        |_| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.cache/models"),
        PathBuf::from,
    );
    let path = folder.join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; run `python3 {fetch}`", path.display()))
}

/// A published tokenizer.json.
pub(crate) fn json(name: &str) -> Vec<u8> {
    model_file(
        &format!("tokenizers/{name}.json"),
        "scripts/fixtures/text_fetch.py",
    )
}

/// The vocabulary of a GGUF file.
pub(crate) fn gguf(name: &str) -> GgufVocab {
    let (file, model) = match name {
        "smollm2" => ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2"),
        "gemma3" => ("gemma-3-270m-q4_k_m.gguf", "gemma3"),
        "qwen2.5" => ("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "qwen2.5-coder"),
        other => panic!("no GGUF file for {other}"),
    };
    metadata(&model_file(file, &format!("scripts/models.py fetch {model}")))
}

/// A vocabulary as the GGUF converter would write it, from a published tokenizer.json.
pub(crate) fn gguf_of_json(name: &str) -> GgufVocab {
    let json: Value = serde_json::from_slice(&json(name)).unwrap();
    let entries = json["model"]["vocab"].as_object().unwrap();
    let added = json["added_tokens"].as_array().unwrap();
    let id = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    let size = entries
        .values()
        .map(&id)
        .chain(added.iter().map(|token| id(&token["id"])))
        .max()
        .unwrap()
        + 1;
    let mut tokens = vec![String::new(); size];
    let mut types = vec![1; size];
    for (token, index) in entries {
        tokens[id(index)].clone_from(token);
        if token.len() == 6 && token.starts_with("<0x") {
            types[id(index)] = 6;
        }
    }
    for token in added {
        let index = id(&token["id"]);
        token["content"].as_str().unwrap().clone_into(&mut tokens[index]);
        types[index] = if token["special"].as_bool().unwrap() { 3 } else { 4 };
    }
    let pair = |merge: &Value| match merge {
        Value::String(merge) => merge.clone(),
        pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
    };
    let merges = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(pair)
        .collect();
    let named = |spelling: &str| {
        tokens
            .iter()
            .position(|token| token == spelling)
            .map(|index| index as u32)
    };
    GgufVocab {
        bos: named("<s>").or(named("<|begin_of_text|>")),
        eos: named("</s>").or(named("<|end_of_text|>")),
        unknown: named("<unk>"),
        merges: Some(merges),
        token_types: Some(types),
        tokens,
        ..GgufVocab::default()
    }
}

/// All tokenizers under test, by name and fixture; `from_gguf` and `from_json` alike.
pub(crate) fn tokenizer(name: &str) -> Tokenizer {
    match name {
        "smollm2.gguf" => Tokenizer::from_gguf(&gguf("smollm2")).unwrap(),
        "gemma3.gguf" => Tokenizer::from_gguf(&gguf("gemma3")).unwrap(),
        "qwen2.5.gguf" => Tokenizer::from_gguf(&gguf("qwen2.5")).unwrap(),
        "llama2.gguf" => {
            let vocab = gguf_of_json("llama2");
            // The published merges are in the order of the scores of what they make.
            let mut scores = vec![f32::MIN; vocab.tokens.len()];
            let ids: HashMap<&str, usize> = vocab.tokens.iter().map(String::as_str).zip(0..).collect();
            for (rank, merge) in vocab.merges.iter().flatten().enumerate() {
                let id = ids[merge.replacen(' ', "", 1).as_str()];
                scores[id] = scores[id].max(-(rank as f32));
            }
            let vocab = GgufVocab {
                model: "llama".to_owned(),
                scores: Some(scores),
                merges: None,
                ..vocab.clone()
            };
            Tokenizer::from_gguf(&vocab).unwrap()
        }
        "llama3_1.gguf" => {
            let vocab = gguf_of_json("llama3_1");
            let vocab = GgufVocab {
                model: "gpt2".to_owned(),
                pre: Some("llama-bpe".to_owned()),
                ..vocab
            };
            Tokenizer::from_gguf(&vocab).unwrap()
        }
        json_name => Tokenizer::from_json(&json(json_name.strip_suffix(".json").unwrap())).unwrap(),
    }
}

pub(crate) const TOKENIZERS: [&str; 9] = [
    "smollm2.gguf",
    "gemma3.gguf",
    "qwen2.5.gguf",
    "llama2.gguf",
    "llama3_1.gguf",
    "gemma3.json",
    "llama2.json",
    "llama3_1.json",
    "qwen3.json",
];

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        self.at += N;
        self.bytes[self.at - N..self.at].try_into().unwrap()
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> usize {
        usize::try_from(u64::from_le_bytes(self.take())).unwrap()
    }

    fn text(&mut self) -> String {
        let len = self.u64();
        self.at += len;
        String::from_utf8(self.bytes[self.at - len..self.at].to_vec()).unwrap()
    }

    fn value(&mut self, kind: u32) -> Value {
        match kind {
            0 => self.take::<1>()[0].into(),
            1 => i8::from_le_bytes(self.take()).into(),
            2 => u16::from_le_bytes(self.take()).into(),
            3 => i16::from_le_bytes(self.take()).into(),
            4 => self.u32().into(),
            5 => i32::from_le_bytes(self.take()).into(),
            6 => f32::from_le_bytes(self.take()).into(),
            7 => (self.take::<1>()[0] != 0).into(),
            8 => self.text().into(),
            9 => {
                let (kind, len) = (self.u32(), self.u64());
                (0..len).map(|_| self.value(kind)).collect()
            }
            10 => self.u64().into(),
            11 => i64::from_le_bytes(self.take()).into(),
            12 => f64::from_le_bytes(self.take()).into(),
            other => panic!("metadata of type {other}"),
        }
    }
}

/// All metadata of a GGUF file.
pub(crate) fn all_metadata(bytes: &[u8]) -> serde_json::Map<String, Value> {
    let mut reader = Reader { bytes, at: 16 };
    let count = reader.u64();
    (0..count)
        .map(|_| {
            let name = reader.text();
            let kind = reader.u32();
            (name, reader.value(kind))
        })
        .collect()
}

fn metadata(bytes: &[u8]) -> GgufVocab {
    let all = all_metadata(bytes);
    let get = |name: &str| all.get(&format!("tokenizer.ggml.{name}"));
    let text = |name: &str| get(name).and_then(Value::as_str).map(ToOwned::to_owned);
    let id = |name: &str| get(name).and_then(Value::as_u64).map(|id| id as u32);
    let flag = |name: &str| get(name).and_then(Value::as_bool);
    let array = |name: &str| get(name).and_then(Value::as_array);
    let texts = |values: &Vec<Value>| {
        values
            .iter()
            .map(|value| value.as_str().unwrap().to_owned())
            .collect()
    };
    GgufVocab {
        model: text("model").unwrap(),
        pre: text("pre"),
        tokens: array("tokens").map(texts).unwrap(),
        scores: array("scores").map(|all| all.iter().map(|score| score.as_f64().unwrap() as f32).collect()),
        token_types: array("token_type")
            .map(|all| all.iter().map(|kind| kind.as_i64().unwrap() as i32).collect()),
        merges: array("merges").map(texts),
        bos: id("bos_token_id"),
        eos: id("eos_token_id"),
        unknown: id("unknown_token_id"),
        padding: id("padding_token_id"),
        add_bos: flag("add_bos_token"),
        add_eos: flag("add_eos_token"),
        add_space_prefix: flag("add_space_prefix"),
    }
}
