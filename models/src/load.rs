//! From a path to a model that runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use rempart_kernels::{Activations, CardNeeds, Format, KvDtype, Packed};

use crate::{
    Architecture, Error, Model, ModelConfig, Result,
    decoder::{Body, Generator},
    gemma3, llama,
    parallel::{Collective, Shard, Single},
    qwen2, qwen3,
    weights::{Checkpoint, Progress, TensorEntry, Weights},
};

/// How to load.
pub struct LoadOptions<'a> {
    /// Where the model computes.
    pub device: Device,
    /// How layers with integer weights round their activations.
    pub activations: Activations,
    /// Weights with integer codes stay as in their file, and meet activations that nobody rounds: slow, and exact enough to
    /// compare by.
    pub unrounded: bool,
    /// What the model's ranks exchange their results by, and with it which part of the model is loaded.
    pub collective: Arc<dyn Collective>,
    /// Called with bytes read so far and bytes in all, as the weights come into memory.
    pub progress: Option<&'a dyn Fn(u64, u64)>,
}

impl Default for LoadOptions<'_> {
    /// The whole model on the CPU, activations rounded to 8 bits.
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            activations: Activations::default(),
            unrounded: false,
            collective: Arc::new(Single),
            progress: None,
        }
    }
}

/// A model's files, opened: all that is known of it before its weights are read.
pub struct ModelFiles {
    /// Its shape.
    pub config: ModelConfig,
    /// Where its tokenizer and chat template come from.
    pub text: TextSource,
    /// The weights' files: totals, metadata and, once they are loaded, the tensors that the model did not ask for.
    pub checkpoint: Checkpoint,
}

/// A tokenizer and a chat template, still as the files hold them.
pub enum TextSource {
    /// The checkpoint's GGUF metadata.
    Gguf,
    /// The files beside safetensors.
    Files {
        /// `tokenizer.json`.
        tokenizer: Vec<u8>,
        /// `tokenizer_config.json`, where there is one.
        tokenizer_config: Option<Vec<u8>>,
        /// `chat_template.jinja`, where there is one.
        chat_template: Option<String>,
    },
}

/// Largest configuration or tokenizer file read, bytes.
const TEXT_FILE_MAX: u64 = 64 << 20;

impl ModelFiles {
    /// Opens a `.gguf` file, or a directory with `config.json` and safetensors, or a directory with one `.gguf`.
    ///
    /// # Errors
    /// When a file is missing, malformed, or of an architecture that is not supported.
    pub fn open(path: &Path) -> Result<Self> {
        match find(path)? {
            Found::Gguf(file) => open_gguf(&file),
            Found::Safetensors(dir) => open_safetensors(&dir),
        }
    }

    /// Why no card computes this model, told before anything is loaded; `None` where one does.
    pub fn card_refuses(&self, activations: Activations, kv_dtype: KvDtype) -> Option<String> {
        let needs = CardNeeds {
            head_dim: self.config.head_dim,
            activations,
            kv_dtype,
        };
        // Whatever has other dimensions is a norm or a bias, which is read in f32.
        let matrices = self
            .checkpoint
            .tensors()
            .filter(|(_, tensor)| tensor.shape.len() == 2);
        needs.refused(matrices.map(|(_, tensor)| tensor.format))
    }

    /// Bytes that a rank's tensors take in memory once their layers have packed them.
    ///
    /// # Errors
    /// The model cannot be divided so: says which tensor, and among how many ranks it can.
    pub fn loaded_bytes(&self, shard: Shard) -> Result<u64> {
        if shard.is_whole() {
            return Ok(self.checkpoint.loaded_bytes());
        }
        let mut sum = 0_u64;
        for (name, tensor) in self.checkpoint.tensors() {
            sum = sum.saturating_add(self.part_bytes(shard, name, tensor)?);
        }
        Ok(sum)
    }

    /// What the layers will ask for, by their names.
    fn part_bytes(&self, shard: Shard, name: &str, tensor: &TensorEntry) -> Result<u64> {
        let [rows, cols] = tensor.shape[..] else {
            return Ok(tensor.bytes.len() as u64);
        };
        let config = &self.config;
        let inner = |down: &str| {
            let block = self.checkpoint.format(down).map_or(1, Format::block_len);
            shard.columns(down, config.intermediate_size, block)
        };
        let (place, layer) = name
            .strip_suffix(".weight")
            .unwrap_or(name)
            .rsplit_once('.')
            .unwrap_or(("", name));
        let (rows, cols) = match layer {
            "q_proj" => (shard.heads(config)?.query.len() * config.head_dim, cols),
            "k_proj" | "v_proj" => (shard.heads(config)?.kv.len() * config.head_dim, cols),
            "o_proj" => {
                let heads = shard.heads_in_blocks(config, name, tensor.format.block_len())?;
                (rows, heads.query.len() * config.head_dim)
            }
            "gate_proj" | "up_proj" => (inner(&format!("{place}.down_proj.weight"))?.len(), cols),
            "down_proj" => (rows, inner(name)?.len()),
            "embed_tokens" | "lm_head" => (shard.rows("vocab_size", rows)?.len(), cols),
            _ => (rows, cols),
        };
        Ok(Packed::bytes_of(tensor.format, rows, cols) as u64)
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// When a tensor is missing, has a type that safetensors allow and this model does not, or another shape than the
    /// configuration asks for, and when a file changed meanwhile.
    pub fn load(&self, options: &LoadOptions<'_>) -> Result<Box<dyn Model>> {
        let body = |weights: &Weights<'_>| {
            let body = body(&self.config, weights)?;
            Ok(Box::new(Generator::load(body, &self.config, weights)?) as Box<dyn Model>)
        };
        self.read(options, body)
    }

    /// Reads the weights of a decoder that embeds: all but a head.
    ///
    /// # Errors
    /// As [`ModelFiles::load`].
    pub(crate) fn load_body(&self, options: &LoadOptions<'_>) -> Result<Box<dyn Body>> {
        self.read(options, |weights| body(&self.config, weights))
    }

    fn read<T>(&self, options: &LoadOptions<'_>, build: impl FnOnce(&Weights<'_>) -> Result<T>) -> Result<T> {
        let weights = self
            .checkpoint
            .weights()
            .with_activations((!options.unrounded).then_some(options.activations))
            .with_device(&options.device)
            .with_collective(&options.collective)
            .with_progress(Progress(options.progress));
        let built = build(&weights)?;
        if let Some(progress) = options.progress {
            progress(self.checkpoint.total_bytes(), self.checkpoint.total_bytes());
        }
        self.checkpoint.check_unchanged()?;
        Ok(built)
    }
}

/// The registry: one arm per architecture.
fn body(config: &ModelConfig, weights: &Weights<'_>) -> Result<Box<dyn Body>> {
    Ok(match config.architecture {
        Architecture::Llama => Box::new(llama::load(config, weights)?),
        Architecture::Qwen2 => Box::new(qwen2::load(config, weights)?),
        Architecture::Qwen3 => Box::new(qwen3::load(config, weights)?),
        Architecture::Gemma3 => Box::new(gemma3::load(config, weights)?),
    })
}

enum Found {
    Gguf(PathBuf),
    Safetensors(PathBuf),
}

fn find(path: &Path) -> Result<Found> {
    let refuse = |message: &str| Err(Error::config(path.display().to_string(), message));
    if path.is_file() {
        return match path.extension().and_then(|e| e.to_str()) {
            Some("gguf") => Ok(Found::Gguf(path.to_owned())),
            _ => refuse("a model file must end in .gguf; for safetensors name their directory"),
        };
    }
    if !path.is_dir() {
        return refuse("there is no such file or directory");
    }
    if path.join("config.json").is_file() {
        return Ok(Found::Safetensors(path.to_owned()));
    }
    let io = |source| Error::Io {
        path: path.display().to_string(),
        source,
    };
    let mut ggufs = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        if file.extension().is_some_and(|e| e == "gguf") {
            ggufs.push(file);
        }
    }
    match (ggufs.pop(), ggufs.is_empty()) {
        (Some(file), true) => Ok(Found::Gguf(file)),
        (Some(_), false) => refuse("the directory holds several .gguf files; name one"),
        (None, _) => refuse("the directory holds neither config.json nor a .gguf file"),
    }
}

fn open_gguf(file: &Path) -> Result<ModelFiles> {
    let checkpoint = Checkpoint::open_gguf(file)?;
    let config = ModelConfig::from_gguf(&checkpoint)?;
    Ok(ModelFiles {
        config,
        text: TextSource::Gguf,
        checkpoint,
    })
}

fn open_safetensors(dir: &Path) -> Result<ModelFiles> {
    let config = read(&dir.join("config.json"))?;
    let generation = read_optional(&dir.join("generation_config.json"))?;
    let config = ModelConfig::from_json(&config, generation.as_deref())?;
    let template = dir.join("chat_template.jinja");
    let text = TextSource::Files {
        tokenizer: read(&dir.join("tokenizer.json"))?,
        tokenizer_config: read_optional(&dir.join("tokenizer_config.json"))?,
        chat_template: read_optional(&template)?
            .map(|bytes| {
                String::from_utf8(bytes)
                    .map_err(|_| Error::config(template.display().to_string(), "the template is not UTF-8"))
            })
            .transpose()?,
    };
    Ok(ModelFiles {
        config,
        text,
        checkpoint: Checkpoint::open_safetensors(dir)?,
    })
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let io = |source| Error::Io {
        path: path.display().to_string(),
        source,
    };
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    if bytes > TEXT_FILE_MAX {
        let message = format!("the file has {bytes} bytes; the limit is {TEXT_FILE_MAX}");
        return Err(Error::config(path.display().to_string(), message));
    }
    std::fs::read(path).map_err(io)
}

pub(crate) fn read_optional(path: &Path) -> Result<Option<Vec<u8>>> {
    if path.exists() {
        read(path).map(Some)
    } else {
        Ok(None)
    }
}
