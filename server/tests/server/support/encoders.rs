//! Encoders that count letters.

use std::sync::Arc;

use rempart::config::EngineSettings;
use rempart::encoder::EncoderModel;
use rempart::encoder_thread::{self, Encode, EncoderLimits};
use rempart::metrics::Metrics;
use rempart::registry::{Loaded, Proof, Served};
use rempart::turns::Turns;
use rempart_models::{EncoderBatch, Pooling, ScoreActivation, Task};
use rempart_text::Tokenizer;
use serde_json::{Value, json};

use super::VOCAB;

/// What the encoders of these tests give.
const EMBED: Task = Task::Embed {
    pooling: Pooling::Mean,
    normalize: false,
    dimensions: 4,
};
const RANK: Task = Task::Rank {
    labels: 1,
    activation: ScoreActivation::Identity,
};

/// Counts the letters a, b, c and d; or how many of a pair's second text's letters the first has.
struct Counting(Task);

impl Encode for Counting {
    fn encode(&mut self, batch: &EncoderBatch<'_>) -> Result<Vec<Vec<f32>>, String> {
        let mut at = 0;
        let mut results = Vec::new();
        for length in batch.lengths {
            let (tokens, types) = (
                &batch.tokens[at..at + length],
                &batch.token_types[at..at + length],
            );
            at += length;
            results.push(if matches!(self.0, Task::Rank { .. }) {
                let of = |wanted: u32| {
                    let pairs = tokens.iter().zip(types);
                    pairs
                        .filter(move |(_, kind)| **kind == wanted)
                        .map(|(token, _)| *token)
                };
                let first: Vec<u32> = of(0).collect();
                vec![of(1).filter(|token| first.contains(token)).count() as f32]
            } else {
                let count =
                    |letter: u8| tokens.iter().filter(|token| **token == u32::from(letter)).count() as f32;
                vec![count(b'a'), count(b'b'), count(b'c'), count(b'd')]
            });
        }
        Ok(results)
    }
}

/// A model that embeds and one that scores pairs.
pub(super) fn start(engine: &EngineSettings, metrics: &Metrics) -> [(&'static str, Loaded); 2] {
    ["embedder", "ranker"].map(|name| (name, start_one(name, engine, metrics)))
}

pub(super) fn start_one(name: &str, engine: &EngineSettings, metrics: &Metrics) -> Loaded {
    let task = if name == "ranker" { RANK } else { EMBED };
    let limits = EncoderLimits {
        batch_tokens_max: engine.encoder_batch_tokens_max,
        queue_requests_max: engine.queue_requests_max,
        queue_tokens_max: engine.queue_tokens_max,
    };
    let metrics = metrics.encoder(name);
    let (engine, thread) = encoder_thread::spawn(Counting(task), limits, Turns::default(), metrics).unwrap();
    let model = EncoderModel {
        name: name.to_owned(),
        tokenizer: tokenizer_of_pairs(),
        task,
        tokens_max: 64,
        vocab_size: VOCAB,
        created: 1_700_000_000,
        engine,
    };
    Loaded {
        served: Served::Encoder(Arc::new(model)),
        thread,
        bytes: 10,
        planned: 10,
        proof: Proof::default(),
    }
}

/// A tokenizer that knows pairs: a token for each letter, nothing around a text.
fn tokenizer_of_pairs() -> Tokenizer {
    let vocab: serde_json::Map<String, Value> = (1..=255_u32)
        .map(|code| (char::from_u32(code).unwrap().to_string(), json!(code)))
        .chain([("?".to_owned(), json!(63)), ("[UNK]".to_owned(), json!(0))])
        .collect();
    let piece = |id: &str, kind: u32| json!({"Sequence": {"id": id, "type_id": kind}});
    let file = json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false},
        "post_processor": {
            "type": "TemplateProcessing", "single": [piece("A", 0)], "pair": [piece("A", 0), piece("B", 1)],
            "special_tokens": {}
        },
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    });
    Tokenizer::from_json(file.to_string().as_bytes()).unwrap()
}
