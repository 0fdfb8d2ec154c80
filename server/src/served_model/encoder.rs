//! An encoder: from its folder to its thread.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail};
use rempart_hub::store::ModelPath;
use rempart_models::weights::Checkpoint;
use rempart_models::{EncoderOptions, LoadedEncoder};
use rempart_text::Tokenizer;

use super::{created, loading_bar};
use crate::config::EngineSettings;
use crate::encoder::EncoderModel;
use crate::encoder_thread::{self, EncoderLimits};
use crate::metrics::Metrics;
use crate::registry::{Loaded, Served};
use crate::turns::Turns;

/// An encoder with everything the server needs to know of it.
pub(super) struct ServedEncoder {
    encoder: LoadedEncoder,
    tokenizer: Tokenizer,
    /// Bytes of its weights, at most.
    bytes: u64,
    /// When its files were written, Unix time in seconds.
    created: i64,
}

pub(super) fn load(found: &ModelPath) -> anyhow::Result<ServedEncoder> {
    let started = Instant::now();
    let loading = || format!("loading {}", found.path.display());
    let json = found.path.join("tokenizer.json");
    let json = std::fs::read(&json).with_context(|| format!("reading {}", json.display()))?;
    let tokenizer = Tokenizer::from_json(&json)
        .context("tokenizer.json")
        .with_context(loading)?;
    let bar = loading_bar();
    let progress = |done: u64, total: u64| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let encoder = rempart_models::load_encoder(
        &found.path,
        &EncoderOptions {
            progress: Some(&progress),
            ..EncoderOptions::default()
        },
    );
    bar.finish_and_clear();
    let encoder = encoder.with_context(loading)?;
    if tokenizer.vocab_size() > encoder.vocab_size {
        bail!(
            "{}: the tokenizer has {} tokens, the model's embedding {} rows: these files do not belong together",
            found.path.display(),
            tokenizer.vocab_size(),
            encoder.vocab_size
        );
    }
    tracing::info!(
        model = %found.name, task = ?encoder.task, tokens_max = encoder.tokens_max,
        seconds = started.elapsed().as_secs_f32(), "an encoder is loaded"
    );
    Ok(ServedEncoder {
        created: created(&found.path),
        bytes: weights_bytes(&found.path),
        encoder,
        tokenizer,
    })
}

/// Looks at the small files and at the heads of the large ones.
///
/// # Errors
/// What is wrong with which.
pub(super) fn check(found: &ModelPath) -> anyhow::Result<()> {
    let checking = || format!("looking at {}", found.path.display());
    let json = found.path.join("tokenizer.json");
    let json = std::fs::read(&json).with_context(|| format!("reading {}", json.display()))?;
    Tokenizer::from_json(&json)
        .context("tokenizer.json")
        .with_context(checking)?;
    Checkpoint::open_safetensors(&found.path)
        .map(drop)
        .with_context(checking)
}

/// Bytes of the weights in a folder.
pub(super) fn weights_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let weights = entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "safetensors"));
    weights
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .sum()
}

impl ServedEncoder {
    /// Starts its thread.
    pub(super) fn start(
        self,
        name: String,
        settings: &EngineSettings,
        metrics: &Metrics,
        turns: &Turns,
    ) -> anyhow::Result<Loaded> {
        let (task, tokens_max, vocab_size) = (
            self.encoder.task,
            self.encoder.tokens_max,
            self.encoder.vocab_size,
        );
        let limits = EncoderLimits {
            batch_tokens_max: settings.encoder_batch_tokens_max,
            queue_requests_max: settings.queue_requests_max,
            queue_tokens_max: settings.queue_tokens_max,
        };
        let metrics = metrics.encoder(&name);
        let (engine, thread) = encoder_thread::spawn(self.encoder, limits, turns.clone(), metrics)
            .context("starting an encoder's thread")?;
        let model = EncoderModel {
            name,
            tokenizer: self.tokenizer,
            task,
            tokens_max,
            vocab_size,
            created: self.created,
            engine,
        };
        Ok(Loaded {
            served: Served::Encoder(model.into()),
            thread,
            bytes: self.bytes,
            planned: self.bytes,
        })
    }
}
