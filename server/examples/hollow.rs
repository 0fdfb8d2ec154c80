//! A server over a model that computes nothing: what is left is HTTP, JSON, templates, tokens and the scheduler. It is what a load
//! tool measures where the layer above the model is meant.
//!
//! ```text
//! cargo run --release --example hollow -- 50        # 50 ms a step; the address is printed, and Ctrl-C ends it
//! ```
//!
//! Answers are letters, one for each token, for as long as is asked; options of `rempart serve` follow the milliseconds. Formats are
//! refused: this program does not try them.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Parser as _;
use rempart::access::Access;
use rempart::chat::template::Chat;
use rempart::cli::{Cli, Command};
use rempart::config::{EngineSettings, Settings};
use rempart::engine_thread::{self, Pace};
use rempart::grammar::Grammars;
use rempart::http::lanes::Lanes;
use rempart::http::listen::listen;
use rempart::http::{self, App};
use rempart::metrics::Metrics;
use rempart::model::Model;
use rempart::registry::{First, Loaded, Proof, Served};
use rempart::shutdown::{Phase, Shutdown};
use rempart::turns::Turns;
use rempart::warm_up::warm_up;
use rempart_engine::{Batch, Engine, EngineConfig, ModelRunner, SampleRow, Sampled, sampling};
use rempart_text::{ChatTemplate, GgufVocab, Tokenizer};

const NAME: &str = "hollow";
const VOCAB: usize = 259;
const END: u32 = 258;
const CONTEXT: usize = 4096;
const BLOCKS: usize = 1 << 16;
const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Says the alphabet. A step takes its time as it does on a card: from when it was launched, beside what the processor does.
struct Hollow {
    step: Duration,
}

impl ModelRunner for Hollow {
    /// When the step ends.
    type Logits = Instant;
    type Error = String;

    fn forward(&mut self, _: &Batch) -> Result<Instant, String> {
        Ok(Instant::now() + self.step)
    }

    fn is_asynchronous(&self) -> bool {
        true
    }

    fn sample(&mut self, end: Instant, rows: &[SampleRow<'_>]) -> Result<Vec<Sampled>, String> {
        let sample = |row: &SampleRow<'_>| {
            let mut logits = [0.0; VOCAB];
            logits[usize::from(b'a') + row.output.len() % 26 - usize::from(b'!')] = 12.0;
            sampling::sample(&mut logits, row)
        };
        let sampled = rows.iter().map(sample).collect();
        // A card samples, too.
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        Ok(sampled)
    }
}

/// A token for each byte, and two that are in no text.
fn tokenizer() -> anyhow::Result<Tokenizer> {
    // GPT-2 spells the bytes that have no visible form of their own with characters from 256 on; visible ones come first here.
    let visible = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let (seen, unseen): (Vec<u8>, Vec<u8>) = (0..=255).partition(visible);
    let others = (256..).filter_map(char::from_u32).take(unseen.len());
    let mut tokens: Vec<String> = seen
        .iter()
        .map(|&byte| char::from(byte))
        .chain(others)
        .map(String::from)
        .collect();
    // A byte-level vocabulary must have a merge: of two bytes that no text here has.
    let pair = [tokens[254].clone(), tokens[255].clone()];
    tokens.push(pair.concat());
    tokens.extend(["<|im_start|>", "<|im_end|>"].map(str::to_owned));
    let kinds = (0..VOCAB).map(|token| if token < 257 { 1 } else { 3 }).collect();
    Ok(Tokenizer::from_gguf(&GgufVocab {
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        token_types: Some(kinds),
        tokens,
        merges: Some(vec![pair.join(" ")]),
        eos: Some(END),
        ..GgufVocab::default()
    })?)
}

fn start(step: Duration, settings: &EngineSettings, metrics: &Metrics) -> anyhow::Result<Loaded> {
    let config = EngineConfig {
        blocks: BLOCKS,
        block_size: settings.block_size,
        step_tokens_max: settings.step_tokens_max,
        sequences_max: settings.sequences_max,
        queue_requests_max: settings.queue_requests_max,
        queue_tokens_max: settings.queue_tokens_max,
        speculative_tokens: settings.speculative_tokens,
        context_max: CONTEXT,
        flow_blocks_share_max: 100,
        prefix_cache: settings.prefix_cache,
        cache_secret: 0,
    };
    let pace = Pace {
        stall_timeout: settings.stall_timeout,
        itl_target: settings.itl_target,
        turns: Turns::default(),
    };
    let metrics = metrics.model(NAME, &config);
    let (engine, thread) = engine_thread::spawn(Engine::new(Hollow { step }, config), config, metrics, pace)?;
    let tokenizer = tokenizer()?;
    let template = ChatTemplate::new(TEMPLATE, tokenizer.special_tokens())?;
    let model = Model {
        names: vec![NAME.to_owned()],
        grammars: Grammars::new(tokenizer.clone(), VOCAB, vec![END], std::env::current_exe()?),
        infill: tokenizer.infill(),
        chat: Some(Chat::new(template, &tokenizer, &[END])),
        tokenizer,
        context_length: CONTEXT,
        vocab_size: VOCAB,
        eos_tokens: vec![END],
        created: 0,
        engine,
    };
    Ok(Loaded {
        served: Served::Generator(Arc::new(model)),
        thread,
        bytes: 0,
        planned: 0,
        proof: Proof::default(),
    })
}

fn main() -> anyhow::Result<()> {
    // As in `rempart`: the checks of reliability measure this program's memory.
    rempart_kernels::keep_freed_memory();
    let mut typed = std::env::args().skip(1);
    let step = typed.next().context("the milliseconds of a step")?.parse()?;
    let options = ["rempart", "serve", NAME]
        .map(str::to_owned)
        .into_iter()
        .chain(typed);
    let Command::Serve(args) = Cli::try_parse_from(options)?.command else {
        bail!("options of `rempart serve` follow the milliseconds");
    };
    let Settings {
        engine,
        http,
        request,
        ..
    } = args.check()?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let metrics = Metrics::new()?;
        let loaded = start(Duration::from_millis(step), &engine, &metrics)?;
        // Nobody is told that a model is ready before its first token.
        warm_up(&loaded.served).await?;
        let listener = listen(http.bind, http.connections_max)?;
        writeln!(std::io::stdout(), "http://{}", listener.local_addr()?)?;
        let shutdown = Shutdown::default();
        let app = Arc::new(App::new(http, request, Access::Open, metrics, shutdown.clone()));
        let first = First {
            source: NAME.to_owned(),
            names: vec![NAME.to_owned()],
            loaded,
        };
        app.registry.open(vec![first], None);
        let router = http::app(Arc::clone(&app));
        let ended = async {
            let ended = tokio::signal::ctrl_c().await;
            shutdown.advance(Phase::Closing);
            ended
        };
        let lanes = Lanes::start(std::thread::available_parallelism()?.get())?;
        let serving = http::accept::serve(listener, None, router, app, Arc::new(lanes));
        let ((), ended) = tokio::join!(serving, ended);
        Ok(ended?)
    })
}
