//! TLS: who is trusted, and that stamps are those of the socket beneath it.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::Run;

/// A server with a certificate of an authority of its own. It answers every request with one token.
fn server(runtime: &Runtime) -> (SocketAddr, String) {
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
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            runtime_spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut bytes = vec![0; 1 << 16];
                while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {
                    let event = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n", event.len());
                    let _ = stream.write_all((head + event).as_bytes()).await;
                    let _ = stream.flush().await;
                }
            });
        }
    });
    (address, authority.as_ref().pem())
}

fn runtime_spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::runtime::Handle::current().spawn(task);
}

#[test]
fn a_certificate_is_checked_unless_it_is_asked_for_not_to_be() {
    let runtime = Runtime::new().unwrap();
    let (address, pem) = server(&runtime);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(pem.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    let run = |options: &[&str]| {
        let url = format!("https://localhost:{}/v1", address.port());
        Run::of(&url, &[&["--model", "m", "--num-prompts", "3"], options].concat())
    };
    let said = format!("{:#}", run(&[]).run().unwrap_err());
    assert!(
        said.contains("certificate") && said.contains("--ca-file"),
        "{said}"
    );
    assert_eq!(run(&["--insecure"]).result()["completed"].as_u64(), Some(3));
    let result = run(&["--ca-file", path]).result();
    assert_eq!(result["completed"].as_u64(), Some(3));
    assert!(
        result["ttfts"]
            .as_array()
            .unwrap()
            .iter()
            .all(|ttft| ttft.as_f64() > Some(0.0))
    );
    assert!(run(&["--ca-file", "/nonexistent"]).run().is_err());
    let address = format!("https://127.0.0.1:{}/v1", address.port());
    let by_address = Run::of(
        &address,
        &["--model", "m", "--num-prompts", "3", "--ca-file", path],
    );
    assert_eq!(by_address.result()["completed"].as_u64(), Some(3));
}
