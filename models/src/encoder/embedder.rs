//! From the files of a decoder to one that embeds.

use std::path::Path;

use candle_core::Device;
use rempart_kernels::{Activations, pool};
use serde_json::Value;

use super::{
    EncoderOptions, LoadedEncoder, Network, Task,
    causal::{self, BLOCK, Causal},
    modules::{self, Modules},
    pooling::Pooling,
};
use crate::{
    Error, KvCache, KvDtype, LoadOptions, MemoryPlan, ModelFiles, PlanRequest, Result,
    load::read,
    weights::{Checkpoint, Source},
};

/// A decoder whose files say that it embeds, before its weights are read.
pub struct Embedder {
    files: ModelFiles,
    tokens_max: usize,
}

impl ModelFiles {
    /// Whether the files say that the decoder is there to embed: by a `modules.json` of sentence-transformers that names a
    /// pooling module, or by a `pooling_type` in GGUF metadata.
    ///
    /// # Errors
    /// When one of these cannot be read.
    pub fn embeds(&self) -> Result<bool> {
        match self.checkpoint.source() {
            Source::Gguf => {
                Ok(gguf_key::<u32>(&self.checkpoint, "pooling_type")?.is_some_and(|kind| kind != 0))
            }
            Source::Safetensors => modules::pools(self.checkpoint.path()),
        }
    }
}

impl Embedder {
    /// Reads what the files say of its use.
    ///
    /// # Errors
    /// When they do not say that it embeds, or ask for something that this version cannot do, such as attention to tokens
    /// behind a token.
    pub fn new(files: ModelFiles) -> Result<Self> {
        let path = files.checkpoint.path();
        if !files.embeds()? {
            let message = "neither modules.json nor a pooling_type says that this decoder embeds";
            return Err(Error::config(path.display().to_string(), message));
        }
        let trained = files.config.context_length;
        let tokens_max = modules(&files)?.tokens_max.unwrap_or(trained).min(trained);
        if tokens_max == 0 {
            return Err(Error::config("sentence_bert_config.json", "max_seq_length is 0"));
        }
        Ok(Self { files, tokens_max })
    }

    /// The decoder's files.
    pub fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// Most tokens of a sequence that the files allow, those around the text included.
    pub fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// Memory for weights, for keys and values of one sequence of `tokens_max` or of one step's, and for what a step computes;
    /// `available` bytes are there.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`] with every figure when that is more than is available.
    pub fn plan(&self, available: u64, tokens_max: usize, kv_dtype: KvDtype) -> Result<MemoryPlan> {
        let config = &self.files.config;
        let step_tokens = causal::step_tokens(pool::threads());
        let slots = causal::slots(tokens_max, step_tokens);
        let block_bytes = KvCache::block_bytes(config, BLOCK, kv_dtype);
        let request = PlanRequest {
            available,
            weights: self.files.checkpoint.loaded_bytes(),
            context_length: tokens_max,
            block_size: BLOCK,
            step_tokens,
            logit_rows: 0,
            measured_activations: None,
            kv_dtype,
            kv: Some((slots / BLOCK) as u64 * block_bytes as u64),
            dedicated: false,
            ranks: 1,
        };
        MemoryPlan::new(config, &request)
    }

    /// Reads the weights, without a head, and takes memory for keys and values.
    ///
    /// # Errors
    /// As [`ModelFiles::load`].
    pub fn load(&self, options: &EncoderOptions<'_>) -> Result<LoadedEncoder> {
        let (files, modules) = (&self.files, modules(&self.files)?);
        let tokens_max = options.tokens_max.unwrap_or(self.tokens_max).min(self.tokens_max);
        let body = files.load_body(&LoadOptions {
            device: Device::Cpu,
            // With 8 bits, whole sentences of real models come out at a cosine of 0.98.
            activations: Activations::Int16,
            progress: options.progress,
            ..LoadOptions::default()
        })?;
        let step_tokens = causal::step_tokens(pool::threads());
        let sizes = (tokens_max, step_tokens);
        let decoder = Causal::new(body, &files.config, sizes, options.kv_dtype)?;
        Ok(LoadedEncoder {
            task: Task::Embed {
                pooling: modules.pooling,
                normalize: modules.normalize,
                dimensions: modules.dimensions,
            },
            tokens_max,
            vocab_size: files.config.vocab_size,
            network: Network::Causal(decoder.into()),
            network_tokens_max: tokens_max,
            hidden_size: files.config.hidden_size,
            head: None,
            projection: modules.projection,
        })
    }
}

fn modules(files: &ModelFiles) -> Result<Modules> {
    let (checkpoint, width) = (&files.checkpoint, files.config.hidden_size);
    match checkpoint.source() {
        Source::Gguf => Ok(Modules::pooled_by(gguf_pooling(checkpoint)?, width)),
        Source::Safetensors => {
            refuse_unlike_decoders(&checkpoint.path().join("config.json"))?;
            Modules::read(checkpoint.path(), width)
        }
    }
}

fn gguf_key<'a, T: crate::weights::gguf::FromValue<'a>>(
    checkpoint: &'a Checkpoint,
    key: &str,
) -> Result<Option<T>> {
    let Some(metadata) = checkpoint.metadata() else {
        return Ok(None);
    };
    let architecture = metadata.get_str("general.architecture")?;
    Ok(metadata.find(&format!("{architecture}.{key}"))?)
}

/// The pooling that GGUF metadata number, as llama.cpp counts.
fn gguf_pooling(checkpoint: &Checkpoint) -> Result<Pooling> {
    let refuse = |message: String| Err(Error::config("GGUF metadata", message));
    if gguf_key::<bool>(checkpoint, "attention.causal")? == Some(false) {
        return refuse("attention.causal is false: decoders attend to what is before a token only".into());
    }
    match gguf_key::<u32>(checkpoint, "pooling_type")? {
        Some(1) => Ok(Pooling::Mean),
        Some(2) => Ok(Pooling::Cls),
        Some(3) => Ok(Pooling::Last),
        other => refuse(format!(
            "pooling_type {} is not supported; known are 1 (mean), 2 (cls) and 3 (last)",
            other.unwrap_or(0)
        )),
    }
}

/// Refuses embedders that attend to both sides or have code of their own, instead of computing something else.
fn refuse_unlike_decoders(file: &Path) -> Result<()> {
    let name = || file.display().to_string();
    let refuse = |message: String| Err(Error::config(name(), message));
    let config: Value =
        serde_json::from_slice(&read(file)?).map_err(|error| Error::config(name(), error.to_string()))?;
    let both_sides = config.get("is_causal") == Some(&Value::Bool(false))
        || !matches!(
            config.get("use_bidirectional_attention"),
            None | Some(Value::Null | Value::Bool(false))
        );
    if both_sides {
        return refuse("attention to both sides of a token is not supported for this model_type".into());
    }
    if config.pointer("/auto_map/AutoModel").is_some() {
        return refuse("auto_map names code that comes with the model, which is never run".into());
    }
    let architecture = config.pointer("/architectures/0").and_then(Value::as_str);
    match architecture.filter(|name| !name.ends_with("Model") && !name.ends_with("ForCausalLM")) {
        Some(other) => refuse(format!(
            "architecture '{}' is not supported for embeddings; known are …Model and …ForCausalLM",
            other.chars().take(64).collect::<String>()
        )),
        None => Ok(()),
    }
}
