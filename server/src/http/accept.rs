//! The accept loop: HTTP/1.1 and HTTP/2 with limits on connections, heads and patience, and an orderly end.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use super::AppState;
use super::addresses::Addresses;
use super::error::ApiError;
use super::lanes::Lanes;
use super::listen::waiting_max;
use super::timeout_io::TimeoutIo;
use super::tls::Tls;
use super::unread;
use crate::certificate::ClientCertificate;
use crate::metrics::Rejection;
use crate::shutdown::Phase;

/// Streams of one HTTP/2 connection.
const HTTP2_STREAMS_MAX: u32 = 128;
/// hyper refuses a head with an answer of its own, which has no body. Up to so many times our limit it lets heads
/// through to [`super::head`], which tells what is wrong.
const HEAD_SLACK: u32 = 2;
/// Open connections to administration.
pub(crate) const ADMIN_CONNECTIONS_MAX: usize = 64;
/// How often an HTTP/2 peer must show that it is there.
const HTTP2_PING: Duration = Duration::from_secs(20);
/// A rest after `accept` failed: it does so when the process is out of files, and would at once again.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// Connections over the limit that are told so at one time; further ones are closed without a word.
pub(super) const REFUSALS_MAX: usize = 64;
/// How long telling one may take.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// What a connection that begins while the process ends has for its first request.
const LATE_PATIENCE: Duration = Duration::from_secs(3);
/// After the end was told to running answers, the time they get to pass it on.
const CLOSING_GRACE: Duration = Duration::from_secs(1);

/// Serves connections until the process is to end and the last request is answered, or its time is over.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Tls>,
    router: Router,
    app: AppState,
    lanes: Arc<Lanes>,
) {
    let shutdown = app.shutdown.clone();
    app.metrics.connections_limit(app.http.connections_max);
    let door = Door::new(app.http.connections_max, tls, router, app, lanes);
    let mut connections = JoinSet::new();
    door.open(&listener, &mut connections, shutdown.reached(Phase::Draining))
        .await;
    drain(listener, &door, connections).await;
}

/// Serves administration until the last running request of the other interface has ended.
pub async fn serve_admin(listener: TcpListener, router: Router, app: AppState, lanes: Arc<Lanes>) {
    let shutdown = app.shutdown.clone();
    let door = Door::new(ADMIN_CONNECTIONS_MAX, None, router, app, lanes);
    let mut connections = JoinSet::new();
    door.open(&listener, &mut connections, shutdown.reached(Phase::Closing))
        .await;
    door.close(listener, &mut connections);
    end(connections).await;
}

/// Lets running requests finish. New connections are still taken, so that their requests get a proper refusal.
async fn drain(listener: TcpListener, door: &Arc<Door>, mut connections: JoinSet<()>) {
    let app = &door.app;
    tracing::info!(
        connections = connections.len(),
        seconds = app.http.drain_timeout.as_secs(),
        "draining"
    );
    let mut time_over = pin!(tokio::time::sleep(app.http.drain_timeout));
    let mut closing = pin!(app.shutdown.reached(Phase::Closing));
    while !connections.is_empty() {
        tokio::select! {
            Ok((stream, peer)) = listener.accept() => door.admit(stream, peer.ip(), &mut connections),
            _ = connections.join_next() => {}
            () = &mut time_over => break,
            () = &mut closing => break,
        }
    }
    app.shutdown.advance(Phase::Closing);
    door.close(listener, &mut connections);
    end(connections).await;
}

/// Gives connections the time to pass the last answers on.
async fn end(mut connections: JoinSet<()>) {
    let rest = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(CLOSING_GRACE, rest).await.is_err() {
        // Running answers were told that they end; most of these are idle, or are being closed.
        tracing::info!(
            connections = connections.len(),
            "connections that were still open are closed"
        );
    }
    connections.shutdown().await;
}

/// What the connections of a listener share, and what they pass before they are heard.
struct Door {
    router: Router,
    /// Instead, once the end is told to running answers.
    ended: Router,
    app: AppState,
    tls: Option<Tls>,
    connections_max: usize,
    places: Arc<Semaphore>,
    addresses: Addresses,
    refusals: Arc<Semaphore>,
    lanes: Arc<Lanes>,
}

impl Door {
    fn new(
        connections_max: usize,
        tls: Option<Tls>,
        router: Router,
        app: AppState,
        lanes: Arc<Lanes>,
    ) -> Arc<Self> {
        Arc::new(Self {
            router,
            ended: super::ended(Arc::clone(&app)),
            tls,
            lanes,
            connections_max,
            places: Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS))),
            addresses: Addresses::new(app.http.connections_per_address_max),
            refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
            app,
        })
    }

    /// Takes connections until then.
    async fn open(
        self: &Arc<Self>,
        listener: &TcpListener,
        connections: &mut JoinSet<()>,
        until: impl Future<Output = ()>,
    ) {
        let mut until = pin!(until);
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => self.admit(stream, peer.ip(), connections),
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_REST).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = &mut until => return,
            }
        }
    }

    /// Closes the door behind those who already wait at it, so that their requests get a proper refusal. To all others the system says
    /// that nobody listens, after which a client may try elsewhere without doing anything twice.
    fn close(self: &Arc<Self>, listener: TcpListener, connections: &mut JoinSet<()>) {
        let Ok(listener) = listener.into_std() else { return };
        let waiting = std::iter::from_fn(|| match listener.accept() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            accepted => Some(accepted),
        });
        for (stream, peer) in waiting.take(waiting_max(self.connections_max)).flatten() {
            let stream = stream
                .set_nonblocking(true)
                .and_then(|()| TcpStream::from_std(stream));
            if let Ok(stream) = stream {
                self.admit(stream, peer.ip(), connections);
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, peer: IpAddr, connections: &mut JoinSet<()>) {
        // Its own number first: who has reached it should not cost the others a place for a moment.
        let Some(own) = self.addresses.enter(peer) else {
            return self.turn_away(stream, Rejection::Address, connections);
        };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return self.turn_away(stream, Rejection::Connections, connections);
        };
        // It leaves the runtime that took it for the one that serves it. One that can't is closed.
        let Ok(stream) = stream.into_std() else { return };
        let door = Arc::clone(self);
        let served = async move {
            let _held = (own, place);
            let _open = door.app.metrics.connection();
            if let Ok(stream) = TcpStream::from_std(stream) {
                door.receive(stream).await;
            }
        };
        connections.spawn_on(served, self.lanes.next());
    }

    fn turn_away(&self, stream: TcpStream, reason: Rejection, connections: &mut JoinSet<()>) {
        self.app.metrics.reject(reason);
        if self.tls.is_some() {
            // To be told, it would have to be given what it is refused: a handshake.
            return;
        }
        if let Ok(refusal) = Arc::clone(&self.refusals).try_acquire_owned() {
            connections.spawn(async move {
                let _refusal = refusal;
                refuse(stream, &ApiError::overloaded(1)).await;
            });
        }
    }

    async fn receive(&self, stream: TcpStream) {
        // Tokens are small packets that should leave at once. If the option fails the connection still works.
        let _ = stream.set_nodelay(true);
        let patience = self.app.http.header_timeout;
        let late = self.app.shutdown.phase() > Phase::Running;
        let patience = Instant::now()
            + if late {
                patience.min(LATE_PATIENCE)
            } else {
                patience
            };
        // Until a request was understood, what came may have been refused with more behind it.
        let unread = Arc::new(AtomicBool::new(true));
        let Some(tls) = &self.tls else {
            let stream = self.timed(stream, &unread);
            return self.connection(stream, unread, patience, None).await;
        };
        // Connections that begin while the process ends are told so, if they are quick.
        let ending = async {
            self.app.shutdown.reached(Phase::Draining).await;
            tokio::time::sleep(CLOSING_GRACE).await;
        };
        let greeted = tokio::select! {
            greeted = self.greet(tls, stream, &unread) => greeted,
            () = tokio::time::sleep_until(patience) => {
                tls.failed();
                None
            }
            () = ending => None,
        };
        if let Some(stream) = greeted {
            let shown = stream.get_ref().1.peer_certificates();
            let certificate = shown.and_then(|chain| ClientCertificate::of(chain.first()?));
            self.connection(stream, unread, patience, certificate).await;
        }
    }

    /// What comes before the first request where there is TLS. `None`: nothing comes of it.
    async fn greet(
        &self,
        tls: &Tls,
        stream: TcpStream,
        unread: &Arc<AtomicBool>,
    ) -> Option<TlsStream<TimeoutIo<TcpStream>>> {
        let mut first = [0];
        if stream.peek(&mut first).await.ok()? == 0 {
            // Who only looks whether somebody listens has not failed at anything.
            return None;
        }
        if first[0].is_ascii_uppercase() {
            // The first letter of a method: TLS begins with a control character.
            tls.failed();
            refuse(stream, &ApiError::tls_required()).await;
            return None;
        }
        match tls.accept(self.timed(stream, unread)).await {
            Ok(stream) => Some(stream),
            Err((error, mut stream)) => {
                tracing::debug!(%error, "a handshake failed");
                tls.failed();
                let _ = tokio::time::timeout(REFUSAL_TIME, stream.shutdown()).await;
                None
            }
        }
    }

    fn timed(&self, stream: TcpStream, unread: &Arc<AtomicBool>) -> TimeoutIo<TcpStream> {
        TimeoutIo::new(stream, self.app.http.write_timeout, Arc::clone(unread))
    }

    /// Serves a connection to its end, which is ours to make where another protocol was offered.
    async fn connection<S>(
        &self,
        stream: S,
        unread: Arc<AtomicBool>,
        patience: Instant,
        certificate: Option<ClientCertificate>,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let offered = Offered::default();
        self.requests(stream, unread, patience, certificate, &offered)
            .await;
        offered.close().await;
    }

    /// Serves a connection's requests. If none has come until `patience` is over, that is the end.
    async fn requests<S>(
        &self,
        stream: S,
        unread: Arc<AtomicBool>,
        patience: Instant,
        certificate: Option<ClientCertificate>,
        offered: &Offered,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (app, offered) = (&self.app, offered.clone());
        let (router, ended, shutdown) = (self.router.clone(), self.ended.clone(), app.shutdown.clone());
        let body_timeout = app.http.body_timeout;
        let heard = Arc::new(Notify::new());
        let hears = Arc::clone(&heard);
        let service = service_fn(move |mut request: Request<Incoming>| {
            if let Some(certificate) = certificate {
                request.extensions_mut().insert(certificate);
            }
            hears.notify_one();
            offered.take_from(&mut request);
            let is_over = shutdown.phase() == Phase::Closing;
            let router = if is_over { ended.clone() } else { router.clone() };
            let unread = Arc::clone(&unread);
            async move { Ok::<_, Infallible>(unread::answer(router, request, unread, body_timeout).await) }
        });
        let builder = builder(app);
        let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
        // Who comes while the process ends has one request, and is told with its answer.
        let late = app.shutdown.phase() > Phase::Running;
        let mut draining = pin!(app.shutdown.reached(Phase::Draining));
        let (mut spoke, mut told) = (false, late);
        // Covers a connection that says nothing, or too little to tell which protocol it speaks.
        let mut patience = pin!(tokio::time::sleep_until(patience));
        loop {
            tokio::select! {
                biased;
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
                () = heard.notified(), if !spoke => {
                    spoke = true;
                    if late {
                        connection.as_mut().graceful_shutdown();
                    }
                }
                () = &mut patience, if !spoke => {
                    tracing::debug!("a connection sent no request in time");
                    return;
                }
            }
        }
    }
}

/// What a connection's last request with an `Upgrade` has offered (`h2c`, by Java's client). Nobody takes it. But hyper
/// leaves closing such a connection to whoever would, so we close it: dropped while a client still sends, it would be
/// reset, and the answer lost.
#[derive(Clone, Default)]
struct Offered(Arc<Mutex<Option<OnUpgrade>>>);

impl Offered {
    fn take_from(&self, request: &mut Request<Incoming>) {
        if let Some(offer) = request.extensions_mut().remove() {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(offer);
        }
    }

    /// Closes the connection if hyper has left that to whoever takes the offer.
    async fn close(self) {
        let offer = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(offer) = offer else { return };
        if let Ok(stream) = offer.await {
            // Whatever goes wrong ends the connection, too.
            let _ = TokioIo::new(stream).shutdown().await;
        }
    }
}

/// Answers before anything was read, then reads what still comes: closing with unread bytes would make the kernel
/// reset the connection, and the answer with it. Whatever goes wrong ends the connection, which is what it is for.
async fn refuse(stream: TcpStream, error: &ApiError) {
    let _ = tokio::time::timeout(REFUSAL_TIME, write_refusal(stream, error)).await;
}

async fn write_refusal(mut stream: TcpStream, error: &ApiError) -> std::io::Result<()> {
    let body = serde_json::to_string(&error.body()).unwrap_or_default();
    let retry = match error.retry_after_s {
        Some(seconds) => format!("Retry-After: {seconds}\r\n"),
        None => String::new(),
    };
    let answer = format!(
        "HTTP/1.1 {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{retry}Connection: close\r\n\r\n{body}",
        error.status,
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    let mut rest = [0; 4096];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
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
