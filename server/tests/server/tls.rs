//! TLS as clients meet it, and as it meets those who want to hinder others.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rempart::shutdown::Phase;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use super::sockets::{Listening, chat_request, listen_at, rest, until};
use super::support::certificates::{Authority, Client, Folder};
use super::support::{SCRIPT, chat_body};

pub(super) const VERSION: &str = "GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n";
const FAILED: &str = "rempart_tls_handshakes_failed_total";
const OPEN: &str = "rempart_http_connections";

pub(super) async fn listen(folder: &Folder, more: &[&str]) -> Listening {
    let arguments = folder.arguments(more);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    listen_at("127.0.0.1:0", &arguments).await
}

/// Asks for the version; what came, or why nothing did.
pub(super) async fn asks(client: &Client<'_>, listening: &Listening) -> std::io::Result<String> {
    let mut stream = client.connect(listening.address).await?;
    stream.write_all(VERSION.as_bytes()).await?;
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains("version\":") {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    Ok(text)
}

#[tokio::test]
async fn http_1_over_both_versions_of_tls() {
    let folder = Folder::new();
    let listening = listen(&folder, &[]).await;
    let http1: &[&[u8]] = &[b"http/1.1"];
    let newer = Client {
        speaks: http1,
        ..Client::of(&folder.authority)
    };
    for client in [newer.clone(), newer.older()] {
        let mut stream = client.connect(listening.address).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        stream.write_all(VERSION.as_bytes()).await.unwrap();
        until(&mut stream, "version\":").await;
        let chat = chat_request(json!({"stream": true, "temperature": 0}));
        stream.write_all(chat.as_bytes()).await.unwrap();
        let answer = until(&mut stream, "data: [DONE]").await;
        assert!(answer.contains("text/event-stream"), "{answer}");
    }
    let silent = Client::of(&folder.authority);
    assert!(asks(&silent, &listening).await.is_ok(), "no protocol was named");
    let strange = Client {
        speaks: &[b"smtp"],
        ..silent
    };
    assert!(strange.connect(listening.address).await.is_err());
    listening.server.metric_becomes(FAILED, 1.0).await;
}

#[tokio::test]
async fn http_2_is_agreed_upon() {
    let folder = Folder::new();
    let listening = listen(&folder, &[]).await;
    let client = Client {
        speaks: &[b"h2", b"http/1.1"],
        ..Client::of(&folder.authority)
    };
    let stream = client.connect(listening.address).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(async move { connection.await.unwrap() });
    let mut send = async |request: Request<Body>| -> (u16, String) {
        let response: Response<Incoming> = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    };
    let request = Request::get("https://localhost/version")
        .body(Body::empty())
        .unwrap();
    assert_eq!(send(request).await.0, 200);
    let strange = Request::get("https://evil.example/version")
        .body(Body::empty())
        .unwrap();
    assert_eq!(send(strange).await.0, 403, "hosts are checked here, too");
    let chat = |fields| {
        Request::post("https://localhost/v1/chat/completions")
            .header("content-type", "application/json")
            .body(Body::from(chat_body(fields).to_string()))
            .unwrap()
    };
    let (_, whole) = send(chat(json!({"temperature": 0}))).await;
    assert!(whole.contains(SCRIPT), "{whole}");
    let (status, streamed) = send(chat(json!({"temperature": 0, "stream": true}))).await;
    assert!(
        status == 200 && streamed.ends_with("data: [DONE]\n\n"),
        "{streamed}"
    );
}

#[tokio::test]
async fn a_client_that_trusts_others_goes_away() {
    let folder = Folder::new();
    let listening = listen(&folder, &[]).await;
    let other = Authority::new("other");
    let error = Client::of(&other).connect(listening.address).await.unwrap_err();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    listening.server.metric_becomes(FAILED, 1.0).await;
    assert!(asks(&Client::of(&folder.authority), &listening).await.is_ok());
    listening.server.metric_becomes(OPEN, 0.0).await;
}

#[tokio::test]
async fn clients_show_certificates_where_they_must() {
    let folder = Folder::new();
    let authority = folder.path("ca.pem");
    let listening = listen(&folder, &["--tls-client-ca", authority.to_str().unwrap()]).await;
    let (own, other) = (folder.authority.sign("client", 4000), Authority::new("other"));
    let (forged, expired) = (other.sign("client", 4000), folder.authority.sign("client", 2000));
    let bare = Client::of(&folder.authority);
    let with = |pair| Client {
        shows: Some(pair),
        ..bare.clone()
    };
    for client in [with(&own), with(&own).older()] {
        assert!(asks(&client, &listening).await.is_ok());
    }
    let refused = [
        (bare.clone(), "CertificateRequired"),
        (with(&forged), "UnknownCA"),
        (with(&expired), "CertificateExpired"),
    ];
    let mut failed = 0.0;
    for (client, alert) in refused {
        // The older version names the reasons in other words.
        let error = asks(&client, &listening).await.unwrap_err().to_string();
        assert!(error.contains(alert), "{alert}: {error}");
        assert!(asks(&client.older(), &listening).await.is_err(), "{alert}");
        failed += 2.0;
        listening.server.metric_becomes(FAILED, failed).await;
    }
}

#[tokio::test]
async fn half_handshakes_hinder_nobody_and_are_closed() {
    let folder = Folder::new();
    let listening = listen(&folder, &["--header-timeout-s", "20"]).await;
    let began = Instant::now();
    // A record that announces a greeting of 512 bytes, and its first ones.
    let half = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let mut slow = Vec::new();
    for n in 0..200 {
        let mut stream = listening.connect().await;
        stream.write_all(&half[..n % (half.len() + 1)]).await.unwrap();
        slow.push(stream);
    }
    let client = Client::of(&folder.authority);
    // These have agreed on everything and then say nothing, or too little.
    for text in ["", "G", "GET /version HTTP/1.1\r\nHost: loc", "PRI * HTTP/2.0"] {
        let mut stream = client.connect(listening.address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        slow.push(stream.into_inner().0);
    }
    // The machine may stop in one. After twenty seconds those are closed, and hinder nobody any more.
    let mut took = Vec::new();
    for _ in 0..3 {
        let asked = Instant::now();
        assert!(asks(&client, &listening).await.is_ok());
        if began.elapsed() < Duration::from_secs(20) {
            took.push(asked.elapsed());
        }
    }
    assert!(took.iter().any(|took| *took < Duration::from_secs(1)), "{took:?}");
    for stream in &mut slow {
        rest(stream).await;
    }
    listening.server.metric_becomes(OPEN, 0.0).await;
    let took = began.elapsed();
    assert!(
        took > Duration::from_millis(19_500) && took < Duration::from_secs(40),
        "{took:?}"
    );
}

/// Ends a server that half handshakes hold; whether that was soon, and a client that came a moment later was told so.
async fn ends(folder: &Folder) -> bool {
    let mut listening = listen(folder, &["--header-timeout-s", "600"]).await;
    let _silent = listening.connect().await;
    let _half = listening.sent("\x16\x03\x01").await;
    listening.server.metric_becomes(OPEN, 2.0).await;
    let began = Instant::now();
    listening.server.app.shutdown.advance(Phase::Draining);
    let late = async {
        let mut stream = Client::of(&folder.authority).connect(listening.address).await?;
        stream.write_all(chat_request(json!({})).as_bytes()).await?;
        std::io::Result::Ok(rest(&mut stream).await)
    };
    let told = late.await;
    listening.serving.join_next().await.unwrap().unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(20));
    took < Duration::from_secs(5) && told.is_ok_and(|answer| answer.starts_with("HTTP/1.1 503"))
}

#[tokio::test]
async fn half_handshakes_do_not_hold_the_end() {
    let folder = Folder::new();
    // Where the machine stops for longer than the end waits, it comes too late.
    for _ in 0..3 {
        if ends(&folder).await {
            return;
        }
    }
    panic!("it ends late, or who comes late is not told");
}

#[tokio::test]
async fn strangers_to_tls_are_told_or_closed() {
    let folder = Folder::new();
    let listening = listen(&folder, &[]).await;
    let answer = rest(&mut listening.sent(VERSION).await).await;
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("tls_required"),
        "{answer}"
    );
    let large = "x".repeat(20_000_000);
    let mut sent = listening.connect().await;
    let _ = sent.write_all(format!("POST / {large}").as_bytes()).await;
    assert!(rest(&mut sent).await.contains("https://"));
    for noise in ["\x16\x03\x01\x00\x02zz", "\0\0\0\0", "\x16\x03\x01\u{7f}\u{7f}"] {
        let mut stream = listening.sent(noise).await;
        stream.shutdown().await.unwrap();
        assert!(!rest(&mut stream).await.contains("HTTP"));
    }
    drop(listening.connect().await);
    listening.server.metric_becomes(OPEN, 0.0).await;
    listening.server.metric_becomes(FAILED, 5.0).await;
    assert!(asks(&Client::of(&folder.authority), &listening).await.is_ok());
}

#[tokio::test]
async fn one_connection_too_many_is_closed() {
    let folder = Folder::new();
    let listening = listen(&folder, &["--connections-max", "1"]).await;
    let client = Client::of(&folder.authority);
    let mut first = client.connect(listening.address).await.unwrap();
    first.write_all(VERSION.as_bytes()).await.unwrap();
    until(&mut first, "version\":").await;
    assert!(client.connect(listening.address).await.is_err());
    let counted = "rempart_rejections_total{reason=\"connections\"}";
    listening.server.metric_becomes(counted, 1.0).await;
    drop(first);
    listening.server.metric_becomes(OPEN, 0.0).await;
    assert!(asks(&client, &listening).await.is_ok());
}

#[tokio::test]
async fn a_client_that_sends_all_before_it_reads_sees_the_413() {
    let folder = Folder::new();
    let listening = listen(&folder, &["--body-bytes-max", "1000"]).await;
    let body = "x".repeat(20_000_000);
    let mut stream = Client::of(&folder.authority)
        .connect(listening.address)
        .await
        .unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let whole = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(whole.as_bytes()).await.unwrap();
    assert!(rest(&mut stream).await.contains("body_too_large"));
    drop(stream);
    listening.server.metric_becomes(OPEN, 0.0).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed() {
    let folder = Folder::new();
    let listening = listen(&folder, &["--write-timeout-s", "1"]).await;
    let client = Client::of(&folder.authority);
    let stream = client.connect(listening.address).await.unwrap();
    let (_unread, mut write) = tokio::io::split(stream);
    let request = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let send = async {
        // More than the buffers of both sides hold, until the server gives up.
        for _ in 0..1000 {
            if write.write_all(request.as_bytes()).await.is_err() {
                break;
            }
        }
    };
    let closed = async {
        listening.server.metric_becomes(OPEN, 1.0).await;
        listening.server.metric_becomes(OPEN, 0.0).await;
    };
    tokio::join!(send, closed);
}
