//! `rempart plan`: what a model will need of a device, and how fast it will be there, before anything is bought or loaded.

mod told;

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use rempart_hub::{file, store};
use rempart_kernels::{Activations, CardNeeds, Format, Packed};
use rempart_models::speed::{CARDS, Card, FormatRates, Product, Rates, Step, Work};
use rempart_models::{KvDtype, MemoryPlan, ModelConfig, ModelFiles, PlanRequest};
use serde::Serialize;

use crate::config::{ComputeArgs, ComputeSettings, STEP_TOKENS_LIMIT, Settings, StoreArgs};
use crate::served_model::{self, EncoderFiles};

const BLOCK_SIZE: usize = 16;
/// Answers that are made at one time, of which the rates are told.
const BATCHES: [usize; 4] = [1, 8, 32, 64];
/// Prompts of which the time to the first token is told, tokens.
const PROMPTS: [usize; 3] = [128, 512, 4096];
/// Tokens of the largest step that is measured.
const MEASURED_TOKENS_MAX: usize = 512;
/// Largest configuration read, bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Memory of a card that a plan may use, per cent: the driver and the kernels' own memory take some.
const CARD_PERCENT: u64 = 90;

/// What is planned.
#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// A model of the catalogue, a GGUF file, a directory with safetensors, or a config.json alone
    #[arg(value_name = "MODEL", required_unless_present = "list_cards")]
    model: Option<String>,
    /// The card that is meant, by its name [default: this machine, measured]
    #[arg(long, value_name = "NAME")]
    card: Option<String>,
    /// List the cards that are known
    #[arg(long)]
    list_cards: bool,
    /// How the weights of a config.json are stored
    #[arg(long, value_name = "FORMAT", default_value = "Q4_K")]
    weights: String,
    /// Tokens of prompt and answer together [default: what the model was trained for]
    #[arg(long)]
    context_length: Option<NonZeroUsize>,
    /// Tokens that one step computes
    #[arg(long, default_value = "512")]
    step_tokens_max: NonZeroUsize,
    /// Tokens behind which the rates of answers are told
    #[arg(long, default_value = "1024")]
    answer_context: NonZeroUsize,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// A model's shape and weights, as far as they are known.
pub(super) struct Known {
    name: String,
    work: Work,
    /// Bytes of the weights, as the layers hold them.
    weights: u64,
    /// Why no card computes it, if none does.
    card_refuses: Option<String>,
}

/// What a plan tells.
#[derive(Debug, Serialize)]
struct Told {
    model: String,
    weights: Vec<Weights>,
    device: String,
    /// `measured` or `datasheet`.
    rates: &'static str,
    memory: Memory,
    context_length: usize,
    /// Tokens whose keys and values fit at once.
    cache_tokens: usize,
    /// Tokens of each answer's context that its rate is told for.
    context: usize,
    answers: Vec<Answers>,
    prompts: Vec<Prompt>,
}

#[derive(Debug, Serialize)]
struct Weights {
    format: &'static str,
    count: f64,
    /// Gigabytes per second of one row.
    read_gb_per_s: f64,
    /// Multiplications per second of a full step, in units of 10^9.
    multiplied_g_per_s: f64,
}

#[derive(Debug, Serialize)]
struct Memory {
    available: u64,
    weights: u64,
    cache: u64,
    activations: u64,
}

#[derive(Debug, Serialize)]
struct Answers {
    batch: usize,
    tokens_per_s: f64,
    tokens_per_s_each: f64,
    /// Of the time, that of multiplying by weights, and that of keys and values.
    weights_percent: f64,
    attention_percent: f64,
}

#[derive(Debug, Serialize)]
struct Prompt {
    tokens: usize,
    tokens_per_s: f64,
    first_token_s: f64,
}

pub(super) fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let Some(model) = args.model.as_ref().filter(|_| !args.list_cards) else {
        return list();
    };
    let card = args.card.as_deref().map(card).transpose()?;
    let compute = args.compute.clone().check()?;
    let kv_dtype = compute.kv_dtype_on(card.is_none()).into();
    let activations = compute.activations.into();
    let known = Known::open(
        &args.store.clone().path(),
        model,
        &args.weights,
        (activations, kv_dtype),
    )?;
    if let (Some(_), Some(why)) = (card, &known.card_refuses) {
        bail!("{why}; with --device auto a server computes this model on the CPU");
    }
    let available = match card {
        Some(card) => card.memory_bytes() / 100 * CARD_PERCENT,
        None => memory_here(&compute)?,
    };
    let request = args.request(&known, available, card.is_some())?;
    let step_tokens = request.step_tokens;
    let (memory, context_length) =
        MemoryPlan::within(known.work.config(), request, args.context_length.is_none())?;
    // Larger steps take in proportion, but for attention, whose own share then hardly grows.
    let chunk = step_tokens.min(context_length).min(MEASURED_TOKENS_MAX);
    let (rates, device) = match card {
        Some(card) => (card.rates(&known.work), card.name.to_owned()),
        None => (Rates::measure(&known.work, activations, chunk)?, this_machine()),
    };
    let sizes = Sizes {
        context_length,
        chunk: step_tokens,
        answer_context: args.answer_context.get().min(context_length),
    };
    let mut told = known.tell(&rates, &memory, &sizes);
    (told.device, told.rates) = (device, if card.is_some() { "datasheet" } else { "measured" });
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&told)?)?;
    } else {
        told.write(&mut out)?;
    }
    Ok(())
}

/// A model as a plan of memory takes it.
pub(super) enum Planned {
    /// Makes vectors.
    Encoder(EncoderFiles),
    Generator(Box<Known>),
}

impl Planned {
    /// # Errors
    /// It is not found, or malformed.
    pub(super) fn open(store: &Path, model: &str) -> anyhow::Result<Self> {
        if !is_config(model) {
            let path = store::resolve(store, model)?.path;
            if let Some(files) = served_model::encoder_files(&path)? {
                return Ok(Self::Encoder(files));
            }
        }
        let known = Known::open(store, model, "Q4_K", (Activations::Int8, KvDtype::Int8))?;
        Ok(Self::Generator(Box::new(known)))
    }

    /// Bytes of the weights.
    pub(super) fn weights(&self) -> u64 {
        match self {
            Self::Encoder(files) => files.weights_bytes(),
            Self::Generator(known) => known.weights,
        }
    }

    /// Whether it keeps keys and values, and so has a share of what the weights of all models leave.
    pub(super) fn keeps(&self) -> bool {
        match self {
            Self::Encoder(files) => files.is_decoder(),
            Self::Generator(_) => true,
        }
    }
}

impl Known {
    /// Tokens that the cache would have within so many bytes of a processor's memory, with a server's settings or its defaults.
    ///
    /// # Errors
    /// It does not fit.
    pub(super) fn tokens_within(&self, available: u64, settings: Option<&Settings>) -> anyhow::Result<usize> {
        let asked = settings.and_then(|settings| settings.model.context_length);
        let context_length = self.context_length(asked)?;
        let request = match settings {
            Some(settings) => {
                served_model::plan_request(settings, (self.weights, context_length), available, true)
            }
            None => PlanRequest {
                available,
                weights: self.weights,
                context_length,
                block_size: BLOCK_SIZE,
                step_tokens: MEASURED_TOKENS_MAX,
                logit_rows: BATCHES[BATCHES.len() - 1],
                measured_activations: None,
                kv_dtype: KvDtype::Int8,
                kv: None,
                dedicated: false,
                ranks: 1,
            },
        };
        let (memory, _) = MemoryPlan::within(self.work.config(), request, asked.is_none())?;
        Ok(memory.kv_tokens())
    }

    /// As asked for, or what the model was trained for.
    fn context_length(&self, asked: Option<usize>) -> anyhow::Result<usize> {
        let trained = self.work.config().context_length;
        let context_length = asked.unwrap_or(trained);
        ensure!(
            context_length <= trained,
            "--context-length {context_length} is more than the model was made for, {trained}"
        );
        Ok(context_length)
    }
}

fn is_config(model: &str) -> bool {
    Path::new(model)
        .extension()
        .is_some_and(|extension| extension == "json")
}

/// Tokens of what is told.
struct Sizes {
    context_length: usize,
    chunk: usize,
    answer_context: usize,
}

/// Bytes that a server could plan with on this machine's processor.
fn memory_here(compute: &ComputeSettings) -> anyhow::Result<u64> {
    let device = served_model::prepare(compute, 1)?;
    ensure!(
        device.is_cpu(),
        "the rates of this machine's card are not measured: name it with --card, or say --device cpu"
    );
    served_model::available(&device)
}

impl PlanArgs {
    fn request(&self, known: &Known, available: u64, dedicated: bool) -> anyhow::Result<PlanRequest> {
        let context_length = known.context_length(self.context_length.map(NonZeroUsize::get))?;
        let step_tokens = self.step_tokens_max.get();
        ensure!(
            step_tokens <= STEP_TOKENS_LIMIT,
            "--step-tokens-max {step_tokens} is more than the limit of {STEP_TOKENS_LIMIT}"
        );
        Ok(PlanRequest {
            available,
            weights: known.weights,
            context_length,
            block_size: BLOCK_SIZE,
            step_tokens,
            logit_rows: BATCHES[BATCHES.len() - 1],
            measured_activations: None,
            kv_dtype: known.work.kv_dtype,
            kv: None,
            dedicated,
            ranks: 1,
        })
    }
}

fn card(name: &str) -> anyhow::Result<&'static Card> {
    Card::named(&name.to_lowercase())
        .with_context(|| format!("--card {name} is not known: --list-cards lists those that are"))
}

fn list() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:14} {:>7} {:>9} {:>11} {:>12}",
        "card", "memory", "bandwidth", "int8", "bf16"
    )?;
    for Card {
        name,
        memory_gib,
        bandwidth_gbps,
        int8_tops,
        bf16_tflops,
    } in CARDS
    {
        writeln!(
            out,
            "{name:14} {memory_gib:>3} GiB {bandwidth_gbps:>4} GB/s {int8_tops:>7} TOPS {bf16_tflops:>5} TFLOPS"
        )?;
    }
    Ok(())
}

fn this_machine() -> String {
    let threads = rempart_kernels::pool::threads();
    format!(
        "this machine ({} on {threads} threads)",
        rempart_kernels::cpu::best().name
    )
}

impl Known {
    /// Of what was named, computed so; `weights` is the format of a configuration that comes alone.
    fn open(
        store: &Path,
        model: &str,
        weights: &str,
        computed: (Activations, KvDtype),
    ) -> anyhow::Result<Self> {
        if is_config(model) {
            return Self::of_config(Path::new(model), weights, computed);
        }
        let (activations, kv_dtype) = computed;
        let found = store::resolve(store, model)?;
        let files =
            ModelFiles::open(&found.path).with_context(|| format!("opening {}", found.path.display()))?;
        let work = Work::of_checkpoint(&files.config, &files.checkpoint, kv_dtype);
        Ok(Self {
            name: found.name,
            work,
            weights: files.checkpoint.loaded_bytes(),
            card_refuses: files.card_refuses(activations, kv_dtype),
        })
    }

    fn of_config(
        path: &Path,
        weights: &str,
        (activations, kv_dtype): (Activations, KvDtype),
    ) -> anyhow::Result<Self> {
        let named = |format: &&Format| format.name().eq_ignore_ascii_case(weights);
        let format = *Format::ALL.iter().find(named).with_context(|| {
            let names: Vec<&str> = Format::ALL.iter().map(|format| format.name()).collect();
            format!("--weights {weights} is not one of {}", names.join(", "))
        })?;
        let reading = || format!("reading {}", path.display());
        let bytes = file::read(path, CONFIG_BYTES_MAX).with_context(reading)?;
        let Some(bytes) = bytes else {
            bail!("{} has more than {CONFIG_BYTES_MAX} bytes", path.display());
        };
        let config = ModelConfig::from_json(&bytes, None).with_context(reading)?;
        let work = Work::of_shape(&config, format, kv_dtype);
        let block = format.block_len();
        if let Some(part) = work
            .products
            .iter()
            .find(|product| !product.cols.is_multiple_of(block))
        {
            bail!(
                "--weights {weights}: rows of {} weights are not whole blocks of {block}",
                part.cols
            );
        }
        let embedding = if config.tied_head {
            0
        } else {
            Packed::bytes_of(format, config.vocab_size, config.hidden_size)
        };
        let needs = CardNeeds {
            head_dim: config.head_dim,
            activations,
            kv_dtype,
        };
        let products = work.products.iter().map(Product::bytes);
        Ok(Self {
            name: path.display().to_string(),
            weights: products.fold(embedding, usize::saturating_add) as u64,
            card_refuses: needs.refused([format]),
            work,
        })
    }

    fn tell(&self, rates: &Rates, memory: &MemoryPlan, sizes: &Sizes) -> Told {
        let work = &self.work;
        let &Sizes {
            context_length,
            chunk,
            answer_context: context,
        } = sizes;
        let answers = |sequences: usize| {
            let step = Step {
                sequences,
                tokens: 1,
                context,
                sampled: true,
            };
            let parts = rates.parts(work, &step);
            let percent = |seconds: f64| 100.0 * seconds / parts.sum();
            Answers {
                batch: sequences,
                tokens_per_s: sequences as f64 / parts.sum(),
                tokens_per_s_each: 1.0 / parts.sum(),
                weights_percent: percent(parts.products),
                attention_percent: percent(parts.attention),
            }
        };
        let prompt = |tokens: usize| {
            let first_token_s = rates.prefill(work, tokens, chunk);
            Prompt {
                tokens,
                tokens_per_s: tokens as f64 / first_token_s,
                first_token_s,
            }
        };
        let fits = |batch: &usize| batch * context <= memory.kv_tokens() && *batch <= chunk;
        let fitting = BATCHES.into_iter().filter(fits);
        let prompts = PROMPTS.into_iter().filter(|&tokens| tokens <= context_length);
        Told {
            model: self.name.clone(),
            weights: rates
                .formats
                .iter()
                .map(|format| Weights::of(work, format, chunk))
                .collect(),
            device: String::new(),
            rates: "",
            memory: Memory {
                available: memory.available,
                weights: memory.weights,
                cache: memory.kv,
                activations: memory.activations,
            },
            context_length,
            cache_tokens: memory.kv_tokens(),
            context,
            answers: fitting.map(answers).collect(),
            prompts: prompts.map(prompt).collect(),
        }
    }
}

impl Weights {
    fn of(work: &Work, rates: &FormatRates, chunk: usize) -> Self {
        let of_format = || {
            work.products
                .iter()
                .filter(|product| product.format == rates.format)
        };
        let (count, bytes) = of_format().fold((0.0, 0.0), |(count, bytes), product| {
            (count + product.weights(), bytes + product.bytes() as f64)
        });
        Self {
            format: rates.format.name(),
            count,
            read_gb_per_s: bytes / count / rates.seconds(1) / 1e9,
            multiplied_g_per_s: chunk as f64 / rates.seconds(chunk) / 1e9,
        }
    }
}
