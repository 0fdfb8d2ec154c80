//! Server-sent events: an answer told piece by piece, as OpenAI's clients read it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::error::ApiError;
use crate::chat::generation::{Generation, Update};
use crate::openai::shared::{ChunkUsage, StreamOptions, Usage};

/// Turns updates into the chunks of an endpoint.
pub trait Chunks: Send + 'static {
    /// The chunks for one update, as JSON. `usage` is as told so far, if chunks are to carry it.
    fn update(&mut self, update: Update, usage: ChunkUsage) -> Vec<String>;
    /// The chunk without choices that carries the usage.
    fn usage(&mut self, usage: Usage) -> String;
}

struct Streaming<C> {
    generation: Generation,
    chunks: C,
    options: StreamOptions,
    queue: VecDeque<String>,
    ended: bool,
}

/// Streams a generation: its chunks, the usage if asked for, and `[DONE]`; or an error object, and the end.
pub fn respond<C: Chunks>(
    generation: Generation,
    chunks: C,
    options: StreamOptions,
    keep_alive: Duration,
) -> Response {
    let streaming = Streaming {
        generation,
        chunks,
        options,
        queue: VecDeque::new(),
        ended: false,
    };
    let events = futures::stream::unfold(streaming, |mut streaming| async move {
        let next = streaming.next().await?;
        Some((Ok::<_, Infallible>(Event::default().data(next)), streaming))
    });
    let keep_alive = KeepAlive::new().interval(keep_alive).text("keep-alive");
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // Proxies that collect answers before they pass them on would undo the streaming.
    let no_buffering = HeaderName::from_static("x-accel-buffering");
    response
        .headers_mut()
        .insert(no_buffering, HeaderValue::from_static("no"));
    response
}

impl<C: Chunks> Streaming<C> {
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(next) = self.queue.pop_front() {
                return Some(next);
            }
            if self.ended {
                return None;
            }
            match self.generation.next().await {
                Ok(Some(update)) => {
                    let usage = self.chunk_usage();
                    self.queue.extend(self.chunks.update(update, usage));
                }
                Ok(None) => {
                    if self.options.include_usage {
                        self.queue.push_back(self.chunks.usage(self.generation.usage()));
                    }
                    self.queue.push_back("[DONE]".to_owned());
                    self.ended = true;
                }
                Err(error) => {
                    tracing::warn!(code = error.code, "a stream ended early");
                    self.queue.push_back(encode(&error.body()));
                    self.ended = true;
                }
            }
        }
    }

    fn chunk_usage(&self) -> ChunkUsage {
        if self.options.continuous_usage {
            ChunkUsage::Told(self.generation.usage())
        } else if self.options.include_usage {
            ChunkUsage::Later
        } else {
            ChunkUsage::Absent
        }
    }
}

/// A chunk as JSON.
pub fn encode<T: Serialize>(chunk: &T) -> String {
    serde_json::to_string(chunk).unwrap_or_else(|error| {
        tracing::error!(%error, "a chunk cannot be written as JSON. This is a bug.");
        serde_json::to_string(&ApiError::internal().body()).unwrap_or_default()
    })
}
