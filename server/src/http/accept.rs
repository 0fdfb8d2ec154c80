//! The accept loop: HTTP/1.1 and HTTP/2 with limits on connections, heads and patience, and an orderly end.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::response::IntoResponse as _;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tower::ServiceExt as _;

use super::AppState;
use super::error::ApiError;
use super::timeout_io::TimeoutIo;
use crate::metrics::Rejection;
use crate::shutdown::Phase;

/// Streams of one HTTP/2 connection.
const HTTP2_STREAMS_MAX: u32 = 128;
/// hyper refuses a head with an answer of its own, which has no body. Up to so many times our limit it lets heads
/// through to [`super::head`], which tells what is wrong.
const HEAD_SLACK: u32 = 2;
/// Open connections to administration.
const ADMIN_CONNECTIONS_MAX: usize = 64;
/// How often an HTTP/2 peer must show that it is there.
const HTTP2_PING: Duration = Duration::from_secs(20);
/// A rest after `accept` failed: it does so when the process is out of files, and would at once again.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// Connections over the limit that are told so at one time; further ones are closed without a word.
const REFUSALS_MAX: usize = 64;
/// How long telling one may take.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// After the end was told to running answers, the time they get to pass it on.
const CLOSING_GRACE: Duration = Duration::from_secs(1);

/// Serves connections until the process is to end and the last request is answered, or its time is over.
pub async fn serve(listener: TcpListener, router: Router, app: AppState) {
    let permits = Arc::new(Semaphore::new(
        app.http.connections_max.min(Semaphore::MAX_PERMITS),
    ));
    let mut connections = JoinSet::new();
    let mut draining = pin!(app.shutdown.reached(Phase::Draining));
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => admit(stream, &permits, &router, &app, &mut connections),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = &mut draining => break,
        }
    }
    drain(&listener, &permits, &router, &app, connections).await;
}

/// Serves administration until the last running request of the other interface has ended.
pub async fn serve_admin(listener: TcpListener, router: Router, app: AppState) {
    let permits = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let mut closing = pin!(app.shutdown.reached(Phase::Closing));
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => admit(stream, &permits, &router, &app, &mut connections),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = &mut closing => break,
        }
    }
    end(connections).await;
}

/// Lets running requests finish. New connections are still taken, so that their requests get a proper refusal.
async fn drain(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
    router: &Router,
    app: &AppState,
    mut connections: JoinSet<()>,
) {
    tracing::info!(
        connections = connections.len(),
        seconds = app.http.drain_timeout.as_secs(),
        "draining"
    );
    let mut time_over = pin!(tokio::time::sleep(app.http.drain_timeout));
    let mut closing = pin!(app.shutdown.reached(Phase::Closing));
    while !connections.is_empty() {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => admit(stream, permits, router, app, &mut connections),
            _ = connections.join_next() => {}
            () = &mut time_over => break,
            () = &mut closing => break,
        }
    }
    app.shutdown.advance(Phase::Closing);
    end(connections).await;
}

/// Gives connections the time to pass the last answers on.
async fn end(mut connections: JoinSet<()>) {
    let rest = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(CLOSING_GRACE, rest).await.is_err() {
        tracing::warn!(connections = connections.len(), "connections were cut");
    }
    connections.shutdown().await;
}

fn admit(
    stream: TcpStream,
    permits: &Arc<Semaphore>,
    router: &Router,
    app: &AppState,
    connections: &mut JoinSet<()>,
) {
    let Ok(permit) = Arc::clone(permits).try_acquire_owned() else {
        app.metrics.reject(Rejection::Connections);
        if connections.len() < app.http.connections_max + REFUSALS_MAX {
            connections.spawn(async move {
                // Whatever goes wrong ends the connection, which is what it is for.
                let _ = tokio::time::timeout(REFUSAL_TIME, refuse(stream)).await;
            });
        }
        return;
    };
    let (router, app) = (router.clone(), Arc::clone(app));
    connections.spawn(async move {
        let _permit = permit;
        let _open = app.metrics.connection();
        connection(stream, router, &app).await;
    });
}

/// Answers before anything was read, then reads what still comes: closing with unread bytes would make the kernel
/// reset the connection, and the answer with it.
async fn refuse(mut stream: TcpStream) -> std::io::Result<()> {
    let error = ApiError::overloaded(1);
    let body = serde_json::to_string(&error.body()).unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {}\r\nRetry-After: \
         1\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    let mut rest = [0; 4096];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

async fn connection(stream: TcpStream, router: Router, app: &AppState) {
    // Tokens are small packets that should leave at once. If the option fails the connection still works.
    let _ = stream.set_nodelay(true);
    // Until a request was understood, what came may have been refused with more behind it.
    let unread = Arc::new(AtomicBool::new(true));
    let io = TokioIo::new(TimeoutIo::new(
        stream,
        app.http.write_timeout,
        Arc::clone(&unread),
    ));
    let spoke = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&spoke);
    let service = service_fn(move |request: Request<Incoming>| {
        heard.store(true, Ordering::Relaxed);
        let (router, unread) = (router.clone(), Arc::clone(&unread));
        async move { Ok::<_, Infallible>(answer(router, request, unread).await) }
    });
    let builder = builder(app);
    let mut connection = pin!(builder.serve_connection(io, service));
    let already_draining = app.shutdown.phase() > Phase::Running;
    let mut draining = pin!(app.shutdown.reached(Phase::Draining));
    let mut told = already_draining;
    // Covers a connection that says nothing, or too little to tell which protocol it speaks.
    let mut patience = pin!(tokio::time::sleep(app.http.header_timeout));
    let mut waited = false;
    loop {
        tokio::select! {
            result = &mut connection => {
                if result.is_err() {
                    // The error may quote what was received.
                    tracing::debug!("a connection ended with an error");
                }
                return;
            }
            () = &mut draining, if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
            () = &mut patience, if !waited => {
                waited = true;
                if !spoke.load(Ordering::Relaxed) {
                    tracing::debug!("a connection sent no request in time");
                    return;
                }
            }
        }
    }
}

async fn answer(
    router: Router,
    request: Request<Incoming>,
    unread: Arc<AtomicBool>,
) -> axum::response::Response {
    unread.store(!request.body().is_end_stream(), Ordering::Relaxed);
    let request = request.map(|body| Body::new(Watched { body, unread }));
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
    .into_response()
}

/// A request's body that notes when it was read to its end.
struct Watched {
    body: Incoming,
    unread: Arc<AtomicBool>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let poll = Pin::new(&mut self.body).poll_frame(context);
        if matches!(poll, Poll::Ready(None)) || self.body.is_end_stream() {
            self.unread.store(false, Ordering::Relaxed);
        }
        poll
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn builder(app: &AppState) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    let head_bytes_max = app.http.header_bytes_max * HEAD_SLACK;
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(app.http.header_timeout)
        .max_buf_size(head_bytes_max as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(head_bytes_max)
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .keep_alive_interval(HTTP2_PING)
        .keep_alive_timeout(HTTP2_PING);
    builder
}
