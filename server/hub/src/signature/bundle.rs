//! The file that a signature lies in: a Sigstore bundle 0.3 with a DSSE envelope around the statement.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

use super::chain::{self, Chain};
use super::error::Error;
use super::keys::{PrivateKey, PublicKey};
use super::statement::Statement;
use super::{Signer, Trust, read_bounded};
use crate::report::in_brief;

const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// A statement of as many resources as there may be, twice in base64.
const BUNDLE_BYTES_MAX: u64 = 64 << 20;
/// Most certificates of a bundle.
const CERTIFICATES_MAX: usize = 16;

/// A signature, read and not yet believed.
#[derive(Debug)]
pub struct Bundle {
    material: Material,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

#[derive(Debug)]
enum Material {
    /// SHA-256 of the public key as PEM, in hexadecimal; empty where the signer did not say.
    Key(String),
    /// The first one's key has signed.
    Certificates(Vec<CertificateDer<'static>>),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    media_type: String,
    verification_material: WireMaterial,
    dsse_envelope: Envelope,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireMaterial {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_key: Option<Hint>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    x509_certificate_chain: Option<Certificates>,
    /// Entries of a log that is elsewhere: nothing here asks it.
    #[serde(default, deserialize_with = "ignored")]
    tlog_entries: [(); 0],
}

/// Takes no memory, whatever it is.
fn ignored<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[(); 0], D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| [])
}

#[derive(Serialize, Deserialize)]
struct Hint {
    #[serde(default)]
    hint: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Certificates {
    certificates: Vec<RawCertificate>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawCertificate {
    raw_bytes: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
struct Signature {
    sig: String,
    #[serde(default)]
    keyid: String,
}

impl Bundle {
    /// Reads a signature.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let text = read_bounded(path, BUNDLE_BYTES_MAX)?;
        Self::parse(&text).map_err(|reason| Error::Invalid {
            path: path.to_owned(),
            reason,
        })
    }

    /// Reads the text of a signature.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let wire: Wire = serde_json::from_slice(text).map_err(|error| in_brief(&error))?;
        if wire.media_type != MEDIA_TYPE {
            return Err(format!("it is not of type {MEDIA_TYPE}"));
        }
        let envelope = wire.dsse_envelope;
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(format!("its payload is not of type {PAYLOAD_TYPE}"));
        }
        let [signature] = envelope.signatures.as_slice() else {
            return Err("it has not one signature".into());
        };
        let material = match wire.verification_material {
            WireMaterial {
                public_key: Some(key),
                x509_certificate_chain: None,
                ..
            } => Material::Key(key.hint.unwrap_or_default()),
            WireMaterial {
                public_key: None,
                x509_certificate_chain: Some(chain),
                ..
            } => Material::Certificates(certificates(&chain)?),
            _ => return Err("it names neither a key nor a chain of certificates".into()),
        };
        Ok(Self {
            material,
            payload: decode("payload", &envelope.payload)?,
            signature: decode("signature", &signature.sig)?,
        })
    }

    /// The list that was signed, and by whom, if that is somebody to be trusted.
    ///
    /// # Errors
    /// Why it can't be trusted.
    pub fn verify(&self, trust: &Trust) -> Result<(Statement, Signer), String> {
        let message = encoded(&self.payload);
        let signer = match &self.material {
            Material::Key(hint) => {
                let hinted = |key: &&PublicKey| hint.is_empty() || key.fingerprint().to_string() == *hint;
                let mut keys = trust.keys.iter().filter(hinted).peekable();
                if keys.peek().is_none() {
                    return Err(if trust.keys.is_empty() {
                        "it was signed with a key, and no key is trusted, only certificates are".into()
                    } else {
                        let hint: String = hint.chars().take(64).collect();
                        format!("it was signed with another key than those that are trusted: {hint:?}")
                    });
                }
                let key = keys.find(|key| key.has_signed(&message, &self.signature));
                let key = key.ok_or("the signature is wrong: it, or what it signs, was altered")?;
                Signer::Key(key.fingerprint())
            }
            Material::Certificates(certificates) => {
                let (key, signer) = chain::trusted(certificates, &trust.authorities)?;
                if !key.has_signed(&message, &self.signature) {
                    return Err("the signature is wrong: it, or what it signs, was altered".into());
                }
                signer
            }
        };
        // Only now: what nobody signed is not even looked at.
        Ok((Statement::parse(&self.payload)?, signer))
    }
}

/// Signs a statement; the text of a bundle.
pub(super) fn sign(statement: &Statement, key: &PrivateKey, chain: Option<&Chain>) -> Result<Vec<u8>, Error> {
    let payload = statement.json();
    let signature = key.sign(&encoded(&payload))?;
    let raw = |certificate: &CertificateDer<'_>| RawCertificate {
        raw_bytes: STANDARD.encode(certificate),
    };
    let wire = Wire {
        media_type: MEDIA_TYPE.to_owned(),
        verification_material: WireMaterial {
            public_key: chain.is_none().then(|| Hint {
                hint: Some(key.public().fingerprint().to_string()),
            }),
            x509_certificate_chain: chain.map(|chain| Certificates {
                certificates: chain.certificates().iter().map(raw).collect(),
            }),
            tlog_entries: [],
        },
        dsse_envelope: Envelope {
            payload: STANDARD.encode(&payload),
            payload_type: PAYLOAD_TYPE.to_owned(),
            signatures: vec![Signature {
                sig: STANDARD.encode(signature),
                keyid: String::new(),
            }],
        },
    };
    let mut text = serde_json::to_vec(&wire).expect("strings always serialize");
    text.push(b'\n');
    Ok(text)
}

/// What is signed of a payload: DSSE's pre-authentication encoding, version 1.
fn encoded(payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

fn certificates(chain: &Certificates) -> Result<Vec<CertificateDer<'static>>, String> {
    if !(1..=CERTIFICATES_MAX).contains(&chain.certificates.len()) {
        return Err(format!("it has not 1 to {CERTIFICATES_MAX} certificates"));
    }
    chain
        .certificates
        .iter()
        .map(|raw| decode("certificate", &raw.raw_bytes).map(CertificateDer::from))
        .collect()
}

fn decode(what: &str, text: &str) -> Result<Vec<u8>, String> {
    STANDARD
        .decode(text)
        .map_err(|_| format!("its {what} is not base64"))
}
