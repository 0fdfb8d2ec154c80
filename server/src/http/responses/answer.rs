//! One answer, as items and the events that tell how they come about.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::de::IgnoredAny;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};

use super::super::AppState;
use super::super::chat::chat_logprob;
use super::super::error::ApiError;
use super::super::models::unix_now;
use super::super::sse::{Chunk, Chunks};
use crate::access::Caller;
use crate::chat::assemble::Said;
use crate::chat::blocks::{Block, Blocks, Step};
use crate::chat::generation::{Generation, Update};
use crate::model::Model;
use crate::openai::messages::Message;
use crate::openai::responses::ResponsesRequest;
use crate::openai::shared::Usage;
use crate::openai::tools::PastCall;
use crate::response_store::Stored;

pub(super) struct Answer {
    model: Arc<Model>,
    request: ResponsesRequest,
    /// Where it is kept, if it is, and whose it is then.
    store: Option<(AppState, Caller)>,
    id: String,
    created: i64,
    blocks: Blocks,
    /// Identifiers of the items.
    ids: Vec<String>,
    /// Likelihoods of tokens that are told with the next text, and those of each item.
    logprobs: Vec<Value>,
    told_logprobs: Vec<Vec<Value>>,
    finish_reason: &'static str,
    sequence: u64,
}

impl Answer {
    pub(super) fn new(
        model: Arc<Model>,
        mut request: ResponsesRequest,
        store: Option<(AppState, Caller)>,
    ) -> Self {
        if store.is_none() {
            // Nobody will go on from them.
            request.items = Vec::new();
            request.messages = Vec::new();
        }
        Self {
            model,
            request,
            store,
            id: format!("resp_{}", uuid::Uuid::new_v4().simple()),
            created: unix_now(),
            blocks: Blocks::default(),
            ids: Vec::new(),
            logprobs: Vec::new(),
            told_logprobs: Vec::new(),
            finish_reason: "stop",
            sequence: 0,
        }
    }

    pub(super) async fn whole(mut self, mut generation: Generation) -> Result<Response, ApiError> {
        while let Some(update) = generation.next().await? {
            self.take(update);
        }
        let response = self.finish(generation.usage());
        Ok(Json(response).into_response())
    }

    /// Takes what was said. Returns the steps of the blocks.
    fn take(&mut self, update: Update) -> Vec<(Step, Vec<Value>)> {
        // Those of reasoning, calls and markers have no place here.
        if update.said.iter().any(|said| matches!(said, Said::Content(_))) {
            let entries = update.entries.iter();
            self.logprobs
                .extend(entries.map(|entry| json!(chat_logprob(&self.model, entry))));
        }
        let mut told = Vec::new();
        let mut steps: Vec<Step> = update
            .said
            .into_iter()
            .flat_map(|said| self.blocks.add(said))
            .collect();
        if let Some(finish_reason) = update.finish_reason {
            self.finish_reason = finish_reason;
            steps.extend(self.blocks.end());
        }
        for step in steps {
            let mut logprobs = Vec::new();
            match step {
                Step::Begun(at) => {
                    let prefix = match self.blocks.all()[at] {
                        Block::Reasoning(_) => "rs",
                        Block::Text(_) => "msg",
                        Block::Call { .. } => "fc",
                    };
                    self.ids
                        .push(format!("{prefix}_{}", uuid::Uuid::new_v4().simple()));
                    self.told_logprobs.push(Vec::new());
                }
                Step::More(at, _) | Step::Ended(at) if matches!(self.blocks.all()[at], Block::Text(_)) => {
                    logprobs = std::mem::take(&mut self.logprobs);
                    self.told_logprobs[at].extend(logprobs.iter().cloned());
                }
                _ => {}
            }
            told.push((step, logprobs));
        }
        told
    }

    /// The response as it is at last, which is then kept.
    fn finish(&mut self, usage: Usage) -> Value {
        let mut response = self.response(Some(usage));
        if let Some((app, caller)) = self.store.take() {
            let mut messages = std::mem::take(&mut self.request.messages);
            messages.push(self.message());
            let kept = to_raw_value(&response).ok().is_some_and(|response| {
                let stored = Stored {
                    id: self.id.clone(),
                    project: caller.project().map(str::to_owned),
                    response,
                    messages,
                    items: std::mem::take(&mut self.request.items),
                };
                app.responses().put(stored, Instant::now())
            });
            if !kept {
                // It is larger than all that may be kept.
                response["store"] = false.into();
            }
        }
        response
    }

    /// What was said, as a message of the conversation.
    fn message(&self) -> Message {
        let mut message = Message::plain("assistant", String::new());
        for block in self.blocks.all() {
            match block {
                Block::Reasoning(text) => message.reasoning.get_or_insert_default().push_str(text),
                Block::Text(text) => message.content.push_str(text),
                Block::Call { id, name, arguments } => {
                    let (name, arguments) = ((name.clone(), "name"), (arguments.clone(), "arguments"));
                    // A call that was cut off is none.
                    message.calls.extend(PastCall::new(id.clone(), name, arguments));
                }
            }
        }
        message
    }

    /// The response so far; with the usage it is complete.
    fn response(&self, usage: Option<Usage>) -> Value {
        let cut = self.finish_reason == "length";
        let status = match usage {
            None => "in_progress",
            Some(_) if cut => "incomplete",
            Some(_) => "completed",
        };
        let output: Vec<Value> = if usage.is_some() {
            (0..self.ids.len()).map(|at| self.item(at)).collect()
        } else {
            Vec::new()
        };
        let mut response = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": usage.filter(|_| !cut).map(|_| unix_now()),
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": usage.filter(|_| cut).map(|_| json!({"reason": "max_output_tokens"})),
            "model": self.model.id(),
            "service_tier": "default",
            "output": output,
            "store": self.store.is_some(),
            "usage": usage.map(usage_of),
        });
        if let Some(fields) = response.as_object_mut() {
            fields.extend(self.request.echo.fields());
        }
        response
    }

    /// The item of a block, complete unless the answer was cut off in it.
    fn item(&self, at: usize) -> Value {
        // A call is complete when its arguments are.
        let whole = |arguments: &str| serde_json::from_str::<IgnoredAny>(arguments).is_ok();
        let complete = matches!(&self.blocks.all()[at], Block::Call { arguments, .. } if whole(arguments));
        let cut = self.finish_reason == "length" && at + 1 == self.ids.len() && !complete;
        let status = if cut { "incomplete" } else { "completed" };
        let (mut item, part) = (self.begun_item(at, status), self.part(at));
        match &self.blocks.all()[at] {
            Block::Call { arguments, .. } => item["arguments"] = arguments.as_str().into(),
            Block::Text(_) | Block::Reasoning(_) => item["content"] = json!([part]),
        }
        item
    }

    /// The item of a block without what is in it.
    fn begun_item(&self, at: usize, status: &str) -> Value {
        let id = &self.ids[at];
        match &self.blocks.all()[at] {
            Block::Reasoning(_) => {
                json!({"id": id, "type": "reasoning", "summary": [], "content": [], "status": status})
            }
            Block::Text(_) => {
                json!({"id": id, "type": "message", "role": "assistant", "status": status, "content": []})
            }
            Block::Call { id: call, name, .. } => json!({
                "id": id, "type": "function_call", "call_id": call, "name": name, "arguments": "", "status": status
            }),
        }
    }

    /// The part that a block's item has.
    fn part(&self, at: usize) -> Value {
        match &self.blocks.all()[at] {
            Block::Reasoning(text) => json!({"type": "reasoning_text", "text": text}),
            Block::Text(text) => {
                json!({"type": "output_text", "text": text, "annotations": [], "logprobs": self.told_logprobs[at]})
            }
            Block::Call { .. } => Value::Null,
        }
    }

    /// An event, whose data begin with its name and its number.
    fn event(&mut self, name: &'static str, fields: Value) -> Chunk {
        let mut data = json!({"type": name, "sequence_number": self.sequence});
        self.sequence += 1;
        if let (Some(data), Value::Object(fields)) = (data.as_object_mut(), fields) {
            data.extend(fields);
        }
        Chunk::named(name, &data)
    }

    /// An event of an item, or of the only part of it.
    fn item_event(&mut self, name: &'static str, at: usize, fields: Value) -> Chunk {
        let mut all = json!({"item_id": self.ids[at], "output_index": at});
        if !matches!(self.blocks.all()[at], Block::Call { .. }) {
            all["content_index"] = 0.into();
        }
        if let (Some(all), Value::Object(fields)) = (all.as_object_mut(), fields) {
            all.extend(fields);
        }
        self.event(name, all)
    }

    fn begun(&mut self, at: usize) -> Vec<Chunk> {
        let item = self.begun_item(at, "in_progress");
        let mut chunks = vec![self.event(
            "response.output_item.added",
            json!({"output_index": at, "item": item}),
        )];
        let part = match self.blocks.all()[at] {
            Block::Call { .. } => return chunks,
            Block::Reasoning(_) => json!({"type": "reasoning_text", "text": ""}),
            Block::Text(_) => json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []}),
        };
        chunks.push(self.item_event("response.content_part.added", at, json!({"part": part})));
        chunks
    }

    fn more(&mut self, at: usize, text: &str, logprobs: &[Value]) -> Chunk {
        let (name, fields) = match self.blocks.all()[at] {
            Block::Reasoning(_) => ("response.reasoning_text.delta", json!({"delta": text})),
            Block::Text(_) => (
                "response.output_text.delta",
                json!({"delta": text, "logprobs": logprobs}),
            ),
            Block::Call { .. } => ("response.function_call_arguments.delta", json!({"delta": text})),
        };
        self.item_event(name, at, fields)
    }

    fn ended(&mut self, at: usize) -> Vec<Chunk> {
        let (name, fields) = match &self.blocks.all()[at] {
            Block::Reasoning(text) => ("response.reasoning_text.done", json!({"text": text})),
            Block::Text(text) => {
                let logprobs = &self.told_logprobs[at];
                (
                    "response.output_text.done",
                    json!({"text": text, "logprobs": logprobs}),
                )
            }
            Block::Call { name, arguments, .. } => {
                let fields = json!({"name": name, "arguments": arguments});
                ("response.function_call_arguments.done", fields)
            }
        };
        let mut chunks = vec![self.item_event(name, at, fields)];
        let part = self.part(at);
        if !part.is_null() {
            chunks.push(self.item_event("response.content_part.done", at, json!({"part": part})));
        }
        let item = self.item(at);
        chunks.push(self.event(
            "response.output_item.done",
            json!({"output_index": at, "item": item}),
        ));
        chunks
    }
}

impl Chunks for Answer {
    fn update(&mut self, update: Update, _usage: Usage) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        if update.first {
            for name in ["response.created", "response.in_progress"] {
                let response = self.response(None);
                chunks.push(self.event(name, json!({"response": response})));
            }
        }
        for (step, logprobs) in self.take(update) {
            match step {
                Step::Begun(at) => chunks.extend(self.begun(at)),
                Step::More(at, text) => chunks.push(self.more(at, &text, &logprobs)),
                Step::Ended(at) => chunks.extend(self.ended(at)),
            }
        }
        chunks
    }

    fn end(&mut self, usage: Usage) -> Vec<Chunk> {
        let name = if self.finish_reason == "length" {
            "response.incomplete"
        } else {
            "response.completed"
        };
        let response = self.finish(usage);
        vec![self.event(name, json!({"response": response}))]
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Chunk> {
        let fields = json!({"code": error.code, "message": error.message, "param": error.param});
        vec![self.event("error", fields)]
    }
}

fn usage_of(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.prompt_tokens_details.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.completion_tokens_details.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    })
}
