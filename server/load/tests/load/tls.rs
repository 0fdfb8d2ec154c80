//! TLS: who is trusted, that stamps are those of the socket beneath it, and when a handshake counts.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{HandshakeKind, ServerConfig};
use tokio_rustls::server::TlsStream;

use crate::Run;

/// A server with a certificate of an authority of its own, until its runtime ends. It answers every request with one token.
struct Server {
    address: SocketAddr,
    /// The authority's certificate.
    pem: String,
    /// Handshakes that took up an earlier session.
    resumed: Arc<AtomicUsize>,
}

impl Server {
    /// Waits for `late` before each handshake.
    fn start(runtime: &Runtime, late: Duration) -> Self {
        let (config, pem) = config();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let resumed = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&resumed);
        runtime.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, resumed) = (acceptor.clone(), Arc::clone(&counted));
                runtime_spawn(async move {
                    tokio::time::sleep(late).await;
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let again = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
                        resumed.fetch_add(usize::from(again), Ordering::SeqCst);
                        answer(stream).await;
                    }
                });
            }
        });
        Self {
            address,
            pem,
            resumed,
        }
    }

    fn url(&self, host: &str) -> String {
        format!("https://{host}:{}/v1", self.address.port())
    }
}

/// With a certificate of an authority of its own, and that authority's.
fn config() -> (ServerConfig, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &authority)
        .unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    (config, authority.as_ref().pem())
}

async fn answer(mut stream: TlsStream<TcpStream>) {
    let mut bytes = vec![0; 1 << 16];
    while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {
        let event = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n",
            event.len()
        );
        let _ = stream.write_all((head + event).as_bytes()).await;
        let _ = stream.flush().await;
    }
}

fn runtime_spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::runtime::Handle::current().spawn(task);
}

#[test]
fn a_certificate_is_checked_unless_it_is_asked_for_not_to_be() {
    let runtime = Runtime::new().unwrap();
    let server = Server::start(&runtime, Duration::ZERO);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(server.pem.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    let run = |host: &str, options: &[&str]| {
        let options = [&["--model", "m", "--num-prompts", "3"], options].concat();
        Run::of(&server.url(host), &options)
    };
    let said = format!("{:#}", run("localhost", &[]).run().unwrap_err());
    assert!(
        said.contains("certificate") && said.contains("--ca-file"),
        "{said}"
    );
    assert_eq!(
        run("localhost", &["--insecure"]).result()["completed"].as_u64(),
        Some(3)
    );
    let result = run("localhost", &["--ca-file", path]).result();
    assert_eq!(result["completed"].as_u64(), Some(3));
    assert!(
        result["ttfts"]
            .as_array()
            .unwrap()
            .iter()
            .all(|ttft| ttft.as_f64() > Some(0.0))
    );
    assert!(run("localhost", &["--ca-file", "/nonexistent"]).run().is_err());
    let by_address = run("127.0.0.1", &["--ca-file", path]);
    assert_eq!(by_address.result()["completed"].as_u64(), Some(3));
}

#[test]
fn without_keepalive_ttft_and_e2e_have_the_opening_of_a_connection_in_them() {
    let runtime = Runtime::new().unwrap();
    let late = Duration::from_millis(200);
    let server = Server::start(&runtime, late);
    let shortest = |option: &[&str]| {
        let options = ["--model", "m", "--num-prompts", "5", "--insecure"];
        let result = Run::of(&server.url("localhost"), &[&options, option].concat()).result();
        assert_eq!(result["completed"].as_u64(), Some(5));
        ["ttfts", "e2els"].map(|times| {
            let times = result[times].as_array().unwrap().iter();
            times.map(|time| time.as_f64().unwrap()).fold(f64::MAX, f64::min)
        })
    };
    // Of the open loop each request is answered before the next one is due.
    let open_loop = ["--request-rate", "2", "--burstiness", "inf"];
    for shape in [&["--concurrency", "1"][..], &open_loop] {
        let opened = shortest(&[shape, &["--disable-keepalive"]].concat());
        assert!(
            opened.iter().all(|time| *time >= late.as_secs_f64()),
            "{shape:?}: {opened:?}"
        );
    }
    assert_eq!(server.resumed.load(Ordering::SeqCst), 0);
    for shape in [&["--concurrency", "1"][..], &open_loop] {
        let kept = shortest(shape);
        assert!(
            kept.iter().all(|time| *time < late.as_secs_f64()),
            "{shape:?}: {kept:?}"
        );
    }
    assert!(server.resumed.load(Ordering::SeqCst) > 0);
}
