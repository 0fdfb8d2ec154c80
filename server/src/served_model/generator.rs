//! A model that generates text: from its files to its engine thread.

use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, bail};
use candle_core::Device;
use rempart_engine::EngineConfig;
use rempart_hub::store::ModelPath;
use rempart_kernels::cpu;
use rempart_models::parallel::{Collective, Shard, Single};
use rempart_models::{
    CONTEXT_AUTO_MIN, Error, KvCache, LargestSteps, LoadOptions, MemoryPlan, Model as Weights, ModelFiles,
    PlanRequest, Steps,
};
use rempart_text::{ChatTemplate, Tokenizer};

use super::{Ranks, created, loading_bar, ranks, text};
use crate::chat::template::Chat;
use crate::config::{ComputeSettings, EngineSettings, Settings};
use crate::engine_thread::{self, Pace};
use crate::grammar::Grammars;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::registry::{Loaded, Proof, Served};
use crate::runner::CandleRunner;
use crate::turns::Turns;

/// A loaded model with everything the server needs to know of it.
pub struct ServedModel {
    pub runner: CandleRunner,
    tokenizer: Tokenizer,
    /// `None` for a base model.
    chat_template: Option<ChatTemplate>,
    /// Tokens of prompt and answer together.
    context_length: usize,
    vocab_size: usize,
    eos_tokens: Vec<u32>,
    engine_config: EngineConfig,
    /// When its files were written, Unix time in seconds.
    created: i64,
    /// What was planned for it.
    bytes: u64,
}

/// What a model gets.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) memory: MemoryPlan,
    pub(super) context_length: usize,
    /// What the model was trained for, and the bytes of its tensors: files that say otherwise are another model's.
    pub(super) trained: usize,
    encoded: u64,
}

impl Plan {
    /// Whether it was made for files like these.
    pub(super) fn is_for(&self, files: &ModelFiles) -> bool {
        self.encoded == files.checkpoint.total_bytes() && self.trained == files.config.context_length
    }

    /// The same once the weights are on a card: large steps are computed there, and what they take is left free. A context that
    /// nobody asked for is halved until it fits. No other model computes while steps are measured.
    fn measured(
        &self,
        settings: &Settings,
        device: &Device,
        (files, model): (&ModelFiles, &dyn Weights),
        turns: &Turns,
    ) -> anyhow::Result<Self> {
        let mut plan = self.clone();
        if device.is_cpu() {
            return Ok(plan);
        }
        let mut request = request(files, settings, device, self.memory.available)?;
        let measured = loop {
            request.context_length = plan.context_length;
            let shorter = settings.model.context_length.is_none() && plan.context_length > CONTEXT_AUTO_MIN;
            let _turn = turns.wait();
            match measured(&request, settings.engine.sequences_max, device, (files, model)) {
                Err(Error::DoesNotFit(_)) if shorter => {
                    plan.context_length = (plan.context_length / 2).max(CONTEXT_AUTO_MIN);
                }
                other => break other,
            }
        };
        // What the steps gave back must be the card's again before keys and values, or another model, ask for it. Others may be
        // recording steps, which a wait for the whole card would end.
        let _turn = turns.wait();
        rempart_kernels::trim_heap();
        plan.memory = measured?;
        Ok(plan)
    }
}

/// A plan for `request` with what steps were measured to take.
fn measured(
    request: &PlanRequest,
    sequences: usize,
    device: &Device,
    (files, model): (&ModelFiles, &dyn Weights),
) -> rempart_models::Result<MemoryPlan> {
    let estimated = MemoryPlan::new(&files.config, request)?;
    let steps = LargestSteps {
        tokens: request.step_tokens,
        sequences,
        logit_rows: request.logit_rows,
        context_length: request.context_length,
        cached_tokens: estimated.kv_tokens(),
        block_size: request.block_size,
        kv_dtype: request.kv_dtype,
    };
    let request = PlanRequest {
        measured_activations: steps.measure(model, &files.config, device)?,
        ..*request
    };
    MemoryPlan::new(&files.config, &request)
}

/// Bytes of a model's weights in memory, on all its ranks.
pub(super) fn weights_bytes(files: &ModelFiles, ranks: usize) -> anyhow::Result<u64> {
    let ranks = Shard::all(ranks)?;
    let mut sum = 0;
    for rank in ranks {
        sum += files.loaded_bytes(rank)?;
    }
    Ok(sum)
}

/// Reads a model into memory that was planned for it.
pub(super) fn load(
    settings: &Settings,
    device: &Device,
    found: &ModelPath,
    files: &ModelFiles,
    plan: &Plan,
    turns: &Turns,
) -> anyhow::Result<ServedModel> {
    let started = Instant::now();
    let loading = || format!("loading {}", found.path.display());
    let ranks = start_ranks(settings, found, files, &plan.memory).with_context(loading)?;
    let collective: Arc<dyn Collective> = match &ranks {
        Some(ranks) => ranks.processes(),
        None => Arc::new(Single),
    };
    let (model, (tokenizer, chat_template)) =
        read(files, &settings.model.compute, device, &collective).with_context(loading)?;
    if let Some(ranks) = &ranks {
        ranks
            .wait_ready(settings.model.rank_timeout, started.elapsed())
            .with_context(loading)?;
    }
    let plan = plan
        .measured(settings, device, (files, &*model), turns)
        .with_context(loading)?;
    let (plan, context_length) = (&plan.memory, plan.context_length);
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
    let kv_dtype = settings.model.compute.kv_dtype_on(device.is_cpu());
    let config = files.config.part(collective.shard())?;
    let kv = KvCache::new(&config, plan.blocks, plan.block_size, kv_dtype.into(), device)?;
    let mut steps = Steps::new(model, kv, &config, device);
    if let Some(ranks) = &ranks {
        steps = steps.with_ranks(ranks.processes());
    }
    Ok(ServedModel {
        tokenizer,
        chat_template,
        context_length,
        vocab_size: files.config.vocab_size,
        eos_tokens,
        engine_config: engine_config(&settings.engine, plan, context_length),
        created: created(&found.path),
        runner: CandleRunner::new(steps, ranks),
        bytes: plan.total(),
    })
}

/// Reads the weights and, meanwhile, builds the tokenizer: for a large vocabulary that takes as long as packing a small
/// model, on one core.
fn read(
    files: &ModelFiles,
    compute: &ComputeSettings,
    device: &Device,
    collective: &Arc<dyn Collective>,
) -> anyhow::Result<(Box<dyn Weights>, text::Text)> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("tokenizer".to_owned());
        let text = builder
            .spawn_scoped(scope, || text::build(files))
            .context("the system refuses a thread for the tokenizer")?;
        let model = weights(files, compute, device, collective);
        let text = text.join().unwrap_or_else(|panic| resume_unwind(panic));
        Ok((model?, text?))
    })
}

/// The model itself.
pub(super) fn weights(
    files: &ModelFiles,
    compute: &ComputeSettings,
    device: &Device,
    collective: &Arc<dyn Collective>,
) -> rempart_models::Result<Box<dyn Weights>> {
    let bar = loading_bar();
    let progress = |done: u64, total: u64| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let model = files.load(&LoadOptions {
        device: device.clone(),
        progress: Some(&progress),
        activations: compute.activations.into(),
        collective: Arc::clone(collective),
        ..LoadOptions::default()
    });
    bar.finish_and_clear();
    model
}

/// The memory plan and the context length. A context that nobody asked for is halved until it fits.
pub(super) fn plan(
    files: &ModelFiles,
    settings: &Settings,
    device: &Device,
    available: u64,
) -> anyhow::Result<Plan> {
    let context_length = settings.model.context_length;
    let trained = files.config.context_length;
    if let Some(asked) = context_length.filter(|&asked| asked > trained) {
        bail!("--context-length {asked} is more than the model was made for, {trained}");
    }
    let request = request(files, settings, device, available)?;
    let (memory, context_length) = MemoryPlan::within(&files.config, request, context_length.is_none())?;
    Ok(Plan {
        memory,
        context_length,
        trained,
        encoded: files.checkpoint.total_bytes(),
    })
}

/// What the plan of a model must provide for.
fn request(
    files: &ModelFiles,
    settings: &Settings,
    device: &Device,
    available: u64,
) -> anyhow::Result<PlanRequest> {
    let weights = weights_bytes(files, settings.model.ranks)?;
    let trained = files.config.context_length;
    Ok(plan_request(
        settings,
        (weights, trained),
        available,
        device.is_cpu(),
    ))
}

/// The same of the bytes of its weights, of all ranks, and of the tokens that it was made for.
pub(crate) fn plan_request(
    settings: &Settings,
    (weights, trained): (u64, usize),
    available: u64,
    on_cpu: bool,
) -> PlanRequest {
    let (model, engine) = (&settings.model, &settings.engine);
    PlanRequest {
        available,
        weights,
        context_length: model.context_length.unwrap_or(trained),
        block_size: engine.block_size,
        step_tokens: engine.step_tokens_max,
        logit_rows: engine_config(engine, &MemoryPlan::default(), 0).logits_max(),
        measured_activations: None,
        kv_dtype: model.compute.kv_dtype_on(on_cpu).into(),
        kv: model.kv_cache_bytes,
        dedicated: !on_cpu,
        ranks: model.ranks,
    }
}

/// Starts the processes that share the model with this one, if there are to be any: they load while it does.
fn start_ranks(
    settings: &Settings,
    found: &ModelPath,
    files: &ModelFiles,
    plan: &MemoryPlan,
) -> anyhow::Result<Option<Ranks>> {
    let model = &settings.model;
    if model.ranks == 1 {
        return Ok(None);
    }
    let setup = ranks::Setup {
        path: found.path.clone(),
        files: files.checkpoint.identities(),
        ranks: model.ranks,
        timeout_ms: u64::try_from(model.rank_timeout.as_millis())?,
        threads: rempart_kernels::pool::threads(),
        kernels: model.compute.kernels.clone(),
        activations: model.compute.activations,
        kv_dtype: model.compute.kv_dtype_on(true),
        blocks: plan.blocks,
        block_size: plan.block_size,
    };
    let ranks = Ranks::start(&this_program()?, &setup);
    Ok(Some(ranks.context("starting the other processes of the model")?))
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
        flow_blocks_share_max: engine.project_cache_percent_max,
        cache_secret: uuid::Uuid::new_v4().as_u64_pair().0,
    }
}

impl ServedModel {
    /// Starts its engine thread.
    pub(super) fn start(
        self,
        names: Vec<String>,
        settings: &EngineSettings,
        metrics: &Metrics,
        turns: &Turns,
    ) -> anyhow::Result<Loaded> {
        let Some(name) = names.first() else {
            bail!("the model has no name")
        };
        self.engine_config.check().context("the engine's limits")?;
        let metrics = metrics.model(name, &self.engine_config);
        let engine = rempart_engine::Engine::new(self.runner, self.engine_config);
        let pace = Pace {
            stall_timeout: settings.stall_timeout,
            itl_target: settings.itl_target,
            turns: turns.clone(),
        };
        let (handle, thread) = engine_thread::spawn(engine, self.engine_config, metrics, pace)
            .context("starting the engine thread")?;
        let chat = self
            .chat_template
            .map(|template| Chat::new(template, &self.tokenizer, &self.eos_tokens));
        let model = Model {
            names,
            grammars: Grammars::new(
                self.tokenizer.clone(),
                self.vocab_size,
                self.eos_tokens.clone(),
                this_program()?,
            ),
            infill: self.tokenizer.infill(),
            tokenizer: self.tokenizer,
            chat,
            context_length: self.context_length,
            vocab_size: self.vocab_size,
            eos_tokens: self.eos_tokens,
            created: self.created,
            engine: handle,
        };
        Ok(Loaded {
            served: Served::Generator(model.into()),
            thread,
            bytes: self.bytes,
            planned: self.bytes,
            proof: Proof::default(),
        })
    }
}

/// This program, even if an upgrade replaces or removes its file.
fn this_program() -> anyhow::Result<PathBuf> {
    if cfg!(target_os = "linux") {
        return Ok(PathBuf::from("/proc/self/exe"));
    }
    std::env::current_exe().context("finding this program")
}
