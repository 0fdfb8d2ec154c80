//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use rempart_engine::Logprob;

use super::error::ApiError;
use super::sse::{Chunk, Chunks};
use super::{AppState, Arrived, generate, sse};
use crate::chat::assemble::{Entry, Said};
use crate::chat::generation::{Generation, Update};
use crate::chat::{Rules, prepare_chat};
use crate::config::RequestLimits;
use crate::model::Model;
use crate::openai::chat::{
    AssistantMessage, CalledFunction, CalledFunctionDelta, ChatChoice, ChatChunk, ChatChunkChoice,
    ChatCompletion, ChatLogprob, ChatLogprobs, ChatRequest, Delta, TokenLogprob, ToolCall, ToolCallDelta,
};
use crate::openai::logprobs::finite;
use crate::openai::shared::{ChunkUsage, FINGERPRINT, StreamOptions, Usage};

pub async fn chat_completions(
    State(app): State<AppState>,
    Extension(arrived): Extension<Arrived>,
    request: Request,
) -> Result<Response, ApiError> {
    let prepare = |request: ChatRequest, model: Result<&Model, ApiError>, limits: &RequestLimits| {
        let prepared = prepare_chat(&request, model?, limits)?;
        Ok((prepared, request.common.stream))
    };
    let (started, stream) = generate::start(&app, arrived.0, request, ChatRequest::parse, prepare).await?;
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
    /// Whether it may have calls, and so no content.
    calls: bool,
    options: StreamOptions,
}

impl Answer {
    fn new(model: Arc<Model>, rules: &Rules, stream: Option<StreamOptions>) -> Self {
        let id = format!("chatcmpl-{}", uuid::Uuid::new_v4().simple());
        Self {
            model,
            id,
            created: super::models::unix_now(),
            logprobs: rules.logprobs.is_some(),
            token_ids: rules.token_ids,
            calls: rules.reading.calls.is_some(),
            options: stream.unwrap_or_default(),
        }
    }

    async fn whole(self, mut generation: Generation) -> Result<Response, ApiError> {
        let mut choices: Vec<ChatChoice> = (0..generation.choices())
            .map(|index| self.choice(index))
            .collect();
        let mut prompt_token_ids = self.token_ids.then(Vec::new);
        let mut prompt_logprobs = None;
        while let Some(update) = generation.next().await? {
            if !update.prompt_tokens.is_empty() {
                // Every choice has the same.
                prompt_token_ids = Some(update.prompt_tokens);
            }
            prompt_logprobs = update.prompt_logprobs.or(prompt_logprobs);
            let choice = &mut choices[update.choice];
            update
                .said
                .into_iter()
                .for_each(|said| add(&mut choice.message, said));
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
        for choice in &mut choices {
            // Nothing at all was said: an empty answer, and not a missing one.
            if choice.message.tool_calls.is_empty() {
                choice.message.content.get_or_insert_default();
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
            prompt_logprobs,
        };
        Ok(Json(completion).into_response())
    }

    fn choice(&self, index: usize) -> ChatChoice {
        ChatChoice {
            index,
            message: AssistantMessage {
                role: "assistant",
                content: None,
                refusal: None,
                reasoning_content: None,
                tool_calls: Vec::new(),
            },
            logprobs: self.logprobs.then(ChatLogprobs::default),
            finish_reason: "stop",
            token_ids: self.token_ids.then(Vec::new),
        }
    }

    fn chunk(&self, choices: Vec<ChatChunkChoice>, usage: ChunkUsage) -> Chunk {
        self.chunk_with(choices, usage, None)
    }

    fn chunk_with(
        &self,
        choices: Vec<ChatChunkChoice>,
        usage: ChunkUsage,
        prompt_token_ids: Option<Vec<u32>>,
    ) -> Chunk {
        Chunk::of(&ChatChunk {
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

impl Chunks for Answer {
    fn update(&mut self, update: Update, usage: Usage) -> Vec<Chunk> {
        let usage = self.options.chunk_usage(usage);
        let Update {
            choice: index,
            first,
            said,
            entries,
            prompt_tokens,
            mut tokens,
            finish_reason,
            ..
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
                content: (!self.calls).then(String::new),
                ..Delta::default()
            };
            let prompt = self.token_ids.then_some(prompt_tokens);
            chunks.push(self.chunk_with(vec![plain(delta)], usage, prompt));
        }
        let mut deltas: Vec<Delta> = said.into_iter().map(delta).collect();
        // Tokens whose text is still held back, or that have none, come with an empty text.
        if deltas.is_empty() && (!entries.is_empty() || !tokens.is_empty()) {
            deltas.push(delta(Said::Content(String::new())));
        }
        let mut content: Vec<ChatLogprob> = entries
            .iter()
            .map(|entry| chat_logprob(&self.model, entry))
            .collect();
        for delta in deltas {
            let logprobs = self.logprobs.then(|| ChatLogprobs {
                content: std::mem::take(&mut content),
                refusal: None,
            });
            let choice = ChatChunkChoice {
                logprobs,
                token_ids: self.token_ids.then(|| std::mem::take(&mut tokens)),
                ..plain(delta)
            };
            chunks.push(self.chunk(vec![choice], usage));
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

    fn end(&mut self, usage: Usage) -> Vec<Chunk> {
        let told = || self.chunk(Vec::new(), ChunkUsage::Told(usage));
        sse::done(self.options.include_usage.then(told))
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Chunk> {
        vec![Chunk::of(&error.body())]
    }
}

/// Adds to a message what was said.
fn add(message: &mut AssistantMessage, said: Said) {
    match said {
        Said::Content(text) => message.content.get_or_insert_default().push_str(&text),
        Said::Reasoning(text) => message.reasoning_content.get_or_insert_default().push_str(&text),
        Said::Call { id, name, .. } => message.tool_calls.push(ToolCall {
            id,
            kind: "function",
            function: CalledFunction {
                name,
                arguments: String::new(),
            },
        }),
        Said::Arguments { index, text } => {
            if let Some(call) = message.tool_calls.get_mut(index) {
                call.function.arguments.push_str(&text);
            }
        }
    }
}

fn delta(said: Said) -> Delta {
    let call = |index, id: Option<String>, name, arguments| Delta {
        tool_calls: Some([ToolCallDelta {
            index,
            kind: id.is_some().then_some("function"),
            id,
            function: CalledFunctionDelta { name, arguments },
        }]),
        ..Delta::default()
    };
    match said {
        Said::Content(text) => Delta {
            content: Some(text),
            ..Delta::default()
        },
        Said::Reasoning(text) => Delta {
            reasoning_content: Some(text),
            ..Delta::default()
        },
        Said::Call { index, id, name } => call(index, Some(id), Some(name), String::new()),
        Said::Arguments { index, text } => call(index, None, None, text),
    }
}

pub(super) fn chat_logprob(model: &Model, entry: &Entry) -> ChatLogprob {
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
