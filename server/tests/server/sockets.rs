//! The accept loop, over real connections.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rempart::http::accept;
use rempart::http::lanes::Lanes;
use rempart::http::listen;
use rempart::http::tls::Tls;
use rempart::shutdown::Phase;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::support::{SCRIPT, TestServer, chat_body, finished};

pub(super) struct Listening {
    pub(super) server: TestServer,
    pub(super) address: SocketAddr,
    pub(super) tls: Option<Tls>,
    pub(super) serving: JoinSet<()>,
}

async fn listen(arguments: &[&str]) -> Listening {
    listen_at("127.0.0.1:0", arguments).await
}

pub(super) async fn listen_at(address: &str, arguments: &[&str]) -> Listening {
    let server = TestServer::start(arguments).await;
    let listener = listen::listen(address.parse().unwrap(), server.app.http.connections_max).unwrap();
    serve(server, listener)
}

fn serve(server: TestServer, listener: TcpListener) -> Listening {
    let address = listener.local_addr().unwrap();
    let files = server.app.http.tls.clone();
    let tls = files.map(|files| Tls::open(files, server.app.metrics.tls()).unwrap());
    let mut serving = JoinSet::new();
    serving.spawn(accept::serve(
        listener,
        tls.clone(),
        server.router.clone(),
        Arc::clone(&server.app),
        Arc::new(Lanes::start(2).unwrap()),
    ));
    Listening {
        server,
        address,
        tls,
        serving,
    }
}

impl Listening {
    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    pub(super) async fn sent(&self, text: &str) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }
}

pub(super) fn chat_request(fields: serde_json::Value) -> String {
    let body = chat_body(fields).to_string();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// All that still comes, until the other side closes.
pub(super) async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) async fn until(stream: &mut (impl AsyncRead + Unpin), mark: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(mark) {
        let read = stream.read(&mut buffer).await.unwrap();
        assert!(read > 0, "closed before {mark:?}: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    text
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let listening = listen(&[]).await;
    let mut stream = listening
        .sent("GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    until(&mut stream, "version\":").await;
    stream
        .write_all(chat_request(json!({"temperature": 0})).as_bytes())
        .await
        .unwrap();
    assert!(until(&mut stream, "system_fingerprint").await.contains(SCRIPT));
}

#[tokio::test]
async fn a_disconnect_stops_the_sequence() {
    let listening = listen(&[]).await;
    for (streamed, left) in [(false, 1.0), (true, 2.0)] {
        listening.server.controls.close();
        let fields = json!({"stream": streamed, "max_tokens": 200, "ignore_eos": true});
        let stream = listening.sent(&chat_request(fields)).await;
        listening.server.controls.held().await;
        drop(stream);
        listening
            .server
            .metric_becomes("rempart_http_connections", 0.0)
            .await;
        listening.server.controls.open();
        listening.server.metric_becomes(&finished("abort"), left).await;
    }
    assert!(listening.server.metric("vllm:generation_tokens_total").await < 20.0);
}

#[tokio::test]
async fn draining_finishes_streams_and_refuses_the_rest() {
    let mut listening = listen(&[]).await;
    let mut idle = listening
        .sent("GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    until(&mut idle, "version\":").await;
    listening.server.controls.close();
    let mut running = listening
        .sent(&chat_request(json!({"stream": true, "temperature": 0})))
        .await;
    listening.server.controls.held().await;
    listening.server.app.shutdown.advance(Phase::Draining);
    assert_eq!(rest(&mut idle).await, "", "an idle connection is closed");
    let mut late = listening.sent(&chat_request(json!({}))).await;
    let refused = rest(&mut late).await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(refused.to_ascii_lowercase().contains("connection: close"));
    assert!(refused.to_ascii_lowercase().contains("retry-after: 1"));
    listening.server.controls.open();
    let answer = rest(&mut running).await;
    assert!(answer.contains("data: [DONE]"), "{answer}");
    listening.serving.join_next().await.unwrap().unwrap();
    assert!(
        TcpStream::connect(listening.address).await.is_err(),
        "nobody listens any more"
    );
}

#[tokio::test]
async fn the_end_of_the_drain_is_told_in_the_stream() {
    for arguments in [&["--drain-timeout-s", "0"][..], &[]] {
        let mut listening = listen(arguments).await;
        listening.server.controls.close();
        let mut running = listening.sent(&chat_request(json!({"stream": true}))).await;
        listening.server.controls.held().await;
        listening.server.app.shutdown.advance(Phase::Draining);
        if arguments.is_empty() {
            // What a second signal does.
            listening.server.app.shutdown.advance(Phase::Closing);
        }
        let answer = rest(&mut running).await;
        assert!(
            answer.contains("server_is_draining") && !answer.contains("[DONE]"),
            "{answer}"
        );
        listening.serving.join_next().await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn who_waits_at_the_door_when_it_closes_is_told_so() {
    let server = TestServer::start(&[]).await;
    let listener = listen::listen("127.0.0.1:0".parse().unwrap(), 50).unwrap();
    let mut waiting = Vec::new();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        // Whatever it is: what begins now might end without its answer.
        let asked = match waiting.len() % 2 {
            0 => chat_request(json!({})),
            _ => "GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        };
        stream.write_all(asked.as_bytes()).await.unwrap();
        waiting.push(stream);
    }
    // The end comes before most of them are accepted.
    server.app.shutdown.advance(Phase::Closing);
    let mut listening = serve(server, listener);
    for stream in &mut waiting {
        let refused = rest(stream).await;
        assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    }
    listening.serving.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn who_comes_during_the_drain_does_not_hold_it() {
    const PATIENCE: Duration = Duration::from_mins(1);
    let listening = listen(&["--drain-timeout-s", "600", "--header-timeout-s", "600"]).await;
    listening.server.controls.close();
    let _running = listening.sent(&chat_request(json!({"stream": true}))).await;
    listening.server.controls.held().await;
    listening.server.app.shutdown.advance(Phase::Draining);
    let mut silent = listening.connect().await;
    let stream = TokioIo::new(listening.connect().await);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    let mut both = JoinSet::new();
    both.spawn(async move { connection.await.unwrap() });
    both.spawn(async move { assert_eq!(rest(&mut silent).await, "") });
    let request = Request::get("http://localhost/version")
        .body(Body::empty())
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200, "who looks is still told");
    drop(answer);
    // Its client has not left: the server ends it.
    let ended = tokio::time::timeout(PATIENCE, both.join_all()).await;
    ended.expect("they hold the end");
    drop(sender);
}

#[tokio::test]
async fn silent_and_slow_clients_are_closed() {
    let listening = listen(&["--header-timeout-s", "1", "--body-timeout-s", "1"]).await;
    let began = Instant::now();
    let mut silent = listening.connect().await;
    let mut drip = listening.sent("POST /v1/completions HTTP/1.1\r\nHost: t").await;
    let mut preface = listening.sent("PRI * HT").await;
    let mut one = listening.sent("P").await;
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{";
    let mut body = listening.sent(head).await;
    assert_eq!(rest(&mut silent).await, "");
    rest(&mut drip).await;
    assert_eq!(rest(&mut preface).await, "");
    assert_eq!(rest(&mut one).await, "");
    let late = rest(&mut body).await;
    assert!(
        late.starts_with("HTTP/1.1 408") && late.contains("body_timeout"),
        "{late}"
    );
    assert!(began.elapsed() < Duration::from_secs(20));
    listening
        .server
        .metric_becomes("rempart_http_connections", 0.0)
        .await;
}

/// The time for a head is not one for the request.
#[tokio::test]
async fn a_request_that_was_heard_may_take_longer() {
    let listening = listen(&["--header-timeout-s", "1"]).await;
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{";
    let mut stream = listening.sent(head).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    stream.write_all(b"}").await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn a_large_head_is_refused() {
    let listening = listen(&["--header-bytes-max", "8192"]).await;
    let mut stream = listening.connect().await;
    let head = |bytes| {
        let large = "x".repeat(bytes);
        format!("GET /version HTTP/1.1\r\nHost: localhost\r\nX-Large: {large}\r\n\r\n")
    };
    stream.write_all(head(10_000).as_bytes()).await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(
        answer.starts_with("HTTP/1.1 431") && answer.contains("head_too_large"),
        "{answer}"
    );
    // One that is far over the limit is refused by hyper itself.
    let mut stream = listening.sent(&head(1_000_000)).await;
    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 431"));
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let listening = listen(&["--connections-max", "1"]).await;
    let mut first = listening
        .sent("GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    until(&mut first, "version\":").await;
    let mut second = listening.connect().await;
    let answer = rest(&mut second).await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("server_is_overloaded"),
        "{answer}"
    );
    drop(first);
    listening
        .server
        .metric_becomes("rempart_http_connections", 0.0)
        .await;
}

#[tokio::test]
async fn one_address_takes_no_more_than_its_places() {
    let Some(own) = address_of_this_machine() else {
        // Loopback has no such limit.
        return;
    };
    let mut listening = listen_at("0.0.0.0:0", &["--connections-per-address-max", "2"]).await;
    let loopback = listening.address.port();
    listening.address.set_ip(own);
    let version = "GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = listening.sent(version).await;
        until(&mut stream, "version\":").await;
        held.push(stream);
    }
    let answer = rest(&mut listening.connect().await).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    let counted = "rempart_rejections_total{reason=\"connections_per_address\"}";
    listening.server.metric_becomes(counted, 1.0).await;
    for _ in 0..3 {
        let mut stream = TcpStream::connect(("127.0.0.1", loopback)).await.unwrap();
        stream.write_all(version.as_bytes()).await.unwrap();
        until(&mut stream, "version\":").await;
        held.push(stream);
    }
    drop(held);
    listening
        .server
        .metric_becomes("rempart_http_connections", 0.0)
        .await;
    until(&mut listening.sent(version).await, "version\":").await;
}

/// An address that others reach this machine at; nothing is sent to find it.
fn address_of_this_machine() -> Option<IpAddr> {
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    probe.connect("198.51.100.1:9").ok()?;
    let own = probe.local_addr().ok()?.ip();
    (!own.is_loopback() && !own.is_unspecified()).then_some(own)
}

#[tokio::test]
async fn a_silent_stream_is_kept_open_by_comments() {
    let listening = listen(&["--keep-alive-s", "1"]).await;
    listening.server.controls.close();
    let mut stream = listening.sent(&chat_request(json!({"stream": true}))).await;
    until(&mut stream, ": keep-alive\n\n").await;
    listening.server.controls.open();
    until(&mut stream, "[DONE]").await;
}

#[tokio::test]
async fn a_body_that_is_too_large_closes_the_connection() {
    let listening = listen(&["--body-bytes-max", "1000"]).await;
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let mut announced = listening
        .sent(&format!("{head}Content-Length: 1001\r\n\r\n"))
        .await;
    assert!(rest(&mut announced).await.starts_with("HTTP/1.1 413"));
    let chunk = format!(
        "{head}Transfer-Encoding: chunked\r\n\r\n400\r\n{}\r\n",
        "x".repeat(0x400)
    );
    let mut chunked = listening.sent(&chunk).await;
    assert!(rest(&mut chunked).await.starts_with("HTTP/1.1 413"));
}

#[tokio::test]
async fn a_client_that_sends_all_before_it_reads_sees_the_413() {
    let listening = listen(&["--body-bytes-max", "1000"]).await;
    let body = "x".repeat(20_000_000);
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    for offer in [
        "",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    ] {
        let mut announced = listening.connect().await;
        let whole = format!("{head}{offer}Content-Length: {}\r\n\r\n{body}", body.len());
        announced.write_all(whole.as_bytes()).await.unwrap();
        assert!(rest(&mut announced).await.contains("body_too_large"), "{offer}");
    }
    let mut chunked = listening.connect().await;
    let whole = format!(
        "{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    chunked.write_all(whole.as_bytes()).await.unwrap();
    assert!(rest(&mut chunked).await.contains("body_too_large"));
    // It goes on without having read: its place is free when the server has had enough.
    drop(chunked);
    listening
        .server
        .metric_becomes("rempart_http_connections", 0.0)
        .await;
}

/// The server knows that it refuses this before its body has come, and leaves the connection open for the next.
async fn stays(listening: &Listening, head: &str, body: &str, times: f64) {
    let head = format!("POST /nowhere HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n");
    let mut stream = listening.sent(&head).await;
    let refused = r#"http_requests_total{handler="other",method="POST",status="404"}"#;
    listening.server.metric_becomes(refused, times).await;
    stream.write_all(body.as_bytes()).await.unwrap();
    let answer = until(&mut stream, "unknown_url").await;
    assert!(
        answer.starts_with("HTTP/1.1 404") && !answer.contains("connection:"),
        "{answer}"
    );
    let next = "GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(next.as_bytes()).await.unwrap();
    until(&mut stream, "version\":").await;
}

#[tokio::test]
async fn a_refusal_before_the_body_leaves_the_connection_usable() {
    let listening = listen(&[]).await;
    stays(&listening, "Content-Length: 20", &"x".repeat(20), 1.0).await;
    let longest = "x".repeat(256 << 10);
    stays(&listening, "Content-Length: 262144", &longest, 2.0).await;
    let chunks = format!("40000\r\n{longest}\r\n0\r\nTrailer: x\r\n\r\n");
    stays(&listening, "Transfer-Encoding: chunked", &chunks, 3.0).await;
}

#[tokio::test]
async fn a_refusal_that_ends_its_connection_says_so() {
    let listening = listen(&["--body-timeout-s", "1"]).await;
    let ends = async |head: &str, body: &str| {
        let request = format!("POST /nowhere {head}\r\n\r\n{body}");
        let answer = rest(&mut listening.sent(&request).await).await;
        let refused = answer.starts_with("HTTP/1.1 404") || answer.starts_with("HTTP/1.0 404");
        assert!(refused && answer.contains("connection: close\r\n"), "{answer}");
        assert!(!answer.contains("keep-alive"), "{answer}");
    };
    let long = "x".repeat((256 << 10) + 1);
    let chunks = format!("40001\r\n{long}\r\n0\r\n\r\n");
    let now = "HTTP/1.1\r\nHost: localhost";
    ends(&format!("{now}\r\nContent-Length: 262145"), &long).await;
    let chunked = format!("{now}\r\nTransfer-Encoding: chunked");
    ends(&chunked, &chunks).await;
    ends(&chunked, "nothing that is chunked").await;
    let length = format!("{now}\r\nContent-Length: 20");
    ends(&length, "it does not come").await;
    // Asking for the body, as "100 Continue" would, is to no purpose.
    ends(&format!("{length}\r\nExpect: 100-continue"), "").await;
    ends("HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 20", "").await;
}
