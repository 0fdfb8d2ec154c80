//! The proof behind a green `/readyz`: one token, made by the model through the way every request takes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rempart_engine::{Event, Finish, Flow, Request, SamplingParams, StopRules};

use crate::encoder::EncoderModel;
use crate::engine_thread::Timing;
use crate::model::Model;
use crate::registry::Served;

/// For a first token, on any machine and with other models at work.
const DEADLINE: Duration = Duration::from_mins(10);
/// For a few tokens.
const ENCODER_DEADLINE: Duration = Duration::from_mins(1);

/// Has a model do a little.
pub async fn warm_up(served: &Served) -> anyhow::Result<()> {
    match served {
        Served::Generator(model) => generator(model).await,
        Served::Encoder(model) => encoder(model).await,
    }
}

/// Generates one token and, if that works, marks the engine ready.
async fn generator(model: &Model) -> anyhow::Result<()> {
    let first = model.tokenizer.bos().or(model.tokenizer.eos()).unwrap_or(0);
    let request = Request {
        prompt: vec![first],
        n: 1,
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        stop: StopRules {
            tokens: Vec::new(),
            max_tokens: 1,
            min_tokens: 0,
        },
        prompt_logprobs: None,
        prediction: Vec::new(),
        grammar: None,
        cache_salt: 0,
        flow: Flow::default(),
        priority: 0,
        deadline_ms: None,
    };
    let began = Instant::now();
    let timing = Timing {
        arrived: began,
        deadline: began + DEADLINE,
    };
    let mut stream = model
        .engine
        .submit(vec![request], timing)
        .await
        .context("the first request")?;
    let mut made = false;
    loop {
        match stream.next().await.map(|event| event.event) {
            Some(Event::Token(_)) => made = true,
            Some(Event::Finished(Finish::Length)) if made => break,
            Some(Event::Finished(finish)) => bail!("the first token was not made: {finish:?}"),
            Some(_) => {}
            None => bail!("the engine stopped before it made a token"),
        }
    }
    model.engine.mark_warm();
    tracing::info!(
        model = model.id(),
        context_length = model.context_length,
        first_token_seconds = began.elapsed().as_secs_f64(),
        "ready"
    );
    Ok(())
}

/// Encodes a little, so that the first client waits for nothing.
async fn encoder(encoder: &EncoderModel) -> anyhow::Result<()> {
    let deadline = Instant::now() + ENCODER_DEADLINE;
    let warmed = encoder.engine.warm_up(encoder.tokens_max, deadline).await;
    warmed.map_err(|_| anyhow::anyhow!("{} failed at its first tokens", encoder.name))
}
