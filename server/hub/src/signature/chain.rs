//! Certificates that vouch for the key of a signature, up to those that the operator trusts.

use std::path::Path;
use std::time::Duration;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage as Usage};

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

/// Who may vouch for certificates because the operator says so.
#[derive(Debug, Clone, Default)]
pub(super) struct Authorities {
    anchors: Vec<Anchor>,
    /// What stands between those and a signer's.
    between: Vec<CertificateDer<'static>>,
}

#[derive(Debug, Clone)]
struct Anchor {
    own: TrustAnchor<'static>,
    /// From when to when it is valid, since 1970.
    valid: (Duration, Duration),
}

impl Authorities {
    /// Takes those of a file that vouch for themselves and may for others; what else is in it counts as what a signature brings along.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(super) fn add(&mut self, path: &Path) -> Result<(), Error> {
        let refuse = |reason| Error::Key {
            path: path.to_owned(),
            reason,
        };
        let damaged = "a certificate in it is damaged, or not of version 3";
        let before = self.anchors.len();
        for der in read(path)? {
            let certificate = Certificate::from_der(&der).map_err(|_| refuse(damaged))?;
            let body = certificate.tbs_certificate();
            if body.issuer() == body.subject() && may_vouch(&certificate).map_err(refuse)? {
                let own = webpki::anchor_from_trusted_cert(&der).map_err(|_| refuse(damaged))?;
                let validity = body.validity();
                self.anchors.push(Anchor {
                    own: own.to_owned(),
                    valid: (
                        validity.not_before.to_unix_duration(),
                        validity.not_after.to_unix_duration(),
                    ),
                });
            } else {
                self.between.push(der);
            }
        }
        if self.anchors.len() == before {
            return Err(refuse(
                "no certificate of an authority in it: one that has issued itself, with CA:TRUE and, if it says what its key is for, keyCertSign",
            ));
        }
        Ok(())
    }
}

/// Whether a certificate is of an authority.
fn may_vouch(certificate: &Certificate) -> Result<bool, &'static str> {
    let body = certificate.tbs_certificate();
    let damaged = "an extension of a certificate in it is damaged";
    let basic = body.get_extension::<BasicConstraints>().map_err(|_| damaged)?;
    let usage = body.get_extension::<Usage>().map_err(|_| damaged)?;
    Ok(basic.is_some_and(|(_, basic)| basic.ca) && usage.is_none_or(|(_, usage)| usage.key_cert_sign()))
}

/// The key that signed, if its certificate is for that and is vouched for. As in the reference implementation it counts what was
/// valid when the certificate began: nothing proves when the model was signed.
pub(super) fn trusted(
    certificates: &[CertificateDer<'_>],
    authorities: &Authorities,
) -> Result<(PublicKey, Signer), String> {
    if authorities.anchors.is_empty() {
        return Err("it was signed with a certificate, and no certificate is trusted, only keys are".into());
    }
    let (first, above) = certificates.split_first().ok_or("it has no certificate")?;
    let damaged = "its certificate is damaged";
    let certificate = Certificate::from_der(first).map_err(|_| damaged)?;
    let body = certificate.tbs_certificate();
    let began: Duration = body.validity().not_before.to_unix_duration();
    let end = EndEntityCert::try_from(first).map_err(|error| format!("its certificate: {error}"))?;
    let valid = |anchor: &&Anchor| anchor.valid.0 <= began && began <= anchor.valid.1;
    let anchors: Vec<TrustAnchor<'_>> = authorities
        .anchors
        .iter()
        .filter(valid)
        .map(|anchor| anchor.own.clone())
        .collect();
    // What its key is for, the library asks of none of these.
    let between: Vec<CertificateDer<'_>> = above
        .iter()
        .chain(&authorities.between)
        .filter(|der| Certificate::from_der(der).is_ok_and(|one| may_vouch(&one) == Ok(true)))
        .cloned()
        .collect();
    end.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        &between,
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
