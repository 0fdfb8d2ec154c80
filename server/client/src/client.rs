//! One request at a time: a document, or an answer that is streamed.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, RETRY_AFTER, SERVER};
use hyper::{Method, Response};
use tokio::time::timeout;

use crate::connection::{Connection, next, whole};
use crate::failure::{Failure, ServerError};
use crate::limits::{ERROR_BYTES_MAX, Patience, STREAM_BYTES_MAX};
use crate::sse::{Events, TooLong};
use crate::target::{Accept, Target};

/// Asks one server, each time on a connection of its own, which ends when the answer has come or is not waited for any more.
#[derive(Clone)]
pub struct Client {
    target: Target,
    patience: Patience,
    agent: &'static str,
}

/// An answer that came as a whole.
#[derive(Debug)]
pub struct Document {
    pub status: u16,
    /// The software, as it names itself.
    pub server: Option<String>,
    /// When to ask again, where the server says so in seconds.
    pub retry_after: Option<Duration>,
    pub body: Vec<u8>,
}

/// How a stream began.
#[derive(Debug)]
pub enum Begun {
    /// Its events were given.
    Streamed,
    /// It did not: an error status, and what the server said.
    Refused { status: u16, error: ServerError },
}

impl Client {
    /// `agent` names the program to the server.
    pub fn new(target: Target, patience: Patience, agent: &'static str) -> Self {
        Self {
            target,
            patience,
            agent,
        }
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Asks for a document of at most so many bytes.
    ///
    /// # Errors
    /// Why none came. A status that is no success is none.
    pub async fn get(&self, path: &str, accept: Accept, bytes_max: usize) -> Result<Document, Failure> {
        let read = async |body| whole(body, bytes_max, self.patience.idle).await;
        self.document(Method::GET, path, Bytes::new(), accept, read).await
    }

    /// Posts JSON for the sake of the status: a body that has more than so many bytes, breaks off or takes half of the time for
    /// a request is left out.
    ///
    /// # Errors
    /// Why no status came.
    pub async fn post(&self, path: &str, body: Bytes, bytes_max: usize) -> Result<Document, Failure> {
        let read = async |body| {
            let reading = timeout(
                self.patience.request / 2,
                whole(body, bytes_max, self.patience.idle),
            );
            Ok(reading.await.unwrap_or(Ok(Vec::new())).unwrap_or_default())
        };
        self.document(Method::POST, path, body, Accept::Json, read).await
    }

    async fn document(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        accept: Accept,
        read: impl AsyncFnOnce(Incoming) -> Result<Vec<u8>, Failure>,
    ) -> Result<Document, Failure> {
        let asking = async {
            let mut connection = self.open().await?;
            let request = self.target.request(self.agent, method, path, body, accept)?;
            connection
                .drive(async |mut sender| {
                    let response = sender.send(request, self.patience.idle).await?;
                    let seconds = header(&response, &RETRY_AFTER).and_then(|text| text.parse().ok());
                    Ok(Document {
                        status: response.status().as_u16(),
                        server: header(&response, &SERVER).map(str::to_owned),
                        retry_after: seconds.map(Duration::from_secs),
                        body: read(response.into_body()).await?,
                    })
                })
                .await
        };
        timeout(self.patience.request, asking)
            .await
            .unwrap_or(Err(Failure::RequestTimeout))
    }

    /// Posts JSON whose answer is a stream, and gives the data of each event but the last, `[DONE]`. Dropping this ends the
    /// connection, which tells the server that nobody waits.
    ///
    /// # Errors
    /// Why the stream ended before its end, or what `on_event` returned first.
    pub async fn stream<E: From<Failure> + From<TooLong>>(
        &self,
        path: &str,
        body: Bytes,
        on_event: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Begun, E> {
        let streaming = async {
            let mut connection = self.open().await?;
            let request = self
                .target
                .request(self.agent, Method::POST, path, body, Accept::Events)?;
            connection
                .drive(async |mut sender| {
                    let response = sender.send(request, self.patience.idle).await?;
                    self.answer(response, on_event).await
                })
                .await
        };
        timeout(self.patience.request, streaming)
            .await
            .unwrap_or(Err(Failure::RequestTimeout.into()))
    }

    async fn open(&self) -> Result<Connection, Failure> {
        let addresses: Vec<SocketAddr> = self
            .target
            .addresses(&self.patience)
            .await
            .map_err(|error| Failure::Connect(error.to_string()))?;
        timeout(
            self.patience.connect,
            Connection::open(&self.target, &addresses, |_| ()),
        )
        .await
        .unwrap_or(Err(Failure::ConnectTimeout))
    }

    async fn answer<E: From<Failure> + From<TooLong>>(
        &self,
        response: Response<Incoming>,
        on_event: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Begun, E> {
        let (status, idle) = (response.status(), self.patience.idle);
        if !status.is_success() {
            // The status is the reason, whether or not its body can be read.
            let body = whole(response.into_body(), ERROR_BYTES_MAX, idle)
                .await
                .unwrap_or_default();
            return Ok(Begun::Refused {
                status: status.as_u16(),
                error: ServerError::in_body(&body),
            });
        }
        if header(&response, &CONTENT_TYPE).is_some_and(|kind| kind.starts_with("application/json")) {
            return Err(Failure::NotAStream.into());
        }
        self.events(response.into_body(), on_event).await?;
        Ok(Begun::Streamed)
    }

    async fn events<E: From<Failure> + From<TooLong>>(
        &self,
        mut body: Incoming,
        mut on_event: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut events, mut bytes, mut done) = (Events::default(), 0_u64, false);
        while let Some(part) = next(&mut body, self.patience.idle).await? {
            bytes += part.len() as u64;
            if bytes > STREAM_BYTES_MAX {
                return Err(Failure::TooLong.into());
            }
            events.push(&part, |data| {
                done |= data.trim_ascii() == b"[DONE]";
                if done {
                    return Ok(());
                }
                on_event(data)
            })?;
            if done {
                return Ok(());
            }
        }
        // A server may leave `[DONE]` out; whether the answer was over is known to who reads it.
        if events.is_within() {
            return Err(Failure::ClosedEarly.into());
        }
        Ok(())
    }
}

fn header<'a>(response: &'a Response<Incoming>, name: &HeaderName) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}
