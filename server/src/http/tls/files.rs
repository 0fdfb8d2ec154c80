//! The files of TLS: read within a limit, and checked so far that what is wrong is said before a client meets it.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rempart_hub::file;
use thiserror::Error;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{Error as TlsError, InconsistentKeys};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use crate::config::TlsSettings;

/// Chains and lists of authorities are some KiB; a path to something else should not fill the memory.
const FILE_BYTES_MAX: u64 = 1 << 20;
const CERTIFICATE: &str = "--tls-certificate";
const KEY: &str = "--tls-key";
pub(super) const CLIENT_CA: &str = "--tls-client-ca";
/// Bits of a mode that let every user read or write. A group is let in on purpose.
const OTHERS: u32 = 0o006;

/// Why there can be no TLS with these files. Never quotes what is in them.
#[derive(Debug, Error)]
pub enum Error {
    #[error("{option} {file}: {why}", file = file.display())]
    Read {
        option: &'static str,
        file: PathBuf,
        why: io::Error,
    },
    #[error("{option} {file}: more than {FILE_BYTES_MAX} bytes", file = file.display())]
    TooLarge { option: &'static str, file: PathBuf },
    #[error("{option} {file}: damaged PEM", file = file.display())]
    Pem { option: &'static str, file: PathBuf },
    #[error("{option} {file}: no certificate in it (`-----BEGIN CERTIFICATE-----`)", file = file.display())]
    NoCertificate { option: &'static str, file: PathBuf },
    #[error("{option} {file}: certificate {number} in it is damaged, or not of version 3", file = file.display())]
    Certificate {
        option: &'static str,
        file: PathBuf,
        number: usize,
    },
    #[error(
        "{KEY} {file}: no private key in it (`-----BEGIN PRIVATE KEY-----`, `RSA` or `EC PRIVATE KEY`; one with a passphrase \
         is of no use)", file = file.display()
    )]
    NoKey { file: PathBuf },
    #[error(
        "{KEY} {file}: the key in it cannot be used: RSA of 2048 to 8192 bits, ECDSA on P-256 or P-384, and Ed25519 can",
        file = file.display()
    )]
    Key { file: PathBuf },
    #[error(
        "{KEY} {key} does not fit the first certificate of {CERTIFICATE} {certificate}",
        key = key.display(), certificate = certificate.display()
    )]
    Mismatch { key: PathBuf, certificate: PathBuf },
    #[error("{option} {file}: the certificates in it cannot be used", file = file.display())]
    Unusable { option: &'static str, file: PathBuf },
}

/// What the files hold.
pub(super) struct Files {
    pub(super) certified: CertifiedKey,
    /// When the certificate is valid, since 1970.
    pub(super) begins: Duration,
    pub(super) ends: Duration,
    /// The key's mode, if it lets every user in.
    pub(super) key_mode_open: Option<u32>,
    pub(super) client_roots: Option<Arc<RootCertStore>>,
}

impl Files {
    pub(super) fn read(settings: &TlsSettings, provider: &CryptoProvider) -> Result<Self, Error> {
        let chain = certificates(CERTIFICATE, &settings.certificate)?;
        let (begins, ends) = validity(&chain[0]).ok_or_else(|| Error::Certificate {
            option: CERTIFICATE,
            file: settings.certificate.clone(),
            number: 1,
        })?;
        let (key, mode) = read_key(&settings.key)?;
        let key = provider
            .key_provider
            .load_private_key(key)
            .map_err(|_| Error::Key {
                file: settings.key.clone(),
            })?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(TlsError::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(TlsError::InconsistentKeys(_)) => {
                return Err(Error::Mismatch {
                    key: settings.key.clone(),
                    certificate: settings.certificate.clone(),
                });
            }
            Err(_) => {
                return Err(Error::Unusable {
                    option: CERTIFICATE,
                    file: settings.certificate.clone(),
                });
            }
        }
        let client_roots = settings.client_ca.as_deref().map(roots).transpose()?;
        Ok(Self {
            certified,
            begins,
            ends,
            key_mode_open: (mode & OTHERS != 0).then_some(mode),
            client_roots,
        })
    }
}

/// The content of a file and its mode.
fn content(option: &'static str, path: &Path) -> Result<(Vec<u8>, u32), Error> {
    let failed = |why| Error::Read {
        option,
        file: path.to_owned(),
        why,
    };
    let open = file::open(path).map_err(failed)?;
    let mode = open.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    let read = file::read_from(open, FILE_BYTES_MAX).map_err(failed)?;
    let bytes = read.ok_or_else(|| Error::TooLarge {
        option,
        file: path.to_owned(),
    })?;
    Ok((bytes, mode))
}

/// The certificates of a file, at least one, in its order.
fn certificates(option: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let file = || path.to_owned();
    let (bytes, _) = content(option, path)?;
    let mut all = Vec::new();
    for der in CertificateDer::pem_slice_iter(&bytes) {
        let der = der.map_err(|_| Error::Pem { option, file: file() })?;
        if ParsedCertificate::try_from(&der).is_err() {
            return Err(Error::Certificate {
                option,
                file: file(),
                number: all.len() + 1,
            });
        }
        all.push(der);
    }
    if all.is_empty() {
        return Err(Error::NoCertificate { option, file: file() });
    }
    Ok(all)
}

/// When a certificate begins to be valid, and when it ends, since 1970; `None` if it does not say so in the usual form.
fn validity(der: &CertificateDer<'_>) -> Option<(Duration, Duration)> {
    let certificate = Certificate::from_der(der).ok()?;
    let validity = certificate.tbs_certificate().validity();
    let (begins, ends) = (validity.not_before, validity.not_after);
    Some((begins.to_unix_duration(), ends.to_unix_duration()))
}

fn read_key(path: &Path) -> Result<(PrivateKeyDer<'static>, u32), Error> {
    let (bytes, mode) = content(KEY, path)?;
    match PrivateKeyDer::from_pem_slice(&bytes) {
        Ok(key) => Ok((key, mode)),
        Err(pem::Error::NoItemsFound) => Err(Error::NoKey {
            file: path.to_owned(),
        }),
        Err(_) => Err(Error::Pem {
            option: KEY,
            file: path.to_owned(),
        }),
    }
}

/// The authorities whose clients are let in.
fn roots(path: &Path) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    for (at, der) in certificates(CLIENT_CA, path)?.into_iter().enumerate() {
        roots.add(der).map_err(|_| Error::Certificate {
            option: CLIENT_CA,
            file: path.to_owned(),
            number: at + 1,
        })?;
    }
    Ok(Arc::new(roots))
}
