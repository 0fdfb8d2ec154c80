//! Keys that sign models: ECDSA on P-256 and P-384 as OpenSSF model signing has them, and Ed25519, which only Rempart has.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1,
    ECDSA_P384_SHA384_ASN1_SIGNING, ED25519, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair,
    KeyPair as _, UnparsedPublicKey, VerificationAlgorithm,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use super::error::Error;
use super::read_bounded;
use crate::digest::Sha256;

/// A key in PEM has some hundred bytes; a path to something else should not fill the memory.
const KEY_BYTES_MAX: u64 = 64 << 10;
/// Base64 digits in a line of PEM.
const PEM_LINE: usize = 64;
/// OIDs of RFC 5480 and RFC 8410.
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const ED25519_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
/// What comes first in a PKCS #8 key on these curves: version 0, and the algorithm.
const P256_PKCS8: &[u8] =
    b"\x02\x01\x00\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
const P384_PKCS8: &[u8] =
    b"\x02\x01\x00\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22";
const KINDS: &str = "a model key is ECDSA on P-256 or P-384, or Ed25519";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    P256,
    P384,
    Ed25519,
}

/// A key that signatures are checked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    algorithm: Algorithm,
    /// As the algorithm writes it.
    point: Vec<u8>,
    fingerprint: Sha256,
}

/// A key that signs.
pub struct PrivateKey {
    pair: Pair,
    public: PublicKey,
}

enum Pair {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl PublicKey {
    /// Reads the one public key of a PEM file.
    ///
    /// # Errors
    /// What is wrong with the file; never what is in it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let refuse = |reason| Error::Key {
            path: path.to_owned(),
            reason,
        };
        let text = read_bounded(path, KEY_BYTES_MAX)?;
        let mut keys = SubjectPublicKeyInfoDer::pem_slice_iter(&text);
        let first = keys
            .next()
            .ok_or_else(|| refuse("no public key in it (`-----BEGIN PUBLIC KEY-----`)"))?;
        let first = first.map_err(|_| refuse("damaged PEM"))?;
        if keys.next().is_some() {
            return Err(refuse("more than one key in it: give each a file of its own"));
        }
        Self::from_der(&first).map_err(refuse)
    }

    /// A key as certificates have it (`SubjectPublicKeyInfo`).
    pub(super) fn from_der(der: &[u8]) -> Result<Self, &'static str> {
        let info = SubjectPublicKeyInfoOwned::from_der(der).map_err(|_| "the public key in it is damaged")?;
        let parameters = info.algorithm.parameters.as_ref();
        let curve = parameters.and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        let algorithm = match (info.algorithm.oid, curve) {
            (EC, Some(P256)) => Algorithm::P256,
            (EC, Some(P384)) => Algorithm::P384,
            (ED25519_ID, _) if parameters.is_none() => Algorithm::Ed25519,
            _ => return Err(KINDS),
        };
        let point = info.subject_public_key.as_bytes().unwrap_or_default();
        Self::new(algorithm, point)
    }

    fn new(algorithm: Algorithm, point: &[u8]) -> Result<Self, &'static str> {
        let (length, first) = match algorithm {
            Algorithm::P256 => (65, Some(&4)),
            Algorithm::P384 => (97, Some(&4)),
            Algorithm::Ed25519 => (32, point.first()),
        };
        if point.len() != length || point.first() != first {
            return Err(
                "the public key in it has the wrong length, or is a compressed point: write it uncompressed (openssl ec -conv_form uncompressed)",
            );
        }
        let der = info(algorithm, point).ok_or("the public key in it is damaged")?;
        Ok(Self {
            algorithm,
            point: point.to_vec(),
            fingerprint: Sha256::of(pem(&der).as_bytes()),
        })
    }

    /// SHA-256 of the key as PEM: what bundles name it by.
    pub fn fingerprint(&self) -> Sha256 {
        self.fingerprint
    }

    pub(super) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &dyn VerificationAlgorithm = match self.algorithm {
            Algorithm::P256 => &ECDSA_P256_SHA256_ASN1,
            Algorithm::P384 => &ECDSA_P384_SHA384_ASN1,
            Algorithm::Ed25519 => &ED25519,
        };
        UnparsedPublicKey::new(algorithm, &self.point)
            .verify(message, signature)
            .is_ok()
    }
}

impl PrivateKey {
    /// Reads the one private key of a PEM file: PKCS #8, or SEC 1 as `openssl ecparam -genkey` writes it.
    ///
    /// # Errors
    /// What is wrong with the file; never what is in it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let refuse = |reason| Error::Key {
            path: path.to_owned(),
            reason,
        };
        let text = read_bounded(path, KEY_BYTES_MAX)?;
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
            refuse("no private key in it (`-----BEGIN PRIVATE KEY-----` or `EC PRIVATE KEY`; one with a passphrase is of no use)")
        })?;
        match key {
            PrivateKeyDer::Pkcs8(key) => Self::from_pkcs8(key.secret_pkcs8_der()),
            PrivateKeyDer::Sec1(key) => {
                let wrapped = |start| Self::from_pkcs8(&pkcs8(start, key.secret_sec1_der()));
                wrapped(P256_PKCS8).or_else(|_| wrapped(P384_PKCS8))
            }
            _ => Err(KINDS),
        }
        .map_err(refuse)
    }

    fn from_pkcs8(der: &[u8]) -> Result<Self, &'static str> {
        let random = SystemRandom::new();
        let ecdsa = |signing: &'static EcdsaSigningAlgorithm, algorithm| {
            let pair = EcdsaKeyPair::from_pkcs8(signing, der, &random).ok()?;
            let public = PublicKey::new(algorithm, pair.public_key().as_ref()).ok()?;
            let pair = Pair::Ecdsa(pair);
            Some(Self { pair, public })
        };
        let edwards = || {
            let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).ok()?;
            let public = PublicKey::new(Algorithm::Ed25519, pair.public_key().as_ref()).ok()?;
            let pair = Pair::Ed25519(pair);
            Some(Self { pair, public })
        };
        ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING, Algorithm::P256)
            .or_else(|| ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING, Algorithm::P384))
            .or_else(edwards)
            .ok_or(KINDS)
    }

    /// The other half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Whether the reference implementation knows such keys.
    pub fn is_of_openssf(&self) -> bool {
        self.public.algorithm != Algorithm::Ed25519
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        match &self.pair {
            Pair::Ecdsa(pair) => {
                let signature = pair.sign(&SystemRandom::new(), message);
                Ok(signature.map_err(|_| Error::Signing)?.as_ref().to_vec())
            }
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
        }
    }
}

/// The key as certificates have it, in the one form that everybody writes: the fingerprint is of that.
fn info(algorithm: Algorithm, point: &[u8]) -> Option<Vec<u8>> {
    use x509_cert::der::Any;
    use x509_cert::der::asn1::BitString;
    use x509_cert::spki::AlgorithmIdentifier;
    let parameters = |curve: &ObjectIdentifier| Any::encode_from(curve).ok();
    let (oid, parameters) = match algorithm {
        Algorithm::P256 => (EC, Some(parameters(&P256)?)),
        Algorithm::P384 => (EC, Some(parameters(&P384)?)),
        Algorithm::Ed25519 => (ED25519_ID, None),
    };
    let info = SubjectPublicKeyInfoOwned {
        algorithm: AlgorithmIdentifier { oid, parameters },
        subject_public_key: BitString::from_bytes(point).ok()?,
    };
    info.to_der().ok()
}

fn pem(der: &[u8]) -> String {
    let mut text = String::from("-----BEGIN PUBLIC KEY-----\n");
    for (index, digit) in STANDARD.encode(der).chars().enumerate() {
        if index > 0 && index % PEM_LINE == 0 {
            text.push('\n');
        }
        text.push(digit);
    }
    text + "\n-----END PUBLIC KEY-----\n"
}

/// A SEC 1 key (RFC 5915) within PKCS #8 (RFC 5208), which is what ring reads.
fn pkcs8(start: &[u8], sec1: &[u8]) -> Vec<u8> {
    let key = element(0x04, sec1);
    element(0x30, &[start, &key].concat())
}

/// Tag, length and content in DER.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let digits = &length[length.iter().take_while(|&&byte| byte == 0).count()..];
    let mut element = vec![tag];
    if content.len() >= 0x80 {
        element.push(0x80 | u8::try_from(digits.len()).expect("a usize has 8 bytes"));
    }
    element.extend(if content.is_empty() { &[0] } else { digits });
    element.extend(content);
    element
}
