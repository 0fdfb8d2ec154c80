//! From settings to models that can be served: find, verify, plan memory, load.

mod memory;
mod text;

use std::panic::resume_unwind;
use std::path::Path;
use std::thread;
use std::time::{Instant, SystemTime};

use anyhow::{Context as _, bail};
use rempart_engine::EngineConfig;
use rempart_hub::manifest::Manifest;
use rempart_hub::progress::Terminal;
use rempart_hub::store::ModelPath;
use rempart_kernels::cpu;
use rempart_models::{
    EncoderOptions, KvCache, LoadOptions, LoadedEncoder, MemoryPlan, Model, ModelFiles, PlanRequest, Steps,
};
use rempart_text::{ChatTemplate, Tokenizer};

use crate::config::{Activations, Device, EngineSettings, KvDtype, ModelSettings, Settings};
use crate::runner::CandleRunner;

/// Shortest context that an automatic plan falls back to before it gives up, tokens.
const CONTEXT_AUTO_MIN: usize = 1024;

/// A loaded model with everything the server needs to know of it.
pub struct ServedModel {
    /// The name it is served under unless the settings give others.
    pub id: String,
    pub runner: CandleRunner,
    pub tokenizer: Tokenizer,
    /// `None` for a base model.
    pub chat_template: Option<ChatTemplate>,
    /// Tokens of prompt and answer together.
    pub context_length: usize,
    pub vocab_size: usize,
    pub eos_tokens: Vec<u32>,
    pub engine_config: EngineConfig,
    /// When its files were written, Unix time in seconds.
    pub created: i64,
}

/// An encoder with everything the server needs to know of it.
pub struct ServedEncoder {
    pub name: String,
    pub encoder: LoadedEncoder,
    pub tokenizer: Tokenizer,
    /// Bytes of its weights, at most.
    pub bytes: u64,
    /// When its files were written, Unix time in seconds.
    pub created: i64,
}

/// All that a process serves.
#[derive(Default)]
pub struct ServedModels {
    pub generator: Option<ServedModel>,
    pub encoders: Vec<ServedEncoder>,
}

/// Finds the configured models, checks their files against their manifests, plans memory and loads them.
///
/// # Errors
/// Says what is wrong with which file or setting, and what to do.
pub fn load(settings: &Settings, store: &Path) -> anyhow::Result<ServedModels> {
    let device = open(settings.model.device)?;
    let threads = settings
        .model
        .threads
        .unwrap_or_else(rempart_kernels::pool::default_threads);
    rempart_kernels::pool::init(threads);
    choose_kernels(settings.model.kernels.as_deref())?;
    let mut all = ServedModels::default();
    let mut generators = Vec::new();
    for name in &settings.model.models {
        let found = rempart_hub::store::resolve(store, name)?;
        verify(&found.dir)?;
        // What they take is then no longer free, and the plan of the one that generates counts with that.
        if LoadedEncoder::is_one(&found.path) {
            all.encoders.push(encoder(found)?);
        } else {
            generators.push(found);
        }
    }
    if let [first, second, ..] = generators.as_slice() {
        bail!(
            "{} and {} both generate text: this version serves one such model, beside any number of encoders; start \
             another process for the other",
            first.name,
            second.name
        );
    }
    let taken = all.encoders.iter().map(|encoder| encoder.bytes).sum();
    all.generator = generators
        .pop()
        .map(|found| generator(settings, &device, found, taken))
        .transpose()?;
    let mut names: Vec<&str> = all.encoders.iter().map(|encoder| encoder.name.as_str()).collect();
    let served = &settings.model.served_names;
    match &all.generator {
        Some(model) if served.is_empty() => names.push(&model.id),
        None if !served.is_empty() => {
            bail!("--served-model-name names the model that generates text, and there is none")
        }
        _ => names.extend(served.iter().map(String::as_str)),
    }
    names.sort_unstable();
    if let Some([name, _]) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("two models have the name {name}");
    }
    Ok(all)
}

fn encoder(found: ModelPath) -> anyhow::Result<ServedEncoder> {
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
        name: found.name,
        encoder,
        tokenizer,
    })
}

/// Bytes of the weights in a folder.
fn weights_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let weights = entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "safetensors"));
    weights
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .sum()
}

/// `taken`: bytes that other models have of what the operator allows.
fn generator(
    settings: &Settings,
    device: &candle_core::Device,
    found: ModelPath,
    taken: u64,
) -> anyhow::Result<ServedModel> {
    let started = Instant::now();
    let loading = || format!("loading {}", found.path.display());
    let files = ModelFiles::open(&found.path).with_context(loading)?;
    // Before the weights are in memory: what is free then is what the plan divides.
    let (plan, context_length) = plan(&files, settings, device, taken)?;
    let (model, (tokenizer, chat_template)) =
        read(&files, settings.model.activations, device).with_context(loading)?;
    tracing::info!(
        model = %found.name, device = ?device.location(), threads = rempart_kernels::pool::threads(), kernels = cpu::best().name, tokens = plan.kv_tokens(), context_length,
        seconds = started.elapsed().as_secs_f32(), "{plan}"
    );
    let leftovers: Vec<&str> = files.checkpoint.leftovers().collect();
    if !leftovers.is_empty() {
        tracing::warn!(tensors = ?leftovers, "the file holds tensors that this model does not use");
    }
    let mut eos_tokens = [files.config.eos_tokens.clone(), tokenizer.end_tokens()].concat();
    eos_tokens.sort_unstable();
    eos_tokens.dedup();
    let kv_dtype = kv_dtype(settings, device);
    let kv = KvCache::new(&files.config, plan.blocks, plan.block_size, kv_dtype, device)?;
    Ok(ServedModel {
        id: found.name,
        tokenizer,
        chat_template,
        context_length,
        vocab_size: files.config.vocab_size,
        eos_tokens,
        engine_config: engine_config(&settings.engine, &plan, context_length),
        created: created(&found.path),
        runner: CandleRunner::new(Steps::new(model, kv, &files.config, device)),
    })
}

fn verify(dir: &Path) -> anyhow::Result<()> {
    let Some(manifest) = Manifest::load(dir)? else {
        tracing::warn!(folder = %dir.display(), "no manifest: nothing proves that these files are unaltered");
        return Ok(());
    };
    Ok(manifest.verify(dir, &Terminal::new())?)
}

/// Makes kernels other than the best the ones that compute.
fn choose_kernels(name: Option<&str>) -> anyhow::Result<()> {
    let Some(name) = name else {
        return Ok(());
    };
    if !cpu::choose(name) && cpu::best().name != name {
        let names: Vec<&str> = cpu::all().iter().map(|table| table.name).collect();
        bail!("--kernels {name}: this processor runs {}", names.join(", "));
    }
    Ok(())
}

/// Reads the weights and, meanwhile, builds the tokenizer: for a large vocabulary that takes as long as packing a small
/// model, on one core.
fn read(
    files: &ModelFiles,
    activations: Activations,
    device: &candle_core::Device,
) -> anyhow::Result<(Box<dyn Model>, text::Text)> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("tokenizer".to_owned());
        let text = builder
            .spawn_scoped(scope, || text::build(files))
            .context("the system refuses a thread for the tokenizer")?;
        let model = weights(files, activations, device);
        let text = text.join().unwrap_or_else(|panic| resume_unwind(panic));
        Ok((model?, text?))
    })
}

fn weights(
    files: &ModelFiles,
    activations: Activations,
    device: &candle_core::Device,
) -> rempart_models::Result<Box<dyn Model>> {
    let activations = match activations {
        Activations::Int8 => rempart_kernels::Activations::Int8,
        Activations::Int16 => rempart_kernels::Activations::Int16,
    };
    let bar = loading_bar();
    let progress = |done: u64, total: u64| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let model = files.load(&LoadOptions {
        device: device.clone(),
        progress: Some(&progress),
        activations,
    });
    bar.finish_and_clear();
    model
}

fn loading_bar() -> indicatif::ProgressBar {
    let style = indicatif::ProgressStyle::with_template("loading {wide_bar} {bytes}/{total_bytes}")
        .expect("the template is a constant. This is a bug.");
    indicatif::ProgressBar::new(0).with_style(style)
}

/// The memory plan and the context length. A context that nobody asked for is halved until it fits.
fn plan(
    files: &ModelFiles,
    settings: &Settings,
    device: &candle_core::Device,
    taken: u64,
) -> anyhow::Result<(MemoryPlan, usize)> {
    let ModelSettings {
        context_length,
        memory_max_bytes,
        kv_cache_bytes,
        ..
    } = settings.model;
    let trained = files.config.context_length;
    if let Some(asked) = context_length.filter(|&asked| asked > trained) {
        bail!("--context-length {asked} is more than the model was made for, {trained}");
    }
    let engine = &settings.engine;
    let mut request = PlanRequest {
        available: memory_max_bytes
            .map_or_else(|| memory::available(device), |max| Ok(max.saturating_sub(taken)))?,
        weights: files.checkpoint.loaded_bytes(),
        context_length: context_length.unwrap_or(trained),
        block_size: engine.block_size,
        step_tokens: engine.step_tokens_max,
        logit_rows: engine_config(engine, &MemoryPlan::default(), trained).logits_max(),
        kv_dtype: kv_dtype(settings, device),
        kv: kv_cache_bytes,
        dedicated: !device.is_cpu(),
    };
    loop {
        match MemoryPlan::new(&files.config, &request) {
            Ok(plan) => return Ok((plan, request.context_length)),
            Err(_) if context_length.is_none() && request.context_length > CONTEXT_AUTO_MIN => {
                request.context_length = (request.context_length / 2).max(CONTEXT_AUTO_MIN);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn kv_dtype(settings: &Settings, device: &candle_core::Device) -> rempart_models::KvDtype {
    match settings.model.kv_dtype {
        None if device.is_cpu() => rempart_models::KvDtype::Int8,
        Some(KvDtype::Int8) => rempart_models::KvDtype::Int8,
        Some(KvDtype::Bf16) | None => rempart_models::KvDtype::Bf16,
        Some(KvDtype::F32) => rempart_models::KvDtype::F32,
    }
}

/// The device that was asked for; of its own accord the server takes a card where there is one.
fn open(device: Device) -> anyhow::Result<candle_core::Device> {
    let cuda = rempart_kernels::open_cuda;
    match device {
        Device::Cpu => Ok(candle_core::Device::Cpu),
        Device::Cuda => cuda().context("--device cuda: no CUDA card can be used"),
        Device::Auto if rempart_kernels::HAS_CUDA => Ok(cuda().unwrap_or_else(|error| {
            tracing::warn!(%error, "no CUDA card can be used: the model computes on the CPU");
            candle_core::Device::Cpu
        })),
        Device::Auto => Ok(candle_core::Device::Cpu),
    }
}

fn engine_config(engine: &EngineSettings, plan: &MemoryPlan, context_length: usize) -> EngineConfig {
    EngineConfig {
        blocks: plan.blocks,
        block_size: engine.block_size,
        step_tokens_max: engine.step_tokens_max,
        sequences_max: engine.sequences_max,
        queue_requests_max: engine.queue_requests_max,
        queue_tokens_max: engine.queue_tokens_max,
        speculative_tokens: engine.speculative_tokens,
        context_max: context_length,
        prefix_cache: engine.prefix_cache,
        cache_secret: uuid::Uuid::new_v4().as_u64_pair().0,
    }
}

fn created(path: &Path) -> i64 {
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    let since = modified
        .ok()
        .and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_secs().cast_signed())
}
