//! `POST /v1/completions`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::chat::finite;
use super::error::ApiError;
use super::{AppState, Arrived, limits, sse};
use crate::chat::assemble::{Entry, Said};
use crate::chat::generation::{Generation, Update};
use crate::chat::prepare_completion;
use crate::model::Model;
use crate::openai::completions::{
    Completion, CompletionChoice, CompletionChunk, CompletionLogprobs, CompletionRequest,
};
use crate::openai::shared::{ChunkUsage, FINGERPRINT, Usage};

pub async fn completions(
    State(app): State<AppState>,
    Extension(arrived): Extension<Arrived>,
    request: Request,
) -> Result<Response, ApiError> {
    let model = app.model()?;
    let body = limits::read_json(&app, request).await?;
    let (bytes, request_limits, prepared_for) = (body.bytes.clone(), app.limits.clone(), Arc::clone(&model));
    let (mut prepared, stream) = app
        .preparation
        .run(move || {
            let request = CompletionRequest::parse(&bytes, &request_limits)?;
            let prepared = prepare_completion(&request, &prepared_for, &request_limits)?;
            Ok((prepared, request.common.stream))
        })
        .await?;
    drop(body);
    app.follow_format(&model, &mut prepared).await?;
    let (logprobs, token_ids) = (prepared.rules.logprobs.is_some(), prepared.rules.token_ids);
    let generation =
        Generation::start(Arc::clone(&model), prepared, app.timing(arrived.0), &app.shutdown).await?;
    let answer = Answer::new(model, logprobs, token_ids);
    match stream {
        Some(options) => Ok(sse::respond(generation, answer, options, app.http.keep_alive)),
        None => answer.whole(generation).await,
    }
}

/// What all parts of one answer share.
struct Answer {
    model: Arc<Model>,
    id: String,
    created: i64,
    logprobs: bool,
    token_ids: bool,
}

impl Answer {
    fn new(model: Arc<Model>, logprobs: bool, token_ids: bool) -> Self {
        let id = format!("cmpl-{}", uuid::Uuid::new_v4().simple());
        Self {
            model,
            id,
            created: super::models::unix_now(),
            logprobs,
            token_ids,
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
        };
        let mut choices: Vec<CompletionChoice> = (0..generation.choices()).map(empty).collect();
        while let Some(update) = generation.next().await? {
            let choice = &mut choices[update.choice];
            choice.text.push_str(&text_of(update.said));
            choice.finish_reason = update.finish_reason;
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

    fn chunk(&self, choices: Vec<CompletionChoice>, usage: ChunkUsage) -> String {
        sse::encode(&CompletionChunk {
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

impl sse::Chunks for Answer {
    fn update(&mut self, update: Update, usage: ChunkUsage) -> Vec<String> {
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
            }],
            usage,
        )]
    }

    fn usage(&mut self, usage: Usage) -> String {
        self.chunk(Vec::new(), ChunkUsage::Told(usage))
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
