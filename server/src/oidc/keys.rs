//! The public keys of a login: a set of JSON Web Keys (RFC 7517) within limits, and of it those that can verify a token.

use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use rempart_hub::file;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use thiserror::Error;

use super::signature::KeyType;

/// Sets of large logins have some ten keys, of up to 3 KiB with their certificates.
pub const FILE_BYTES_MAX: u64 = 256 << 10;
pub const KEYS_MAX: usize = 64;
/// Keys of one identifier: a login may have one of each kind, or the next one beside the one before.
pub const SAME_ID_MAX: usize = 4;
/// Of the identifier of a key.
const ID_CHARS_TOLD: usize = 100;
/// What ring verifies with.
const RSA_BITS_MIN: usize = 2048;
const RSA_BITS_MAX: usize = 8192;

/// Why there are no keys. Never quotes what was read.
#[derive(Debug, Error)]
pub enum Error {
    #[error("{0}")]
    Read(io::Error),
    #[error("more than {FILE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("this is no set of JSON Web Keys: an object with an array `keys`")]
    NoSet,
    #[error("more than {KEYS_MAX} keys")]
    TooMany,
    #[error(
        "more than {SAME_ID_MAX} of its keys have one `kid`: each signature of that would be tried with all of them"
    )]
    SameId,
    #[error(
        "key {0} in it has a private or symmetric part: only the public keys that the login publishes belong there"
    )]
    Private(usize),
    #[error(
        "none of its keys can verify a token: RSA of {RSA_BITS_MIN} to {RSA_BITS_MAX} bits, EC on P-256 or P-384, and Ed25519 \
         can, unless `use`, `key_ops` or `alg` says that they are for something else"
    )]
    NoneUsable,
}

/// The keys that can verify.
#[derive(Debug)]
pub struct KeySet {
    keys: Vec<PublicKey>,
    /// How many are for something else, or can't be used.
    pub ignored: usize,
}

#[derive(Debug)]
struct PublicKey {
    id: Option<String>,
    /// What it may have signed by.
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

#[derive(Deserialize)]
struct WrittenSet {
    keys: Vec<Value>,
}

/// Of a key what decides and what verifies; certificates and the like are nothing to us.
#[derive(Deserialize)]
struct Written {
    kty: String,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    n: Option<String>,
    e: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// What only its owner knows.
#[derive(Deserialize)]
struct Private {
    d: Option<IgnoredAny>,
    p: Option<IgnoredAny>,
    q: Option<IgnoredAny>,
    k: Option<IgnoredAny>,
}

impl KeySet {
    /// Reads a file. Blocks while it does.
    ///
    /// # Errors
    /// What the system says, and what is wrong with the set.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let read = file::read(path, FILE_BYTES_MAX).map_err(Error::Read)?;
        Self::parse(&read.ok_or(Error::TooLarge)?)
    }

    /// Reads a set.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(Error::TooLarge);
        }
        let set: WrittenSet = serde_json::from_slice(bytes).map_err(|_| Error::NoSet)?;
        if set.keys.len() > KEYS_MAX {
            return Err(Error::TooMany);
        }
        let all = set.keys.len();
        let mut keys = Vec::new();
        for (at, written) in set.keys.into_iter().enumerate() {
            let private = Private::deserialize(&written);
            let has = |private: Private| {
                let parts = [private.d, private.p, private.q, private.k];
                parts.iter().any(Option::is_some)
            };
            if private.is_ok_and(has) {
                return Err(Error::Private(at + 1));
            }
            keys.extend(public_key(written));
        }
        if keys.is_empty() {
            return Err(Error::NoneUsable);
        }
        let same = |key: &PublicKey| keys.iter().filter(|other| other.id == key.id).count();
        if keys.iter().any(|key| key.id.is_some() && same(key) > SAME_ID_MAX) {
            return Err(Error::SameId);
        }
        let ignored = all - keys.len();
        Ok(Self { keys, ignored })
    }

    /// Identifiers and algorithms of those that can verify, one line each.
    pub fn told(&self) -> impl Iterator<Item = String> + '_ {
        self.keys.iter().map(|key| {
            let id: String = key
                .id
                .as_deref()
                .unwrap_or("(no kid)")
                .chars()
                .take(ID_CHARS_TOLD)
                .collect();
            let algorithms: Vec<String> = key
                .algorithms
                .iter()
                .map(|algorithm| format!("{algorithm:?}"))
                .collect();
            format!("{}  {}", id.escape_debug(), algorithms.join(", "))
        })
    }

    /// How many can verify.
    pub fn usable(&self) -> usize {
        self.keys.len()
    }

    /// The keys of this identifier that may sign by this algorithm, at most [`SAME_ID_MAX`]. A token that names none is of the only
    /// one there is.
    pub(super) fn fitting(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> impl Iterator<Item = &DecodingKey> {
        let named = move |key: &&PublicKey| match id {
            Some(id) => key.id.as_deref() == Some(id),
            None => self.keys.len() == 1,
        };
        let fitting = self.keys.iter().filter(named);
        let fitting = fitting.filter(move |key| key.algorithms.contains(&algorithm));
        fitting.map(|key| &key.key)
    }
}

/// `None`: it is for something else, or of no use.
fn public_key(written: Value) -> Option<PublicKey> {
    let written: Written = serde_json::from_value(written).ok()?;
    let signs = written.purpose.as_deref().is_none_or(|purpose| purpose == "sig");
    let verifies = written
        .key_ops
        .as_deref()
        .is_none_or(|operations| operations.iter().any(|one| one == "verify"));
    if !signs || !verifies {
        return None;
    }
    let bytes = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_ref()?).ok();
    let point = |length: usize| {
        let (x, y) = (bytes(&written.x)?, bytes(&written.y)?);
        let sound = x.len() == length && y.len() == length;
        sound.then(|| DecodingKey::from_ec_der(&[&[4], x.as_slice(), &y].concat()))
    };
    let (kind, key) = match (written.kty.as_str(), written.crv.as_deref()) {
        ("RSA", None) => (KeyType::Rsa, rsa(&bytes(&written.n)?, &bytes(&written.e)?)?),
        ("EC", Some("P-256")) => (KeyType::P256, point(32)?),
        ("EC", Some("P-384")) => (KeyType::P384, point(48)?),
        ("OKP", Some("Ed25519")) => {
            let x = bytes(&written.x).filter(|x| x.len() == 32)?;
            (KeyType::Ed25519, DecodingKey::from_ed_der(&x))
        }
        _ => return None,
    };
    let may = kind.algorithms();
    let algorithms = match &written.alg {
        None => may,
        Some(name) => {
            let named = name.parse().ok().filter(|named| may.contains(named))?;
            vec![named]
        }
    };
    Some(PublicKey {
        id: written.kid,
        algorithms,
        key,
    })
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Option<DecodingKey> {
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let modulus = &modulus[zeros..];
    let bits = modulus.len() * 8 - modulus.first()?.leading_zeros() as usize;
    (RSA_BITS_MIN..=RSA_BITS_MAX)
        .contains(&bits)
        .then(|| DecodingKey::from_rsa_raw_components(modulus, exponent))
}
