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
use crate::openai::shared::Usage;

/// One event: its data as JSON, and its name where clients go by names.
pub struct Chunk {
    pub event: Option<&'static str>,
    pub data: String,
}

impl Chunk {
    /// An event without a name.
    pub fn of<T: Serialize>(data: &T) -> Self {
        Self {
            event: None,
            data: encode(data),
        }
    }

    /// An event with a name.
    pub fn named<T: Serialize>(event: &'static str, data: &T) -> Self {
        Self {
            event: Some(event),
            ..Self::of(data)
        }
    }
}

/// Turns updates into the events of an endpoint. `usage` is always what was used so far.
pub trait Chunks: Send + 'static {
    /// The events for one update.
    fn update(&mut self, update: Update, usage: Usage) -> Vec<Chunk>;
    /// The events behind the last update.
    fn end(&mut self, usage: Usage) -> Vec<Chunk>;
    /// The events that end a stream early.
    fn fail(&mut self, error: &ApiError) -> Vec<Chunk>;
}

struct Streaming<C> {
    generation: Generation,
    chunks: C,
    queue: VecDeque<Chunk>,
    ended: bool,
}

/// Streams a generation to its end, or to the error that ends it.
pub fn respond<C: Chunks>(generation: Generation, chunks: C, keep_alive: Duration) -> Response {
    let streaming = Streaming {
        generation,
        chunks,
        queue: VecDeque::new(),
        ended: false,
    };
    let events = futures::stream::unfold(streaming, |mut streaming| async move {
        let Chunk { event, data } = streaming.next().await?;
        let named = event.map_or_else(Event::default, |name| Event::default().event(name));
        Some((Ok::<_, Infallible>(named.data(data)), streaming))
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
    async fn next(&mut self) -> Option<Chunk> {
        loop {
            if let Some(next) = self.queue.pop_front() {
                return Some(next);
            }
            if self.ended {
                return None;
            }
            let next = self.generation.next().await;
            let usage = self.generation.usage();
            let chunks = match next {
                Ok(Some(update)) => self.chunks.update(update, usage),
                Ok(None) => {
                    self.ended = true;
                    self.chunks.end(usage)
                }
                Err(error) => {
                    tracing::warn!(code = error.code, "a stream ended early");
                    self.ended = true;
                    self.chunks.fail(&error)
                }
            };
            self.queue.extend(chunks);
        }
    }
}

/// The end of a stream of OpenAI's older endpoints: the usage if asked for, and a mark.
pub fn done(usage: Option<Chunk>) -> Vec<Chunk> {
    let mark = Chunk {
        event: None,
        data: "[DONE]".to_owned(),
    };
    usage.into_iter().chain([mark]).collect()
}

/// A chunk as JSON.
pub fn encode<T: Serialize>(chunk: &T) -> String {
    serde_json::to_string(chunk).unwrap_or_else(|error| {
        tracing::error!(%error, "a chunk cannot be written as JSON. This is a bug.");
        serde_json::to_string(&ApiError::internal().body()).unwrap_or_default()
    })
}
