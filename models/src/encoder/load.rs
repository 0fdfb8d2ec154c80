//! From a directory to an encoder that runs.

use std::path::Path;

use rempart_kernels::{KvDtype, Precision};

use super::{
    Embedder, Encoder, LoadedEncoder, Network, Task,
    config::{EncoderConfig, Family, Purpose},
    head::{Head, ScoreActivation},
    modules::Modules,
};
use crate::{
    Error, ModelFiles, Result, bert,
    load::read,
    modernbert,
    weights::{Checkpoint, Progress, Weights},
};

/// How to load an encoder.
pub struct EncoderOptions<'a> {
    /// How products of an encoder round weights and their inputs.
    pub precision: Precision,
    /// How a decoder that embeds holds keys and values.
    pub kv_dtype: KvDtype,
    /// Most tokens of a decoder's sequence, where there is memory for fewer than the model was made for.
    pub tokens_max: Option<usize>,
    /// Called with bytes read so far and bytes in all, as the weights come into memory.
    pub progress: Option<&'a dyn Fn(u64, u64)>,
}

impl Default for EncoderOptions<'_> {
    /// An encoder in bf16; a decoder with keys and values as they were computed, as rounding them costs a cosine of 0.9999.
    fn default() -> Self {
        Self {
            precision: Precision::default(),
            kv_dtype: KvDtype::F32,
            tokens_max: None,
            progress: None,
        }
    }
}

impl LoadedEncoder {
    /// Whether a directory's `config.json` names a family of encoders. A decoder that embeds is told by [`ModelFiles::embeds`].
    pub fn is_one(dir: &Path) -> bool {
        read(&dir.join("config.json")).is_ok_and(|config| EncoderConfig::is_encoder(&config))
    }
}

/// Loads a directory with `config.json`, safetensors and, where they are, sentence-transformers' files, which say how hidden
/// states become embeddings; without them it is their mean, of length 1. A model for sequence classification gives
/// scores instead. A decoder's directory or GGUF file is loaded if its files say that it embeds.
///
/// # Errors
/// When a file is missing, malformed, or of an architecture or with a module that is not supported.
pub fn load_encoder(path: &Path, options: &EncoderOptions<'_>) -> Result<LoadedEncoder> {
    if LoadedEncoder::is_one(path) {
        return load_bidirectional(path, options);
    }
    Embedder::new(ModelFiles::open(path)?)?.load(options)
}

fn load_bidirectional(dir: &Path, options: &EncoderOptions<'_>) -> Result<LoadedEncoder> {
    let config = EncoderConfig::from_json(&read(&dir.join("config.json"))?)?;
    let checkpoint = Checkpoint::open_safetensors(dir)?;
    let weights = checkpoint.weights().with_progress(Progress(options.progress));
    let (mut head, mut projection) = (None, None);
    let mut tokens_max = config.tokens_max();
    let task = match config.purpose {
        Purpose::Classify(labels) => {
            head = Some(Head::load(&config, labels, &weights)?);
            let activation = ScoreActivation::of(config.score_activation.as_deref(), labels)?;
            Task::Rank { labels, activation }
        }
        Purpose::Body => {
            let modules = Modules::read(dir, config.hidden_size)?;
            tokens_max = modules.tokens_max.unwrap_or(tokens_max).min(tokens_max);
            projection = modules.projection;
            Task::Embed {
                pooling: modules.pooling,
                normalize: modules.normalize,
                dimensions: modules.dimensions,
            }
        }
    };
    if tokens_max == 0 {
        return Err(Error::config("sentence_bert_config.json", "max_seq_length is 0"));
    }
    let encoder = build(&config, &weights, options.precision)?;
    if let Some(progress) = options.progress {
        progress(checkpoint.total_bytes(), checkpoint.total_bytes());
    }
    checkpoint.check_unchanged()?;
    Ok(LoadedEncoder {
        task,
        tokens_max,
        vocab_size: config.vocab_size,
        network: Network::Bidirectional(encoder.into()),
        network_tokens_max: config.tokens_max(),
        hidden_size: config.hidden_size,
        head,
        projection,
    })
}

/// The registry: one arm per family.
fn build(config: &EncoderConfig, weights: &Weights<'_>, precision: Precision) -> Result<Encoder> {
    match config.family {
        Family::Bert | Family::Roberta => bert::load(config, weights, precision),
        Family::ModernBert => modernbert::load(config, weights, precision),
    }
}
