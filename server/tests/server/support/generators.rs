//! Models that always say the same, and a store of models of which some can't be loaded.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::bail;
use rempart::chat::template::Chat;
use rempart::config::EngineSettings;
use rempart::engine_thread::{self, Pace};
use rempart::grammar::Grammars;
use rempart::metrics::Metrics;
use rempart::model::Model;
use rempart::registry::{Load, Loaded, Proof, Served, Wanted};
use rempart::turns::Turns;
use rempart_engine::{Batch, Engine, EngineConfig, ModelRunner, SampleRow, Sampled, sampling};
use rempart_hub::digest::Sha256;
use rempart_text::{ChatTemplate, Segment};

use super::{CONTEXT, Controls, IM_END, TEMPLATE, VOCAB, encoders, tokenizer};

/// What a model of the store says.
pub(crate) const STORED: &str = "Stored.";
/// Bytes that each model of the store takes, and that all may.
pub(crate) const STORED_BYTES: u64 = 40;
const MEMORY: u64 = 100;

/// What is known of its files.
pub(crate) fn stored_proof() -> Proof {
    Proof {
        sha256: Some(Sha256::of(STORED.as_bytes())),
        signer: Some("key of a test".to_owned()),
    }
}

/// A model to be.
pub(super) struct Says<'a> {
    pub(super) names: &'a [&'a str],
    pub(super) template: &'a str,
    pub(super) script: &'a str,
    pub(super) context: usize,
}

pub(super) fn start(
    says: &Says<'_>,
    engine: &EngineSettings,
    metrics: &Metrics,
    controls: &Arc<Controls>,
) -> Loaded {
    let config = EngineConfig {
        blocks: 1024,
        block_size: engine.block_size,
        step_tokens_max: engine.step_tokens_max,
        sequences_max: engine.sequences_max,
        queue_requests_max: engine.queue_requests_max,
        queue_tokens_max: engine.queue_tokens_max,
        speculative_tokens: engine.speculative_tokens,
        context_max: says.context,
        flow_blocks_share_max: 100,
        prefix_cache: engine.prefix_cache,
        cache_secret: 0,
    };
    let tokenizer = tokenizer();
    let runner = ScriptedRunner {
        controls: Arc::clone(controls),
        script: tokenizer.encode(&[Segment::Markup(says.script)], false).unwrap(),
    };
    let pace = Pace {
        stall_timeout: engine.stall_timeout,
        itl_target: engine.itl_target,
        turns: Turns::default(),
    };
    let metrics = metrics.model(says.names[0], &config);
    let (handle, thread) = engine_thread::spawn(Engine::new(runner, config), config, metrics, pace).unwrap();
    let template = ChatTemplate::new(says.template, tokenizer.special_tokens()).unwrap();
    let chat = Chat::new(template, &tokenizer, &[IM_END]);
    let model = Model {
        names: says.names.iter().map(|name| (*name).to_owned()).collect(),
        grammars: Grammars::new(
            tokenizer.clone(),
            VOCAB,
            vec![IM_END],
            env!("CARGO_BIN_EXE_rempart").into(),
        ),
        infill: tokenizer.infill(),
        tokenizer,
        chat: Some(chat),
        context_length: says.context,
        vocab_size: VOCAB,
        eos_tokens: vec![IM_END],
        created: 1_700_000_000,
        engine: handle,
    };
    Loaded {
        served: Served::Generator(Arc::new(model)),
        thread,
        bytes: 30,
        planned: 30,
        proof: Proof::default(),
    }
}

/// A store with `stored`, `second`, `stored-encoder`, `damaged`, and `silent`, which never makes a token; and the models of the
/// command line.
pub(super) struct Stored {
    pub(super) engine: EngineSettings,
    pub(super) metrics: Metrics,
    pub(super) controls: Arc<Controls>,
}

impl Load for Stored {
    fn find(&self, name: &str) -> Option<String> {
        let stored = ["stored", "second", "stored-encoder", "damaged", "silent"].contains(&name);
        stored.then(|| name.to_owned())
    }

    fn check(&self, _: &Wanted) -> anyhow::Result<()> {
        if self.controls.files_damaged.load(Ordering::Relaxed) {
            bail!("damaged.gguf: the file ends too early");
        }
        Ok(())
    }

    fn load(&self, wanted: &Wanted) -> anyhow::Result<Loaded> {
        let name = wanted.names[0].as_str();
        if name == "damaged" || self.controls.files_damaged.load(Ordering::Relaxed) {
            bail!("damaged.gguf: the file ends too early");
        }
        if wanted.taken + STORED_BYTES > MEMORY && self.find(name).is_some() {
            bail!("the plan exceeds the memory available");
        }
        if name.contains("embedder") || name == "stored-encoder" {
            return Ok(encoders::start_one(name, &self.engine, &self.metrics));
        }
        let names: Vec<&str> = wanted.names.iter().map(String::as_str).collect();
        let says = Says {
            names: &names,
            template: TEMPLATE,
            script: STORED,
            context: CONTEXT,
        };
        let controls = if name == "silent" {
            let failing = Arc::new(Controls::default());
            failing.fail.store(usize::MAX, Ordering::Relaxed);
            failing
        } else {
            // Long enough to be seen.
            let more_ms = self.controls.load_ms.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(100 + more_ms as u64));
            Arc::clone(&self.controls)
        };
        let loaded = start(&says, &self.engine, &self.metrics, &controls);
        Ok(Loaded {
            bytes: STORED_BYTES,
            planned: STORED_BYTES,
            proof: stored_proof(),
            ..loaded
        })
    }
}

/// Says its script, then ends; with end-of-sequence ignored, begins again.
struct ScriptedRunner {
    controls: Arc<Controls>,
    script: Vec<u32>,
}

impl ModelRunner for ScriptedRunner {
    type Logits = ();
    type Error = String;

    fn forward(&mut self, batch: &Batch) -> Result<(), String> {
        self.controls.pass();
        self.controls.rows.store(batch.rows.len(), Ordering::Relaxed);
        let ms = self.controls.token_ms.load(Ordering::Relaxed) * batch.tokens.len();
        std::thread::sleep(Duration::from_millis(ms as u64));
        assert!(!Controls::due(&self.controls.panic), "the test asked for it");
        if Controls::due(&self.controls.fail) {
            Err("the test asked for it".to_owned())
        } else {
            Ok(())
        }
    }

    fn sample(&mut self, (): (), rows: &[SampleRow<'_>]) -> Result<Vec<Sampled>, String> {
        let sample = |row: &SampleRow<'_>| {
            let at = row.output.len() % (self.script.len() + 1);
            let next = self.script.get(at).copied().unwrap_or(IM_END);
            let mut logits: Vec<f32> = (0..VOCAB).map(|token| -(token as f32) / 64.0).collect();
            logits[next as usize] = 12.0;
            sampling::sample(&mut logits, row)
        };
        Ok(rows.iter().map(sample).collect())
    }
}
