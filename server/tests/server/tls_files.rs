//! What an operator does to the files of TLS: renews them, or gets them wrong.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use rempart::config::{LogArgs, LogFormat, LogLevel};
use rempart::http::tls::{Tls, follow_hangups};
use rempart::telemetry;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use super::canary::Log;
use super::sockets::{chat_request, until};
use super::support::certificates::{Client, Folder, certificate};
use super::support::{TestServer, settings};
use super::tls::{VERSION, asks, listen};

/// The certificate that was shown.
fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    let chain = stream.get_ref().1.peer_certificates().unwrap();
    chain[0].to_vec()
}

/// Sends this process the signal that an operator sends.
fn hang_up() {
    let status = std::process::Command::new("sh")
        .args(["-c", "kill -HUP $PPID"])
        .status();
    assert!(status.unwrap().success());
}

fn reloads(result: &str) -> String {
    format!("rempart_tls_reloads_total{{result=\"{result}\"}}")
}

#[tokio::test]
async fn a_signal_renews_the_certificate_for_new_connections() {
    let folder = Folder::new();
    let mut listening = listen(&folder, &[]).await;
    let hangups = signal(SignalKind::hangup()).unwrap();
    listening
        .serving
        .spawn(follow_hangups(hangups, listening.tls.clone(), None));
    let client = Client::of(&folder.authority);
    let mut old = client.connect(listening.address).await.unwrap();
    let first = shown(&old);
    let expiry = listening
        .server
        .metric("rempart_tls_certificate_expiry_seconds")
        .await;
    assert!((expiry - 64_092_211_200.0).abs() < f64::EPSILON, "{expiry}");
    listening.server.controls.close();
    let chat = chat_request(json!({"stream": true, "temperature": 0}));
    old.write_all(chat.as_bytes()).await.unwrap();
    listening.server.controls.held().await;

    let next = folder.authority.sign("localhost", 3000);
    folder.show(&next);
    hang_up();
    listening.server.metric_becomes(&reloads("success"), 1.0).await;
    let new = client.connect(listening.address).await.unwrap();
    assert_eq!(shown(&new), certificate(&next.certificate).to_vec());
    assert_ne!(shown(&new), first);
    let expiry = listening
        .server
        .metric("rempart_tls_certificate_expiry_seconds")
        .await;
    assert!((expiry - 32_535_216_000.0).abs() < f64::EPSILON, "{expiry}");

    listening.server.controls.open();
    until(&mut old, "data: [DONE]").await;
    old.write_all(VERSION.as_bytes()).await.unwrap();
    until(&mut old, "version\":").await;

    // Only half of the next pair is there: as when a renewal is caught at work.
    folder.write(
        "certificate.pem",
        &folder.authority.sign("localhost", 3500).certificate,
    );
    hang_up();
    listening.server.metric_becomes(&reloads("failure"), 1.0).await;
    let kept = client.connect(listening.address).await.unwrap();
    assert_eq!(shown(&kept), shown(&new));
    folder.write("key.pem", "");
    hang_up();
    listening.server.metric_becomes(&reloads("failure"), 2.0).await;
    assert!(asks(&client, &listening).await.is_ok());
}

#[tokio::test]
async fn a_signal_without_tls_ends_nothing() {
    let mut following = JoinSet::new();
    following.spawn(follow_hangups(signal(SignalKind::hangup()).unwrap(), None, None));
    let mut seen = signal(SignalKind::hangup()).unwrap();
    hang_up();
    seen.recv().await.unwrap();
    tokio::task::yield_now().await;
    assert!(following.try_join_next().is_none());
}

/// Why a server would not start with these files.
fn refused(folder: &Folder, more: &[&str]) -> String {
    let arguments = folder.arguments(more);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let settings = settings(&arguments).http.tls.unwrap();
    let metrics = rempart::metrics::Metrics::new().unwrap();
    match Tls::open(settings, metrics.tls()) {
        Ok(_) => "it starts".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn pem(label: &str, base64: &str) -> String {
    format!("-----BEGIN {label}-----\n{base64}\n-----END {label}-----\n")
}

#[test]
fn a_certificate_that_cannot_work_is_named() {
    let folder = Folder::new();
    let good = folder.authority.sign("localhost", 4000);
    let noise = pem("CERTIFICATE", "AAAA");
    for (certificate, what) in [
        (good.key.clone(), "no certificate"),
        (good.certificate[..200].to_owned(), "damaged PEM"),
        (noise.clone(), "certificate 1 in it is damaged"),
        (
            format!("{}{noise}", good.certificate),
            "certificate 2 in it is damaged",
        ),
        ("x".repeat(2 << 20), "more than"),
    ] {
        folder.write("certificate.pem", &certificate);
        let error = refused(&folder, &[]);
        let begins = format!("--tls-certificate {}:", folder.path("certificate.pem").display());
        assert!(error.starts_with(&begins) && error.contains(what), "{error}");
    }
    folder.show(&folder.authority.sign("localhost", 2000));
    assert_eq!(refused(&folder, &[]), "it starts", "who serves it is warned");
}

#[test]
fn a_key_that_cannot_work_is_named() {
    let folder = Folder::new();
    let path = folder.path("key.pem");
    let good = std::fs::read_to_string(&path).unwrap();
    let chain = std::fs::read_to_string(folder.path("certificate.pem")).unwrap();
    for (key, what) in [
        (chain, "no private key"),
        (pem("ENCRYPTED PRIVATE KEY", "AAAA"), "passphrase"),
        (good[..50].to_owned(), "damaged PEM"),
        (pem("PRIVATE KEY", "AAAA"), "cannot be used"),
        (folder.authority.sign("localhost", 4000).key, "does not fit"),
    ] {
        folder.write("key.pem", &key);
        let error = refused(&folder, &[]);
        let begins = format!("--tls-key {}", path.display());
        assert!(error.starts_with(&begins) && error.contains(what), "{error}");
    }
    std::fs::remove_file(path).unwrap();
    let error = refused(&folder, &[]);
    assert!(
        error.starts_with("--tls-key") && error.contains("No such file"),
        "{error}"
    );
}

#[test]
fn authorities_that_cannot_work_are_named() {
    let folder = Folder::new();
    let path = folder.path("ca.pem");
    let option = ["--tls-client-ca", path.to_str().unwrap()];
    assert_eq!(refused(&folder, &option), "it starts");
    for (content, what) in [
        ("", "no certificate"),
        (&pem("CERTIFICATE", "AAAA"), "certificate 1"),
    ] {
        folder.write("ca.pem", content);
        let error = refused(&folder, &option);
        assert!(
            error.starts_with(&option.join(" ")) && error.contains(what),
            "{error}"
        );
    }
}

#[test]
fn what_works_and_should_not_be_so_is_warned_of() {
    let folder = Folder::new();
    let warned = || {
        let log = Log::default();
        let args = LogArgs {
            log_format: LogFormat::Human,
            log_level: LogLevel::Warn,
        };
        let guard = tracing::subscriber::set_default(telemetry::subscriber(&args, log.clone()));
        assert_eq!(refused(&folder, &[]), "it starts");
        drop(guard);
        log.text()
    };
    let mode = |mode| std::fs::set_permissions(folder.path("key.pem"), Permissions::from_mode(mode)).unwrap();
    for open in [0o644, 0o602] {
        mode(open);
        let lines = warned();
        let named = lines.contains("--tls-key") && lines.contains(&format!("{open:04o}"));
        assert!(named, "{lines}");
    }
    for closed in [0o600, 0o440] {
        mode(closed);
        assert_eq!(warned(), "");
    }
    folder.show(&folder.authority.sign("localhost", 2000));
    assert!(warned().contains("has expired"));
    folder.show(&folder.authority.begin("localhost", 3000));
    assert!(warned().contains("is not valid yet"));
}

#[test]
fn keys_of_every_usual_form_are_read() {
    let folder = Folder::new();
    let made = |arguments: &str| {
        let place = folder.path("made");
        let done = std::process::Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(place.parent().unwrap())
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let sign = "req -x509 -key key.pem -out certificate.pem -days 1 -subj /CN=localhost";
    for (generate, begins) in [
        (
            "genrsa -traditional -out key.pem 2048",
            "-----BEGIN RSA PRIVATE KEY",
        ),
        (
            "ecparam -genkey -noout -name prime256v1 -out key.pem",
            "-----BEGIN EC PRIVATE KEY",
        ),
        (
            "genpkey -algorithm ed25519 -out key.pem",
            "-----BEGIN PRIVATE KEY",
        ),
    ] {
        made(generate);
        let key = std::fs::read_to_string(folder.path("key.pem")).unwrap();
        assert!(key.starts_with(begins), "{generate}");
        made(sign);
        assert_eq!(refused(&folder, &[]), "it starts", "{generate}");
    }
}

#[tokio::test]
async fn no_series_of_tls_without_it() {
    let server = TestServer::start(&[]).await;
    assert!(!server.get("/metrics").await.body.contains("rempart_tls"));
}
