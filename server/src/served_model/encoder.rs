//! An encoder, or a decoder that embeds: from its files to its thread.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail};
use rempart_hub::store::ModelPath;
use rempart_models::weights::Checkpoint;
use rempart_models::{CONTEXT_AUTO_MIN, Embedder, EncoderOptions, LoadedEncoder};
use rempart_text::Tokenizer;

use super::{created, loading_bar, text};
use crate::config::{EngineSettings, KvDtype, ModelSettings};
use crate::encoder::EncoderModel;
use crate::encoder_thread::{self, EncoderLimits};
use crate::metrics::Metrics;
use crate::registry::{Loaded, Proof, Served};
use crate::turns::Turns;

/// Tokens of a text that a decoder embeds, where nobody asked for more: one text is one turn, in which other models wait.
const EMBEDDED_TOKENS_MAX: usize = 8192;

/// An encoder's files, before anything of them is in memory.
pub(crate) enum Files {
    /// A folder of an encoder, with this many bytes of weights.
    Folder(u64),
    /// A decoder that embeds, and needs room for keys and values.
    Decoder(Box<Embedder>),
}

/// What an encoder gets.
pub(crate) struct Plan {
    pub(crate) bytes: u64,
    /// Tokens of a text, where memory or the operator limits them.
    tokens_max: Option<usize>,
}

/// An encoder with everything the server needs to know of it.
pub(super) struct ServedEncoder {
    encoder: LoadedEncoder,
    tokenizer: Tokenizer,
    /// Bytes that were planned for it.
    bytes: u64,
    /// When its files were written, Unix time in seconds.
    created: i64,
}

impl Files {
    /// Those of an encoder's folder.
    pub(super) fn of_folder(dir: &Path) -> Self {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let weights =
            entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "safetensors"));
        let bytes = weights.filter_map(|entry| Some(entry.metadata().ok()?.len()));
        Self::Folder(bytes.sum())
    }

    /// Bytes of the weights, at most.
    pub(crate) fn weights_bytes(&self) -> u64 {
        match self {
            Self::Folder(bytes) => *bytes,
            Self::Decoder(embedder) => embedder.files().checkpoint.loaded_bytes(),
        }
    }

    pub(crate) fn is_decoder(&self) -> bool {
        matches!(self, Self::Decoder(_))
    }

    /// What it takes of `available` bytes. A decoder's texts are as long as it was made for, up to 8,192 tokens, or as `--context-length` says; where
    /// nobody has asked, half as long until keys and values fit.
    ///
    /// # Errors
    /// It does not fit.
    pub(crate) fn plan(&self, settings: &ModelSettings, available: u64) -> anyhow::Result<Plan> {
        let embedder = match self {
            Self::Folder(bytes) => {
                return Ok(Plan {
                    bytes: *bytes,
                    tokens_max: None,
                });
            }
            Self::Decoder(embedder) => embedder,
        };
        let trained = embedder.tokens_max();
        let wanted = settings.context_length.unwrap_or(EMBEDDED_TOKENS_MAX);
        let mut tokens = wanted.min(trained);
        loop {
            match embedder.plan(available, tokens, kv_dtype(settings)) {
                Ok(memory) => {
                    return Ok(Plan {
                        bytes: memory.total(),
                        tokens_max: Some(tokens),
                    });
                }
                Err(_) if settings.context_length.is_none() && tokens > CONTEXT_AUTO_MIN => {
                    tokens = (tokens / 2).max(CONTEXT_AUTO_MIN);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Looks at the tokenizer and, where that was not done when the files were opened, at the heads of the weights.
    ///
    /// # Errors
    /// What is wrong with which.
    pub(super) fn check(&self, found: &ModelPath) -> anyhow::Result<()> {
        let checking = || format!("looking at {}", found.path.display());
        self.tokenizer(found).with_context(checking)?;
        match self {
            Self::Folder(_) => Checkpoint::open_safetensors(&found.path)
                .map(drop)
                .with_context(checking),
            Self::Decoder(_) => Ok(()),
        }
    }

    fn tokenizer(&self, found: &ModelPath) -> anyhow::Result<Tokenizer> {
        match self {
            Self::Folder(_) => {
                let json = found.path.join("tokenizer.json");
                let json = std::fs::read(&json).with_context(|| format!("reading {}", json.display()))?;
                Tokenizer::from_json(&json).context("tokenizer.json")
            }
            Self::Decoder(embedder) => text::tokenizer(embedder.files()),
        }
    }
}

/// Rounded keys and values are good for text, but blur what tells vectors apart: only to bf16, and where that is asked for.
fn kv_dtype(settings: &ModelSettings) -> rempart_models::KvDtype {
    match settings.compute.kv_dtype {
        Some(KvDtype::Bf16) => rempart_models::KvDtype::Bf16,
        Some(KvDtype::F32 | KvDtype::Int8) | None => rempart_models::KvDtype::F32,
    }
}

pub(super) fn load(
    settings: &ModelSettings,
    found: &ModelPath,
    files: &Files,
    plan: &Plan,
) -> anyhow::Result<ServedEncoder> {
    let started = Instant::now();
    let loading = || format!("loading {}", found.path.display());
    let tokenizer = files.tokenizer(found).with_context(loading)?;
    let encoder = read(settings, found, files, plan).with_context(loading)?;
    if tokenizer.vocab_size() > encoder.vocab_size {
        bail!(
            "{}: the tokenizer has {} tokens, the model's embedding {} rows: these files do not belong together",
            found.path.display(),
            tokenizer.vocab_size(),
            encoder.vocab_size
        );
    }
    tracing::info!(
        model = %found.name, task = ?encoder.task, tokens_max = encoder.tokens_max, mib = plan.bytes >> 20,
        seconds = started.elapsed().as_secs_f32(), "an encoder is loaded"
    );
    Ok(ServedEncoder {
        created: created(&found.path),
        bytes: plan.bytes,
        encoder,
        tokenizer,
    })
}

fn read(
    settings: &ModelSettings,
    found: &ModelPath,
    files: &Files,
    plan: &Plan,
) -> rempart_models::Result<LoadedEncoder> {
    let bar = loading_bar();
    let progress = |done: u64, total: u64| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let mut options = EncoderOptions {
        progress: Some(&progress),
        ..EncoderOptions::default()
    };
    let encoder = match files {
        Files::Folder(_) => rempart_models::load_encoder(&found.path, &options),
        Files::Decoder(embedder) => {
            options.kv_dtype = kv_dtype(settings);
            options.tokens_max = plan.tokens_max;
            embedder.load(&options)
        }
    };
    bar.finish_and_clear();
    encoder
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
            proof: Proof::default(),
        })
    }
}
