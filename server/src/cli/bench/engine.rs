//! `rempart bench engine`: the rates of prompts and answers, without HTTP and without text, as llama-bench has them; through
//! the engine that serves, so with its schedule and its choice of tokens.

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use candle_core::Device;
use clap::{Args, ValueEnum as _};
use rempart_engine::{Engine, EngineConfig, Flow, Request, RequestId, SamplingParams, StopRules, rng};
use rempart_hub::store;
use rempart_models::{KvCache, KvDtype, MemoryPlan, ModelFiles, PlanRequest};
use serde::Serialize;

use crate::config::{ComputeArgs, StoreArgs};
use crate::runner::CandleRunner;
use crate::{process, served_model};

const BLOCK_SIZE: usize = 16;
const BATCH_LIMIT: usize = 1024;
const TOKENS_LIMIT: usize = 1 << 17;
const REPEAT_LIMIT: usize = 1000;

/// What is measured.
#[derive(Debug, Args)]
pub(crate) struct EngineBenchArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// A model of the catalogue, a GGUF file, or a directory with safetensors
    #[arg(value_name = "MODEL")]
    model: String,
    /// Answers made at one time; several parted by commas
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    batch: Vec<NonZeroUsize>,
    /// Tokens of each prompt; several parted by commas
    #[arg(long, value_delimiter = ',', default_value = "512")]
    prompt_tokens: Vec<NonZeroUsize>,
    /// Tokens of each answer
    #[arg(long, default_value = "64")]
    answer_tokens: NonZeroUsize,
    /// Tokens that one step computes
    #[arg(long, default_value = "512")]
    step_tokens_max: NonZeroUsize,
    /// How often each is measured; the median is told
    #[arg(long, default_value = "3")]
    repeat: NonZeroUsize,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Measured {
    model: String,
    version: &'static str,
    /// What the linker has named this binary by, where it has.
    build: Option<&'static str>,
    device: String,
    /// Of keys and values, as `--kv-dtype` has it.
    kv_dtype: String,
    answer_tokens: usize,
    step_tokens_max: usize,
    results: Vec<Rate>,
}

/// The rates of one batch.
#[derive(Debug, Serialize)]
struct Rate {
    batch: usize,
    prompt_tokens: usize,
    /// Tokens that an answer had behind it in the mean, while all were made.
    context_tokens: usize,
    /// Of all prompts together.
    prompt_tokens_per_s: f64,
    /// `None` of a single measurement.
    prompt_tokens_per_s_std: Option<f64>,
    /// Of all answers together, once every prompt is computed.
    answer_tokens_per_s: f64,
    answer_tokens_per_s_std: Option<f64>,
}

pub(super) fn run(args: &EngineBenchArgs) -> anyhow::Result<()> {
    let numbers = |numbers: &[NonZeroUsize]| numbers.iter().map(|n| n.get()).collect::<Vec<_>>();
    let (batches, prompts) = (numbers(&args.batch), numbers(&args.prompt_tokens));
    let config = args.limits(largest(&batches), largest(&prompts))?;
    let found = store::resolve(&args.store.clone().path(), &args.model)?;
    let files = ModelFiles::open(&found.path).with_context(|| format!("loading {}", found.path.display()))?;
    let compute = args.compute.clone().check()?;
    let device = served_model::prepare(&compute, 1)?;
    let device = served_model::device_for(&found.name, &files, &compute, &device)?;
    let kept = compute.kv_dtype_on(device.is_cpu());
    let kv_dtype = kept.into();
    check(&files, &config, kv_dtype, &device)?;
    let mut engine = Engine::new(served_model::bare(&compute, &files, &device, &config)?, config);
    let (answer_tokens, chunk) = (args.answer_tokens.get(), config.step_tokens_max);
    let mut measured = Measured {
        model: found.name,
        version: env!("CARGO_PKG_VERSION"),
        build: process::BUILD.as_deref(),
        kv_dtype: kept
            .to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned()),
        device: if device.is_cpu() {
            format!(
                "{} on {} threads",
                rempart_kernels::cpu::best().name,
                rempart_kernels::pool::threads()
            )
        } else {
            "a card".to_owned()
        },
        answer_tokens,
        step_tokens_max: chunk,
        results: Vec::new(),
    };
    let mut next = 0;
    for &prompt_tokens in &prompts {
        for &batch in &batches {
            let load = Load {
                batch,
                prompt_tokens,
                answer_tokens,
                chunk,
                vocab: files.config.vocab_size as u64,
            };
            measured
                .results
                .push(load.rate(&mut engine, &mut next, args.repeat.get())?);
        }
    }
    print(&measured, args.json)
}

impl EngineBenchArgs {
    /// What the engine must hold, or what is wrong with what was typed.
    fn limits(&self, batch_max: usize, prompt_max: usize) -> anyhow::Result<EngineConfig> {
        let (answer, chunk) = (self.answer_tokens.get(), self.step_tokens_max.get());
        for (option, value, limit) in [
            ("--batch", batch_max, BATCH_LIMIT),
            ("--prompt-tokens", prompt_max, TOKENS_LIMIT),
            ("--answer-tokens", answer, TOKENS_LIMIT),
            ("--step-tokens-max", chunk, TOKENS_LIMIT),
            ("--repeat", self.repeat.get(), REPEAT_LIMIT),
        ] {
            ensure!(
                value <= limit,
                "{option} {value} is more than the limit of {limit}"
            );
        }
        ensure!(
            batch_max <= chunk,
            "--step-tokens-max {chunk} must be at least the largest --batch, {batch_max}"
        );
        ensure!(
            answer >= 2,
            "--answer-tokens {answer} must be at least 2: the first token is the prompt's"
        );
        // The first answer goes on until the last prompt is computed.
        let context = prompt_max + answer + until_all_answer(batch_max, prompt_max, chunk);
        let config = EngineConfig {
            context_max: context,
            sequences_max: batch_max,
            step_tokens_max: chunk,
            blocks: batch_max * context.div_ceil(BLOCK_SIZE),
            ..ALONE
        };
        config.check().context("the limits of the engine")?;
        Ok(config)
    }
}

/// Of an engine whose requests come at one time, and share nothing.
const ALONE: EngineConfig = EngineConfig {
    blocks: 0,
    block_size: BLOCK_SIZE,
    step_tokens_max: 0,
    sequences_max: 0,
    queue_requests_max: BATCH_LIMIT,
    queue_tokens_max: usize::MAX,
    flow_blocks_share_max: 100,
    speculative_tokens: 0,
    context_max: 0,
    prefix_cache: false,
    cache_secret: 0,
};

/// Requests of one kind.
struct Load {
    batch: usize,
    prompt_tokens: usize,
    answer_tokens: usize,
    chunk: usize,
    vocab: u64,
}

impl Load {
    /// The medians of some measurements, and how far those lie apart.
    fn rate(&self, engine: &mut Engine<CandleRunner>, next: &mut u64, repeat: usize) -> anyhow::Result<Rate> {
        // The first one pays for memory that is touched for the first time.
        self.measure(engine, next)?;
        let rates = (0..repeat)
            .map(|_| self.measure(engine, next))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let (prompts, answers): (Vec<f64>, Vec<f64>) = rates.into_iter().unzip();
        Ok(Rate {
            batch: self.batch,
            prompt_tokens: self.prompt_tokens,
            // The first answer was begun so many steps before the last.
            context_tokens: self.prompt_tokens + usize::midpoint(self.until_all_answer(), self.answer_tokens),
            prompt_tokens_per_s_std: deviation(&prompts),
            prompt_tokens_per_s: median(prompts),
            answer_tokens_per_s_std: deviation(&answers),
            answer_tokens_per_s: median(answers),
        })
    }

    /// Steps until every prompt is computed.
    fn until_all_answer(&self) -> usize {
        until_all_answer(self.batch, self.prompt_tokens, self.chunk)
    }

    /// Tokens per second of the prompts, and of the answers.
    fn measure(&self, engine: &mut Engine<CandleRunner>, next: &mut u64) -> anyhow::Result<(f64, f64)> {
        self.add(engine, next, 1)?;
        let began = Instant::now();
        while engine.has_work() {
            engine.step(0).context("computing a prompt")?;
        }
        let prompts = (self.batch * self.prompt_tokens) as f64 / began.elapsed().as_secs_f64();
        self.add(engine, next, self.answer_tokens + self.until_all_answer())?;
        let (mut tokens, mut seconds) = (0, 0.0);
        while engine.has_work() {
            let began = Instant::now();
            let report = engine.step(0).context("making an answer")?;
            // Of the steps before every prompt is computed, and after the first answer has ended, nothing is counted.
            if report.prefill_tokens == 0 && report.decode_tokens == self.batch {
                tokens += self.batch;
                seconds += began.elapsed().as_secs_f64();
            }
        }
        ensure!(tokens > 0, "no step had all answers");
        Ok((prompts, tokens as f64 / seconds))
    }

    /// Asks for as many answers, to prompts of tokens that no other has.
    fn add(
        &self,
        engine: &mut Engine<CandleRunner>,
        next: &mut u64,
        max_tokens: usize,
    ) -> anyhow::Result<()> {
        for _ in 0..self.batch {
            *next += 1;
            let token = |i: u64| (rng::draw(*next, i) % self.vocab) as u32;
            let request = Request {
                prompt: (0..self.prompt_tokens as u64).map(token).collect(),
                n: 1,
                sampling: SamplingParams {
                    temperature: 0.0,
                    ..SamplingParams::default()
                },
                stop: StopRules {
                    tokens: Vec::new(),
                    max_tokens,
                    min_tokens: 0,
                },
                prompt_logprobs: None,
                prediction: Vec::new(),
                grammar: None,
                cache_salt: 0,
                priority: 0,
                flow: Flow::default(),
                deadline_ms: None,
            };
            engine.add(RequestId(*next), request, 0).context("a request")?;
        }
        Ok(())
    }
}

/// Steps until every prompt is computed: a token of each answer that is being made goes before.
fn until_all_answer(batch: usize, prompt_tokens: usize, chunk: usize) -> usize {
    (0..batch)
        .map(|answers| prompt_tokens.div_ceil(chunk - answers))
        .sum()
}

/// Refuses what the model was not made for, or what has no room.
fn check(
    files: &ModelFiles,
    config: &EngineConfig,
    kv_dtype: KvDtype,
    device: &Device,
) -> anyhow::Result<()> {
    let (context, trained) = (config.context_max, files.config.context_length);
    ensure!(
        context <= trained,
        "prompts and answers, which go on until the last prompt is computed, take {context} tokens of the {trained} that \
         the model was made for: lower --prompt-tokens, --answer-tokens or --batch"
    );
    let block = KvCache::block_bytes(&files.config, BLOCK_SIZE, kv_dtype);
    let request = PlanRequest {
        available: served_model::available(device)?,
        weights: files.checkpoint.loaded_bytes(),
        context_length: context,
        block_size: BLOCK_SIZE,
        step_tokens: config.step_tokens_max,
        logit_rows: config.sequences_max,
        measured_activations: None,
        kv_dtype,
        kv: Some(config.blocks.saturating_mul(block) as u64),
        dedicated: !device.is_cpu(),
        ranks: 1,
    };
    MemoryPlan::new(&files.config, &request)?;
    Ok(())
}

fn largest(numbers: &[usize]) -> usize {
    numbers.iter().copied().max().unwrap_or(0)
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// The standard deviation of a sample; a single number has none.
fn deviation(numbers: &[f64]) -> Option<f64> {
    let count = numbers.len() as f64;
    let mean = numbers.iter().sum::<f64>() / count;
    let squares: f64 = numbers.iter().map(|number| (number - mean).powi(2)).sum();
    (numbers.len() > 1).then(|| (squares / (count - 1.0)).sqrt())
}

fn print(measured: &Measured, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(measured)?)?;
        return Ok(());
    }
    let Measured {
        model,
        version,
        device,
        ..
    } = measured;
    writeln!(
        out,
        "{model}, rempart {version}, {device}, {} tokens an answer",
        measured.answer_tokens
    )?;
    writeln!(
        out,
        "{:>8} {:>14} {:>20} {:>20}",
        "answers", "prompt tokens", "prompts, tok/s", "answers, tok/s"
    )?;
    for rate in &measured.results {
        let Rate {
            batch,
            prompt_tokens,
            prompt_tokens_per_s,
            prompt_tokens_per_s_std,
            answer_tokens_per_s,
            answer_tokens_per_s_std,
            ..
        } = rate;
        let beside = |std: &Option<f64>, digits: usize| {
            std.map_or_else(String::new, |std| format!(" ± {std:.digits$}"))
        };
        let prompts = format!("{prompt_tokens_per_s:.0}{}", beside(prompt_tokens_per_s_std, 0));
        let answers = format!("{answer_tokens_per_s:.1}{}", beside(answer_tokens_per_s_std, 1));
        writeln!(out, "{batch:>8} {prompt_tokens:>14} {prompts:>20} {answers:>20}")?;
    }
    Ok(())
}
