//! Sends requests and takes their answers: streams event by event with the time of each, or whole documents.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Response, StatusCode};
use rempart_client::{
    Accept, Document, ERROR_BYTES_MAX, Events, Failure as Http, Patience, STREAM_BYTES_MAX, Sender,
    ServerError, Target, next, whole,
};
use tokio::time::timeout;

use crate::chunk::{self, Usage};
use crate::clock::Clock;
use crate::connection::{Stamp, Stamped};
use crate::failure::Failure;
use crate::limits::{BODY_BYTES_MAX, EVENTS_MORE, EVENTS_PER_TOKEN_MAX, LIST_BYTES_MAX};
use crate::record::Seen;

/// How long a stream may go on behind its last event before its connection is given up.
const END_WAIT: Duration = Duration::from_millis(50);
const AGENT: &str = concat!("rempart-bench/", env!("CARGO_PKG_VERSION"));

/// A request, ready to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub path: String,
    pub body: Bytes,
    /// Whether its answer is a stream of events.
    pub stream: bool,
    /// Tokens that it asks for, which limits how many events its answer may have.
    pub output_tokens: u32,
}

/// Opens the connections to one server, and keeps them where they can be used again.
pub(crate) struct Client {
    target: Target,
    addresses: Vec<SocketAddr>,
    patience: Patience,
    clock: Clock,
    idle: Mutex<Vec<Stamped>>,
}

/// A connection that was open when it was taken, and was not when it was used.
struct Stale;

impl Client {
    /// Looks the server's name up, once.
    ///
    /// # Errors
    /// Where it has no address.
    pub(crate) async fn new(target: Target, patience: Patience, clock: Clock) -> anyhow::Result<Self> {
        let addresses = target.addresses(&patience).await?;
        Ok(Self {
            target,
            addresses,
            patience,
            clock,
            idle: Mutex::new(Vec::new()),
        })
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// Sends a request, and takes down what arrives until it is over. Dropping this ends its connection.
    ///
    /// # Errors
    /// Why it failed; what arrived before is in `seen`.
    pub(crate) async fn send(&self, outgoing: &Outgoing, seen: &mut Seen) -> Result<(), Failure> {
        let whole = self.patience.request;
        timeout(whole, self.attempt(outgoing, seen))
            .await
            .unwrap_or(Err(Http::RequestTimeout.into()))
    }

    async fn attempt(&self, outgoing: &Outgoing, seen: &mut Seen) -> Result<(), Failure> {
        // A server may end a connection that nobody uses, and that says nothing about this request.
        while let Some(connection) = self.take_idle() {
            if let Ok(ended) = self.exchange(connection, outgoing, seen).await {
                return ended;
            }
        }
        let connection = self.open().await?;
        match self.exchange(connection, outgoing, seen).await {
            Ok(ended) => ended,
            Err(Stale) => Err(Http::Lost("before the answer began".to_owned()).into()),
        }
    }

    async fn open(&self) -> Result<Stamped, Failure> {
        let opening = Stamped::open(&self.target, &self.addresses, self.clock);
        let opened = timeout(self.patience.connect, opening)
            .await
            .unwrap_or(Err(Http::ConnectTimeout));
        Ok(opened?)
    }

    fn take_idle(&self) -> Option<Stamped> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn put_idle(&self, mut connection: Stamped) {
        connection.reused = true;
        if connection.is_open() {
            self.idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(connection);
        }
    }

    async fn exchange(
        &self,
        mut connection: Stamped,
        outgoing: &Outgoing,
        seen: &mut Seen,
    ) -> Result<Result<(), Failure>, Stale> {
        let reused = connection.reused;
        let ended = connection
            .drive(async |sender, stamp| {
                let response = match self.head(sender, outgoing).await {
                    Err(Http::Lost(_)) if reused => return Err(Stale),
                    other => other,
                };
                Ok(match response {
                    Ok(response) => self.answer(response, outgoing, &stamp, seen).await,
                    Err(failure) => Err(failure.into()),
                })
            })
            .await?;
        if ended.is_ok() {
            // What a server sends behind an answer, such as the last chunk, is taken before the next request.
            let ready = connection.drive(async |mut sender, _| sender.is_ready().await);
            if timeout(END_WAIT, ready).await.is_ok_and(|open| open) {
                self.put_idle(connection);
            }
        }
        Ok(ended)
    }

    async fn head(&self, mut sender: Sender<'_>, outgoing: &Outgoing) -> Result<Response<Incoming>, Http> {
        let accept = if outgoing.stream {
            Accept::Events
        } else {
            Accept::Json
        };
        let (path, body) = (&outgoing.path, outgoing.body.clone());
        let request = self.target.request(AGENT, Method::POST, path, body, accept)?;
        sender.send(request, self.patience.idle).await
    }

    async fn answer(
        &self,
        response: Response<Incoming>,
        outgoing: &Outgoing,
        stamp: &Stamp,
        seen: &mut Seen,
    ) -> Result<(), Failure> {
        let status = response.status();
        if status != StatusCode::OK {
            // The status is the reason, whether or not its body can be read.
            let body = whole(response.into_body(), ERROR_BYTES_MAX, self.patience.idle)
                .await
                .unwrap_or_default();
            return Err(Failure::Http(Http::Status {
                status: status.as_u16(),
                code: ServerError::in_body(&body).code,
            }));
        }
        if !outgoing.stream {
            let body = whole(response.into_body(), BODY_BYTES_MAX, self.patience.idle).await?;
            let usage = document_usage(&body).ok_or(Http::BadBody)?;
            seen.whole(usage, stamp.last());
            return Ok(());
        }
        let kind = response.headers().get(CONTENT_TYPE);
        if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json")) {
            return Err(Http::NotAStream.into());
        }
        self.events(response.into_body(), outgoing.output_tokens, stamp, seen)
            .await
    }

    async fn events(
        &self,
        mut body: Incoming,
        tokens: u32,
        stamp: &Stamp,
        seen: &mut Seen,
    ) -> Result<(), Failure> {
        let mut state = Stream::new(tokens);
        while let Some(bytes) = next(&mut body, self.patience.idle).await? {
            state.bytes += bytes.len() as u64;
            if state.bytes > STREAM_BYTES_MAX {
                return Err(Http::TooLong.into());
            }
            state.take(&bytes, stamp, seen)?;
            if state.done {
                // Where the server ends the body, too, which is at once or never, the connection can be used again; and one that is
                // closed then is not taken for a client that went away.
                let _ended = next(&mut body, END_WAIT).await;
                break;
            }
        }
        state.end(seen)
    }

    /// Asks for a document on a connection of its own, outside of a measurement.
    ///
    /// # Errors
    /// Why none came.
    pub(crate) async fn get(&self, path: &str) -> Result<Document, Http> {
        rempart_client::Client::new(self.target.clone(), self.patience, AGENT)
            .get(path, Accept::Json, LIST_BYTES_MAX)
            .await
    }
}

/// An answer that is being streamed.
struct Stream {
    events: Events,
    bytes: u64,
    /// Events that may still come.
    left: usize,
    finished: bool,
    done: bool,
}

impl Stream {
    fn new(tokens: u32) -> Self {
        Self {
            events: Events::default(),
            bytes: 0,
            left: tokens as usize * EVENTS_PER_TOKEN_MAX + EVENTS_MORE,
            finished: false,
            done: false,
        }
    }

    fn take(&mut self, bytes: &[u8], stamp: &Stamp, seen: &mut Seen) -> Result<(), Failure> {
        let Self {
            events,
            left,
            finished,
            done,
            ..
        } = self;
        events.push(bytes, |data| {
            if *done {
                return Ok(());
            }
            if data.trim_ascii() == b"[DONE]" {
                *done = true;
                return Ok(());
            }
            *left = left.checked_sub(1).ok_or(Failure::TooManyEvents)?;
            let brought = chunk::read(data)?;
            *finished |= brought.finished;
            seen.event(brought, stamp.last());
            Ok(())
        })
    }

    /// What the end of the stream means.
    fn end(&self, seen: &Seen) -> Result<(), Failure> {
        if !self.done && (!self.finished || self.events.is_within()) {
            return Err(Http::ClosedEarly.into());
        }
        if seen.first.is_none() {
            return Err(Failure::NoToken);
        }
        Ok(())
    }
}

/// The counts of an answer that is one document: of embeddings or of a ranking, which hold at least one entry.
fn document_usage(body: &[u8]) -> Option<Usage> {
    use serde::de::IgnoredAny;
    #[derive(serde::Deserialize)]
    struct Body {
        data: Option<Vec<IgnoredAny>>,
        results: Option<Vec<IgnoredAny>>,
        usage: Option<Usage>,
    }
    let body: Body = serde_json::from_slice(body).ok()?;
    let entries = body.data.or(body.results)?;
    let mut usage = body.usage.unwrap_or_default();
    usage.prompt_tokens = usage.prompt_tokens.or(usage.total_tokens);
    usage.completion_tokens = Some(0);
    (!entries.is_empty()).then_some(usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_counted() {
        let embeddings =
            br#"{"data":[{"embedding":[0.1,0.2]}],"usage":{"prompt_tokens":7,"total_tokens":7}}"#;
        assert_eq!(document_usage(embeddings).unwrap().prompt_tokens, Some(7));
        let ranking = br#"{"results":[{"index":0,"relevance_score":0.5}],"usage":{"total_tokens":9}}"#;
        assert_eq!(document_usage(ranking).unwrap().prompt_tokens, Some(9));
        for bad in ["{}", "[]", "{\"data\":[]}", "garbage", "{\"data\":[{}]"] {
            assert_eq!(document_usage(bad.as_bytes()), None, "{bad}");
        }
    }
}
