//! `POST /v1/completions`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::error::ApiError;
use super::sse::{Chunk, Chunks};
use super::{AppState, Arrived, generate, sse};
use crate::chat::assemble::{Entry, Said};
use crate::chat::generation::{Generation, Update};
use crate::chat::{Rules, prepare_completion};
use crate::config::RequestLimits;
use crate::model::Model;
use crate::openai::completions::{
    Completion, CompletionChoice, CompletionChunk, CompletionLogprobs, CompletionRequest,
};
use crate::openai::logprobs::finite;
use crate::openai::shared::{ChunkUsage, FINGERPRINT, StreamOptions, Usage};

pub async fn completions(
    State(app): State<AppState>,
    Extension(arrived): Extension<Arrived>,
    request: Request,
) -> Result<Response, ApiError> {
    let prepare = |request: CompletionRequest, model: Result<&Model, ApiError>, limits: &RequestLimits| {
        let prepared = prepare_completion(&request, model?, limits)?;
        Ok((prepared, request.common.stream))
    };
    let (started, stream) =
        generate::start(&app, arrived.0, request, CompletionRequest::parse, prepare).await?;
    let answer = Answer::new(started.model, &started.rules, stream);
    Ok(match stream {
        Some(_) => sse::respond(started.generation, answer, app.http.keep_alive),
        None => answer.whole(started.generation).await?,
    })
}

/// What all parts of one answer share.
struct Answer {
    model: Arc<Model>,
    id: String,
    created: i64,
    logprobs: bool,
    token_ids: bool,
    options: StreamOptions,
}

impl Answer {
    fn new(model: Arc<Model>, rules: &Rules, stream: Option<StreamOptions>) -> Self {
        let id = format!("cmpl-{}", uuid::Uuid::new_v4().simple());
        Self {
            model,
            id,
            created: super::models::unix_now(),
            logprobs: rules.logprobs.is_some(),
            token_ids: rules.token_ids,
            options: stream.unwrap_or_default(),
        }
    }

    async fn whole(self, mut generation: Generation) -> Result<Response, ApiError> {
        let empty = |index| CompletionChoice {
            index,
            text: String::new(),
            logprobs: self.logprobs.then(CompletionLogprobs::default),
            finish_reason: None,
            prompt_token_ids: self.token_ids.then(Vec::new),
            token_ids: self.token_ids.then(Vec::new),
            prompt_logprobs: None,
        };
        let mut choices: Vec<CompletionChoice> = (0..generation.choices()).map(empty).collect();
        while let Some(update) = generation.next().await? {
            let choice = &mut choices[update.choice];
            choice.text.push_str(&text_of(update.said));
            choice.finish_reason = update.finish_reason;
            choice.prompt_logprobs = update.prompt_logprobs.or(choice.prompt_logprobs.take());
            if let Some(logprobs) = &mut choice.logprobs {
                append(logprobs, &self.model, &update.entries);
            }
            let parts = [
                (&mut choice.prompt_token_ids, update.prompt_tokens),
                (&mut choice.token_ids, update.tokens),
            ];
            for (ids, part) in parts {
                if let Some(ids) = ids {
                    ids.extend(&part);
                }
            }
        }
        let completion = Completion {
            id: self.id,
            object: "text_completion",
            created: self.created,
            model: self.model.id().to_owned(),
            choices,
            usage: generation.usage(),
            system_fingerprint: FINGERPRINT,
        };
        Ok(Json(completion).into_response())
    }

    fn chunk(&self, choices: Vec<CompletionChoice>, usage: ChunkUsage) -> Chunk {
        Chunk::of(&CompletionChunk {
            id: &self.id,
            object: "text_completion",
            created: self.created,
            model: self.model.id(),
            choices,
            system_fingerprint: FINGERPRINT,
            usage,
        })
    }
}

impl Chunks for Answer {
    fn update(&mut self, update: Update, usage: Usage) -> Vec<Chunk> {
        let usage = self.options.chunk_usage(usage);
        let Update {
            choice: index,
            said,
            entries,
            prompt_tokens,
            tokens,
            finish_reason,
            ..
        } = update;
        let text = text_of(said);
        let told = !tokens.is_empty() || !prompt_tokens.is_empty();
        if text.is_empty() && entries.is_empty() && finish_reason.is_none() && !told {
            return Vec::new();
        }
        let logprobs = self.logprobs.then(|| {
            let mut logprobs = CompletionLogprobs::default();
            append(&mut logprobs, &self.model, &entries);
            logprobs
        });
        vec![self.chunk(
            vec![CompletionChoice {
                index,
                text,
                logprobs,
                finish_reason,
                prompt_token_ids: (self.token_ids && !prompt_tokens.is_empty()).then_some(prompt_tokens),
                token_ids: self.token_ids.then_some(tokens),
                prompt_logprobs: None,
            }],
            usage,
        )]
    }

    fn end(&mut self, usage: Usage) -> Vec<Chunk> {
        let told = || self.chunk(Vec::new(), ChunkUsage::Told(usage));
        sse::done(self.options.include_usage.then(told))
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Chunk> {
        vec![Chunk::of(&error.body())]
    }
}

/// A completion has nothing but content.
fn text_of(said: Vec<Said>) -> String {
    let text = |said| match said {
        Said::Content(text) => text,
        Said::Reasoning(_) | Said::Call { .. } | Said::Arguments { .. } => String::new(),
    };
    said.into_iter().map(text).collect()
}

fn append(logprobs: &mut CompletionLogprobs, model: &Model, entries: &[Entry]) {
    let text = |token: u32| String::from_utf8_lossy(&model.token_bytes(token)).into_owned();
    for entry in entries {
        logprobs.tokens.push(text(entry.token));
        logprobs.token_logprobs.push(entry.logprob.map(finite));
        logprobs.text_offset.push(entry.offset);
        logprobs.top_logprobs.push(entry.logprob.map(|chosen| {
            let mut top = BTreeMap::from([(text(entry.token), finite(chosen))]);
            for other in &entry.top {
                // Several tokens can have the same text; the likeliest comes first and stays.
                top.entry(text(other.token)).or_insert(finite(other.logprob));
            }
            top
        }));
    }
}
