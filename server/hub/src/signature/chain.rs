//! Certificates that vouch for the key of a signature, up to those that the operator trusts.

use std::path::Path;
use std::time::Duration;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::ext::pkix::{ExtendedKeyUsage, KeyUsage as Usage};

use super::error::Error;
use super::keys::PublicKey;
use super::{Signer, read_bounded};
use crate::digest::Sha256;

/// A list of certificates is some KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// id-kp-codeSigning, 1.3.6.1.5.5.7.3.3 (RFC 5280), as DER writes it.
const CODE_SIGNING: &[u8] = &[43, 6, 1, 5, 5, 7, 3, 3];

/// The certificate of a key that signs, and those above it.
pub struct Chain(Vec<CertificateDer<'static>>);

impl Chain {
    /// Reads the certificate of `key`, and of further files those above it.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn open(certificate: &Path, above: &[impl AsRef<Path>], key: &PublicKey) -> Result<Self, Error> {
        let refuse = |reason| Error::Key {
            path: certificate.to_owned(),
            reason,
        };
        let mut all = read(certificate)?;
        let [own] = all.as_slice() else {
            return Err(refuse("more than the one certificate of the key in it"));
        };
        if key_of(own).as_ref() != Ok(key) {
            return Err(refuse("not the certificate of the key that signs"));
        }
        for file in above {
            all.extend(read(file.as_ref())?);
        }
        Ok(Self(all))
    }

    pub(super) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0
    }
}

/// Reads the certificates of a PEM file, of which there is one at least.
fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let refuse = |reason| Error::Key {
        path: path.to_owned(),
        reason,
    };
    let text = read_bounded(path, FILE_BYTES_MAX)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates = certificates.map_err(|_| refuse("damaged PEM"))?;
    if certificates.is_empty() {
        return Err(refuse("no certificate in it (`-----BEGIN CERTIFICATE-----`)"));
    }
    Ok(certificates)
}

/// Certificates that are trusted because the operator says so.
pub(super) fn anchors(path: &Path) -> Result<Vec<TrustAnchor<'static>>, Error> {
    let anchor = |certificate: &CertificateDer<'_>| {
        let anchor = webpki::anchor_from_trusted_cert(certificate);
        anchor.map(|anchor| anchor.to_owned()).map_err(|_| Error::Key {
            path: path.to_owned(),
            reason: "a certificate in it is damaged, or not of version 3",
        })
    };
    read(path)?.iter().map(anchor).collect()
}

/// The key that signed, if its certificate is for that and is vouched for. As in the reference implementation it counts what was
/// valid when the certificate began: nothing proves when the model was signed.
pub(super) fn trusted(
    certificates: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
) -> Result<(PublicKey, Signer), String> {
    if anchors.is_empty() {
        return Err("it was signed with a certificate, and no certificate is trusted, only keys are".into());
    }
    let (first, above) = certificates.split_first().ok_or("it has no certificate")?;
    let damaged = "its certificate is damaged";
    let certificate = Certificate::from_der(first).map_err(|_| damaged)?;
    let body = certificate.tbs_certificate();
    let began: Duration = body.validity().not_before.to_unix_duration();
    let end = EndEntityCert::try_from(first).map_err(|error| format!("its certificate: {error}"))?;
    end.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        anchors,
        above,
        UnixTime::since_unix_epoch(began),
        KeyUsage::required_if_present(CODE_SIGNING),
        None,
        None,
    )
    .map_err(|error| format!("no certificate that is trusted vouches for its own: {error}"))?;
    // A certificate of a web server that the same authority has made does not vouch for models.
    let usage = body.get_extension::<Usage>().map_err(|_| damaged)?;
    let extended = body.get_extension::<ExtendedKeyUsage>().map_err(|_| damaged)?;
    let signs = usage.as_ref().is_none_or(|(_, usage)| usage.digital_signature());
    if !signs || usage.is_none() && extended.is_none() {
        return Err("its certificate is not for signing: neither digitalSignature nor codeSigning".into());
    }
    let signer = Signer::Certificate {
        subject: body.subject().to_string(),
        fingerprint: Sha256::of(first),
    };
    Ok((key_of(first)?, signer))
}

fn key_of(certificate: &CertificateDer<'_>) -> Result<PublicKey, &'static str> {
    let damaged = "its certificate is damaged";
    let certificate = Certificate::from_der(certificate).map_err(|_| damaged)?;
    let key = certificate.tbs_certificate().subject_public_key_info().to_der();
    PublicKey::from_der(&key.map_err(|_| damaged)?)
}
