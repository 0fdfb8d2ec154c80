//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use rempart_engine::Logprob;

use super::error::ApiError;
use super::{AppState, Arrived, limits, sse};
use crate::chat::assemble::Entry;
use crate::chat::generation::{Generation, Update};
use crate::chat::prepare_chat;
use crate::model::Model;
use crate::openai::chat::{
    AssistantMessage, ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogprob, ChatLogprobs,
    ChatRequest, Delta, TokenLogprob,
};
use crate::openai::shared::{ChunkUsage, FINGERPRINT, Usage};

/// JSON has no minus infinity; OpenAI writes this for what a model rules out.
const LOGPROB_MIN: f32 = -9999.0;

pub async fn chat_completions(
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
            let request = ChatRequest::parse(&bytes, &request_limits)?;
            let prepared = prepare_chat(&request, &prepared_for, &request_limits)?;
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
        let id = format!("chatcmpl-{}", uuid::Uuid::new_v4().simple());
        Self {
            model,
            id,
            created: super::models::unix_now(),
            logprobs,
            token_ids,
        }
    }

    async fn whole(self, mut generation: Generation) -> Result<Response, ApiError> {
        let mut choices: Vec<ChatChoice> = (0..generation.choices())
            .map(|index| self.choice(index))
            .collect();
        let mut prompt_token_ids = self.token_ids.then(Vec::new);
        while let Some(update) = generation.next().await? {
            if !update.prompt_tokens.is_empty() {
                // Every choice has the same.
                prompt_token_ids = Some(update.prompt_tokens);
            }
            let choice = &mut choices[update.choice];
            choice.message.content.push_str(&update.text);
            choice.finish_reason = update.finish_reason.unwrap_or(choice.finish_reason);
            if let Some(ids) = &mut choice.token_ids {
                ids.extend(&update.tokens);
            }
            if let Some(logprobs) = &mut choice.logprobs {
                logprobs.content.extend(
                    update
                        .entries
                        .iter()
                        .map(|entry| chat_logprob(&self.model, entry)),
                );
            }
        }
        let completion = ChatCompletion {
            id: self.id,
            object: "chat.completion",
            created: self.created,
            model: self.model.id().to_owned(),
            choices,
            usage: generation.usage(),
            system_fingerprint: FINGERPRINT,
            prompt_token_ids,
        };
        Ok(Json(completion).into_response())
    }

    fn choice(&self, index: usize) -> ChatChoice {
        ChatChoice {
            index,
            message: AssistantMessage {
                role: "assistant",
                content: String::new(),
                refusal: None,
            },
            logprobs: self.logprobs.then(ChatLogprobs::default),
            finish_reason: "stop",
            token_ids: self.token_ids.then(Vec::new),
        }
    }

    fn chunk(&self, choices: Vec<ChatChunkChoice>, usage: ChunkUsage) -> String {
        self.chunk_with(choices, usage, None)
    }

    fn chunk_with(
        &self,
        choices: Vec<ChatChunkChoice>,
        usage: ChunkUsage,
        prompt_token_ids: Option<Vec<u32>>,
    ) -> String {
        sse::encode(&ChatChunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model.id(),
            choices,
            system_fingerprint: FINGERPRINT,
            usage,
            prompt_token_ids,
        })
    }
}

impl sse::Chunks for Answer {
    fn update(&mut self, update: Update, usage: ChunkUsage) -> Vec<String> {
        let Update {
            choice: index,
            first,
            text,
            entries,
            prompt_tokens,
            tokens,
            finish_reason,
        } = update;
        let plain = |delta| ChatChunkChoice {
            index,
            delta,
            logprobs: None,
            finish_reason: None,
            token_ids: None,
        };
        let mut chunks = Vec::with_capacity(3);
        if first {
            let delta = Delta {
                role: Some("assistant"),
                content: Some(String::new()),
            };
            let prompt = self.token_ids.then_some(prompt_tokens);
            chunks.push(self.chunk_with(vec![plain(delta)], usage, prompt));
        }
        // Tokens whose text is still held back, or that have none, come with an empty text.
        if !text.is_empty() || !entries.is_empty() || !tokens.is_empty() {
            let content = entries
                .iter()
                .map(|entry| chat_logprob(&self.model, entry))
                .collect();
            let logprobs = self.logprobs.then_some(ChatLogprobs {
                content,
                refusal: None,
            });
            let delta = Delta {
                role: None,
                content: Some(text),
            };
            chunks.push(self.chunk(
                vec![ChatChunkChoice {
                    logprobs,
                    token_ids: self.token_ids.then_some(tokens),
                    ..plain(delta)
                }],
                usage,
            ));
        }
        if finish_reason.is_some() {
            let last = ChatChunkChoice {
                finish_reason,
                ..plain(Delta::default())
            };
            chunks.push(self.chunk(vec![last], usage));
        }
        chunks
    }

    fn usage(&mut self, usage: Usage) -> String {
        self.chunk(Vec::new(), ChunkUsage::Told(usage))
    }
}

fn chat_logprob(model: &Model, entry: &Entry) -> ChatLogprob {
    let top = |top: &Logprob| token_logprob(model, top.token, top.logprob);
    ChatLogprob {
        token: token_logprob(model, entry.token, entry.logprob.unwrap_or(0.0)),
        top_logprobs: entry.top.iter().map(top).collect(),
    }
}

fn token_logprob(model: &Model, token: u32, logprob: f32) -> TokenLogprob {
    let bytes = model.token_bytes(token);
    let token = String::from_utf8_lossy(&bytes).into_owned();
    TokenLogprob {
        token,
        logprob: finite(logprob),
        bytes,
    }
}

/// A likelihood that JSON can hold.
pub fn finite(logprob: f32) -> f32 {
    // Written so that NaN, too, becomes the lowest value.
    if logprob > LOGPROB_MIN {
        logprob
    } else {
        LOGPROB_MIN
    }
}
