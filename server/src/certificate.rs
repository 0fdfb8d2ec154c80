//! What a client's certificate tells of who shows it: its public key, which a key of the database can be of.

use std::path::Path;

use anyhow::Context as _;
use rempart_governance::KeyHash;
use rempart_hub::file;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};

/// A certificate is some KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A certificate that a client has proven to hold, and that one of our authorities has signed.
#[derive(Clone, Copy, Debug)]
pub struct ClientCertificate {
    /// Of its public key: a certificate that is renewed for the same one is of the same client.
    pub key: KeyHash,
    /// When it begins to be valid, and when it ends, in Unix seconds.
    pub begins: i64,
    pub ends: i64,
}

impl ClientCertificate {
    /// Of a certificate in DER; `None` where it is damaged.
    pub fn of(der: &[u8]) -> Option<Self> {
        let certificate = Certificate::from_der(der).ok()?;
        let certificate = certificate.tbs_certificate();
        let validity = certificate.validity();
        let begins = validity.not_before.to_unix_duration().as_secs();
        let ends = validity.not_after.to_unix_duration().as_secs();
        let key = certificate.subject_public_key_info().to_der().ok()?;
        Some(Self {
            key: KeyHash::of_public_key(&key),
            begins: i64::try_from(begins).ok()?,
            ends: i64::try_from(ends).ok()?,
        })
    }

    /// Of the first certificate in a file in PEM that an option names.
    ///
    /// # Errors
    /// What the system says, and that there is none in it.
    pub fn read(option: &str, path: &Path) -> anyhow::Result<Self> {
        let failed = || format!("{option} {}", path.display());
        let read = file::read(path, FILE_BYTES_MAX).with_context(failed)?;
        let bytes = read.with_context(|| format!("{}: more than {FILE_BYTES_MAX} bytes", failed()))?;
        let der = CertificateDer::from_pem_slice(&bytes).ok();
        der.and_then(|der| Self::of(&der)).with_context(|| {
            format!(
                "{}: no certificate in PEM (`-----BEGIN CERTIFICATE-----`)",
                failed()
            )
        })
    }
}
