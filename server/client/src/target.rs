//! The server that is asked: where it is, what is sent with each request, and whom it must prove to be.

use std::fmt;
use std::fs;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT,
};
use hyper::{Method, Request, Uri};
use tokio::net::lookup_host;
use tokio::time::timeout;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::failure::Failure;
use crate::limits::{CA_BYTES_MAX, Patience};

/// What the answer to a request should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    Json,
    /// Server-sent events.
    Events,
    /// Prometheus's text format and other plain text.
    Text,
}

impl Accept {
    fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Events => "text/event-stream",
            Self::Text => "text/plain",
        }
    }
}

/// A key; nothing prints it.
#[derive(Clone)]
pub struct Secret(pub(crate) String);

impl Secret {
    /// What it is, for who takes it apart.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Whose certificates a server may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those of the authorities that this machine trusts.
    #[default]
    Machine,
    /// Those of the authorities in a PEM file, and no others.
    File(PathBuf),
    /// Anybody's: whoever is on the way reads the key.
    Anybody,
}

/// A server, ready to be connected to.
#[derive(Clone)]
pub struct Target {
    /// What it was given by, for messages.
    option: String,
    host: String,
    port: u16,
    /// What the routes are appended to, without a slash at its end: `/v1`.
    base: String,
    authority: String,
    pub(crate) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    headers: HeaderMap,
}

impl Target {
    /// Reads a URL like `https://host:8443/v1`, which an option gave.
    ///
    /// # Errors
    /// Where the URL, a header or a certificate file is wrong; the message names which, and no value of a header.
    pub fn new(
        option: &str,
        url: &str,
        key: Option<&Secret>,
        headers: &[(String, String)],
        trust: &Trust,
    ) -> anyhow::Result<Self> {
        // Told before anything repeats the URL: a password in it is a secret, too.
        ensure!(
            !url.contains(['@', '?']),
            "{option}: no user, password or query belongs there; a key goes into --api-key"
        );
        let uri: Uri = url.parse().with_context(|| format!("{option} {url}"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => bail!("{option} {url}: must begin with http:// or https://"),
        };
        let authority = uri
            .authority()
            .with_context(|| format!("{option}: needs a host"))?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = port_of(authority.as_str(), if tls { 443 } else { 80 });
        let port = port.with_context(|| format!("{option} {url}: a port is a number from 1 to 65535"))?;
        ensure!(
            tls || *trust == Trust::Machine,
            "--insecure and --ca-file are for https:// alone"
        );
        let tls = if tls {
            let name = ServerName::try_from(host.clone())
                .with_context(|| format!("{option}: not a name that a certificate can have"))?;
            Some((Arc::new(tls_config(trust)?), name))
        } else {
            None
        };
        Ok(Self {
            option: option.to_owned(),
            host,
            port,
            base: uri.path().trim_end_matches('/').to_owned(),
            authority: authority.as_str().to_owned(),
            tls,
            headers: header_map(key, headers)?,
        })
    }

    /// The path and query of a route: `chat/completions` is `/v1/chat/completions`. One with a slash in front stands for itself.
    pub fn path(&self, route: &str) -> String {
        if route.starts_with('/') {
            return route.to_owned();
        }
        format!("{}/{route}", self.base)
    }

    /// The path of the URL itself, without a slash at its end: empty where it has none.
    pub fn base(&self) -> &str {
        &self.base
    }

    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Looks the server's name up.
    ///
    /// # Errors
    /// Where it has no address, or nobody tells it in time.
    pub async fn addresses(&self, patience: &Patience) -> anyhow::Result<Vec<SocketAddr>> {
        let host = self.host.as_str();
        let addresses: Vec<SocketAddr> = timeout(patience.connect, lookup_host((host, self.port)))
            .await
            .with_context(|| format!("looking up {host} took longer than --connect-timeout-s"))?
            .with_context(|| format!("looking up {host}: is {} right?", self.option))?
            .collect();
        ensure!(!addresses.is_empty(), "{host} has no address");
        Ok(addresses)
    }

    /// A request with everything that each one has.
    ///
    /// # Errors
    /// Where the path can't be one.
    pub fn request(
        &self,
        agent: &'static str,
        method: Method,
        path: &str,
        body: Bytes,
        accept: Accept,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.authority)
            .header(USER_AGENT, agent)
            .header(ACCEPT, accept.media_type())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| Failure::Protocol(error.to_string()))?;
        for (name, value) in &self.headers {
            request.headers_mut().insert(name.clone(), value.clone());
        }
        Ok(request)
    }

    /// Has each connection carry one request, which says so (RFC 9112, 9.6), and begin with a full TLS handshake, as those of
    /// a program do that remembers no session.
    #[must_use]
    pub fn without_keepalive(mut self) -> Self {
        self.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if let Some((config, _)) = &mut self.tls {
            Arc::make_mut(config).resumption = Resumption::disabled();
        }
        self
    }

    /// Whether a key goes to another machine in the clear.
    pub fn tells_key(&self) -> bool {
        let loopback = self.host == "localhost" || self.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        self.tls.is_none() && self.headers.contains_key(AUTHORIZATION) && !loopback
    }
}

/// The port of a host with one, or the usual one of a host without; `None` of what is no port, which `http` takes for none.
fn port_of(authority: &str, usual: u16) -> Option<u16> {
    // Within brackets colons are an address's.
    let behind = authority.rsplit_once(']').map_or(authority, |(_, behind)| behind);
    match behind.rsplit_once(':') {
        None | Some((_, "")) => Some(usual),
        Some((_, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => {
            port.parse().ok().filter(|port| *port > 0)
        }
        Some(_) => None,
    }
}

fn header_map(key: Option<&Secret>, headers: &[(String, String)]) -> anyhow::Result<HeaderMap> {
    let mut map = HeaderMap::new();
    if let Some(Secret(key)) = key {
        let mut value = HeaderValue::try_from(format!("Bearer {key}"))
            .map_err(|_| anyhow::anyhow!("--api-key: a header can't hold it; look for line ends in it"))?;
        value.set_sensitive(true);
        map.insert(AUTHORIZATION, value);
    }
    for (name, value) in headers {
        // What stands for the name may be a part of a key that was typed the wrong way.
        let parsed: HeaderName = name
            .parse()
            .map_err(|_| anyhow::anyhow!("a header that was given has no name: write NAME=VALUE"))?;
        let mut value = HeaderValue::try_from(value)
            .map_err(|_| anyhow::anyhow!("a header that was given has a value that none can hold"))?;
        value.set_sensitive(true);
        map.insert(parsed, value);
    }
    Ok(map)
}

fn tls_config(trust: &Trust) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match trust {
        Trust::Machine => builder.with_root_certificates(machine_roots()?),
        Trust::File(path) => builder.with_root_certificates(file_roots(path)?),
        Trust::Anybody => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unverified(provider))),
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn machine_roots() -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    // What can't be read is left out: the others still prove who they are of.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    ensure!(
        !roots.is_empty(),
        "this machine trusts no authority: name your own with --ca-file"
    );
    Ok(roots)
}

fn file_roots(path: &Path) -> anyhow::Result<RootCertStore> {
    let said = || format!("--ca-file {}", path.display());
    let mut pem = Vec::new();
    let file = fs::File::open(path).with_context(said)?;
    file.take(CA_BYTES_MAX).read_to_end(&mut pem).with_context(said)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.with_context(said)?).with_context(said)?;
    }
    ensure!(
        !roots.is_empty(),
        "--ca-file {}: holds no certificate",
        path.display()
    );
    Ok(roots)
}

/// Takes every certificate, but still has the server sign with its key.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> anyhow::Result<Target> {
        Target::new(
            "--base-url",
            url,
            Some(&"sk-very-secret".into()),
            &[],
            &Trust::Machine,
        )
    }

    #[test]
    fn what_is_no_port_is_not_taken_for_the_usual_one() {
        for (authority, port) in [
            ("a", Some(80)),
            ("a:", Some(80)),
            ("a:8080", Some(8080)),
            ("[::1]", Some(80)),
            ("[::1]:65535", Some(65535)),
            ("a:65536", None),
            ("a:0", None),
            ("a:+80", None),
            ("[::1]:99999", None),
        ] {
            assert_eq!(port_of(authority, 80), port, "{authority}");
        }
        let refused = Target::new(
            "--base-url",
            "http://127.0.0.1:99999/v1",
            None,
            &[],
            &Trust::Machine,
        );
        assert!(refused.err().unwrap().to_string().contains("from 1 to 65535"));
    }

    #[test]
    fn urls_are_taken_apart() {
        let target = target("http://localhost:8080/v1/").unwrap();
        assert_eq!((target.host.as_str(), target.port), ("localhost", 8080));
        assert_eq!(target.path("chat/completions"), "/v1/chat/completions");
        assert_eq!(target.path("/rerank"), "/rerank");
        assert!(!target.tells_key());
        assert!(
            super::Target::new("--base-url", "http://[::1]/v1", None, &[], &Trust::Machine)
                .is_ok_and(|t| t.host == "::1")
        );
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said_without_a_key() {
        for url in [
            "ftp://a/v1",
            "localhost:8080/v1",
            "http://user:pw@a/v1",
            "http://a/v1?key=b",
            "",
            "http:///v1",
        ] {
            assert!(target(url).is_err(), "{url}");
        }
        let key = Secret::from("sk-very\nsecret");
        let said = Target::new("--base-url", "http://a/v1", Some(&key), &[], &Trust::Machine)
            .err()
            .unwrap();
        assert!(!format!("{said:?} {key:?}").contains("sk-very"));
        let header = [("X-Token".to_owned(), "hid\nden".to_owned())];
        let said = Target::new("--base-url", "http://a/v1", None, &header, &Trust::Machine)
            .err()
            .unwrap();
        assert!(!format!("{said:?}").contains("hid"), "{said:?}");
        assert!(target("http://192.0.2.1/v1").unwrap().tells_key());
    }

    #[test]
    fn trust_is_for_tls() {
        let said = Target::new("--base-url", "http://a/v1", None, &[], &Trust::Anybody)
            .err()
            .unwrap();
        assert!(said.to_string().contains("--insecure"));
    }
}
