//! TLS under the accept loop: the certificate that new connections use, and its renewal at a signal.

mod files;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::signal::unix::Signal;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::server::{ServerConfig, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::SingleCertAndKey;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::server::TlsStream;

use crate::config::TlsSettings;
use crate::metrics::TlsMetrics;
use crate::oidc::Oidc;
pub use files::Error;
use files::Files;

/// What a client may speak inside, in our order.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The present certificate, and what renews it. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    settings: TlsSettings,
    metrics: TlsMetrics,
    config: Arc<Mutex<Arc<ServerConfig>>>,
}

impl Tls {
    /// Reads the files. Blocks while it does.
    ///
    /// # Errors
    /// Names the option, the file, and what is wrong with it.
    pub fn open(settings: TlsSettings, metrics: TlsMetrics) -> Result<Self, Error> {
        let config = Arc::new(Mutex::new(read(&settings, &metrics)?));
        Ok(Self {
            settings,
            metrics,
            config,
        })
    }

    /// Reads the files again, for connections to come. If they are not sound, what was read before goes on.
    pub fn reload(&self) {
        let read = read(&self.settings, &self.metrics);
        self.metrics.reloaded(read.is_ok());
        match read {
            Ok(config) => {
                *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
                tracing::info!("new connections use the certificate that was read again");
            }
            Err(error) => {
                tracing::error!(%error, "the certificate was not read again: the one before stays in use");
            }
        }
    }

    /// Agrees with a client on how they speak.
    ///
    /// # Errors
    /// Those of the connection, and whatever the two could not agree on; with the stream, on which that was told.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> Result<TlsStream<S>, (io::Error, S)> {
        let acceptor = TlsAcceptor::from(self.present());
        acceptor.accept(stream).into_fallible().await
    }

    fn present(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts a connection that ended before it was protected.
    pub fn failed(&self) {
        self.metrics.handshake_failed();
    }
}

/// Reads certificates, and the keys that verify tokens, again at every signal. Without them there is nothing to read, but the
/// signal ends no server.
pub async fn follow_hangups(mut hangups: Signal, tls: Option<Tls>, oidc: Option<Arc<Oidc>>) {
    while hangups.recv().await.is_some() {
        if let Some(oidc) = oidc.clone()
            && tokio::task::spawn_blocking(move || oidc.reload()).await.is_err()
        {
            tracing::error!("reading the keys of tokens again panicked: the ones before stay in use");
        }
        let Some(tls) = tls.clone() else {
            if oidc.is_none() {
                tracing::info!("SIGHUP received: there is no certificate to read again");
            }
            continue;
        };
        let metrics = tls.metrics.clone();
        // A file may be on a disk that is slow or gone.
        if tokio::task::spawn_blocking(move || tls.reload()).await.is_err() {
            metrics.reloaded(false);
            tracing::error!("reading the certificate again panicked: the one before stays in use");
        }
    }
}

/// What new connections use.
fn read(settings: &TlsSettings, metrics: &TlsMetrics) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(ring::default_provider());
    let files = Files::read(settings, &provider)?;
    let verifier = client_verifier(&files, settings, &provider)?;
    warn(&files, settings);
    let ends = files.ends;
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .expect("the provider has suites of both versions");
    let config = match verifier {
        Some(verifier) => config.with_client_cert_verifier(verifier),
        None => config.with_no_client_auth(),
    };
    let mut config = config.with_cert_resolver(Arc::new(SingleCertAndKey::from(files.certified)));
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    metrics.expires(ends);
    Ok(Arc::new(config))
}

/// Tells the operator of what works and should not be so.
fn warn(files: &Files, settings: &TlsSettings) {
    let certificate = settings.certificate.display();
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    if files.ends <= now {
        tracing::warn!(%certificate, "--tls-certificate has expired: clients will refuse it");
    } else if files.begins > now {
        tracing::warn!(%certificate, "--tls-certificate is not valid yet: clients will refuse it");
    }
    if let Some(mode) = files.key_mode_open {
        tracing::warn!(
            key = %settings.key.display(),
            mode = format!("{mode:04o}"),
            "--tls-key can be read or written by every user of this machine: chmod o= takes that away"
        );
    }
}

type ClientVerifier = Arc<dyn tokio_rustls::rustls::server::danger::ClientCertVerifier>;

fn client_verifier(
    files: &Files,
    settings: &TlsSettings,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<ClientVerifier>, Error> {
    let (Some(roots), Some(file)) = (&files.client_roots, &settings.client_ca) else {
        return Ok(None);
    };
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider)).build();
    verifier.map(Some).map_err(|_| Error::Unusable {
        option: files::CLIENT_CA,
        file: file.clone(),
    })
}
