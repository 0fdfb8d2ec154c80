//! What was asked and answered, where a project has it recorded: sealed for a reader whose key the server does not have.
//!
//! The reader makes a pair of keys and gives the public one to who runs the server. Each record is sealed for it by hybrid public key
//! encryption (HPKE, RFC 9180, single-shot in its base mode, with X25519, HKDF with SHA-256 and AES-256-GCM): one message of what was
//! asked and one of what was answered, each compressed (gzip, RFC 1952) and bound to its request. Neither the database nor its secret opens
//! them; where the reader's key is destroyed, nothing does. A hash of each record is in its row of usage, and so in that chain.

mod told;

use std::fmt;
use std::io::{self, Read as _, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{
    Deserializable as _, Kem as _, OpModeR, OpModeS, Serializable as _, single_shot_open, single_shot_seal,
};
use serde::{Deserialize, Serialize};
use thiserror::Error as ThisError;

use crate::key::{from_hex, hex};
use crate::retention::{DAY_MS, DAY_S, Policy};
use crate::store::Error;
use crate::usage::hash;
pub(crate) use told::{Deletions, Mark, Told};

/// What is done of it, in the audit chain.
pub(crate) const SET: &str = "content.recording";
pub(crate) const DELETED: &str = "content.deleted";

/// Days that records can be kept: longer than requests are recorded is no use.
const DAYS_MAX: i64 = 366;
/// Days for which a project can be recorded before that must be decided anew.
pub const RECORDING_DAYS_MAX: i64 = 366;
/// What a text may unfold to: more than any body and answer, and no bomb.
const TEXT_BYTES_MAX: u64 = 256 << 20;
/// Of a reader's key, as much as its marks have.
const SHORT_CHARS: usize = 16;
/// Binds what is sealed to this use.
const INFO: &str = "rempart content 1";
/// What a reader's file begins with.
const KEY_PREFIX: &str = "rempart-content-key-1 ";

/// Of a key, either half.
const KEY_BYTES: usize = 32;

type Kem = X25519HkdfSha256;

/// What of a project is recorded, as the audit chain says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recording {
    /// For whom what was asked and answered is sealed: a public key in hexadecimal digits. `None`: it is not kept.
    pub reader: Option<String>,
    /// Whether a keyed hash of each prompt is kept.
    pub fingerprints: bool,
    /// Days until a record is deleted.
    pub days: i64,
    /// When it ends, Unix seconds.
    pub until: i64,
}

impl Recording {
    /// What keeps it from being set at a time, Unix seconds.
    ///
    /// # Errors
    /// Says which part is wrong.
    pub(crate) fn check(&self, now_s: i64) -> Result<(), String> {
        let longest = now_s.saturating_add(RECORDING_DAYS_MAX * DAY_S);
        if !(1..=DAYS_MAX).contains(&self.days) {
            return Err(format!("records are kept for 1 to {DAYS_MAX} days"));
        }
        if self.until > longest {
            return Err(format!(
                "a recording ends after {RECORDING_DAYS_MAX} days at the latest"
            ));
        }
        if !self.is_sound() {
            return Err("this is no reader's public key: that is 64 hexadecimal digits, which `rempart content keygen` prints".to_owned());
        }
        Ok(())
    }

    /// What keeps it from being kept for as long as it says, where rows of usage and of the audit chain go by a policy.
    ///
    /// # Errors
    /// Says which part is wrong.
    pub(crate) fn check_kept(&self, policy: &Policy, begun_s: i64) -> Result<(), String> {
        let longer = |days: Option<i64>, seconds: i64| days.is_some_and(|days| seconds > days * DAY_S);
        if longer(policy.usage, self.days * DAY_S) {
            return Err(format!(
                "records of {} days would go with their rows of usage, which are kept for {} (rempart retention)",
                self.days,
                policy.usage.unwrap_or_default()
            ));
        }
        if longer(policy.audit, self.until.saturating_sub(begun_s)) {
            return Err(format!(
                "the recording would outlast the row that tells of it, which is kept for {} days (rempart retention)",
                policy.audit.unwrap_or_default()
            ));
        }
        Ok(())
    }

    /// Whether its reader's key is one.
    pub(crate) fn is_sound(&self) -> bool {
        let sealed = |reader: &String| Sealed::seal(reader, "", &[], &[]).is_ok();
        self.reader.as_ref().is_none_or(sealed)
    }

    /// Whether anything is recorded at a time, Unix seconds.
    pub fn runs(&self, now_s: i64) -> bool {
        now_s < self.until && (self.reader.is_some() || self.fingerprints)
    }
}

/// What is recorded of a project, and which row of the audit chain says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    pub row: i64,
    /// When it was written, Unix milliseconds.
    pub at_ms: i64,
    pub recording: Recording,
}

/// A text, compressed: one member of gzip.
pub fn pack(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

/// The text that was packed.
fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    GzDecoder::new(packed)
        .take(TEXT_BYTES_MAX + 1)
        .read_to_end(&mut text)?;
    if text.len() as u64 > TEXT_BYTES_MAX {
        return Err(io::Error::other("it is larger than any that this program writes"));
    }
    Ok(text)
}

/// The record of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The request's identifier, as in its row of usage, and its project and key.
    pub request: String,
    pub project: String,
    pub key: String,
    /// When it began, and when the record is deleted, Unix milliseconds.
    pub began_ms: i64,
    pub due_ms: i64,
    /// A keyed hash of the prompt; empty where none is kept.
    pub fingerprint: String,
    /// The row of the audit chain that says that it is recorded.
    pub announced: i64,
    /// What is sealed; empty where it is not kept.
    pub sealed: Sealed,
}

/// What was asked and answered, each sealed by itself: in Base64 the encapsulated key and behind it the message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sealed {
    /// The public key of whose it is, in hexadecimal digits.
    pub reader: String,
    pub asked: String,
    pub answered: String,
}

impl Sealed {
    /// Of both messages together.
    pub(crate) fn bytes(&self) -> i64 {
        i64::try_from(self.asked.len() + self.answered.len()).unwrap_or(i64::MAX)
    }

    /// Seals packed texts of a request; nothing stands for a body that was not read.
    ///
    /// # Errors
    /// Where the reader's key is none.
    pub fn seal(reader: &str, request: &str, asked: &[u8], answered: &[u8]) -> Result<Self, Error> {
        let none = || Error::Refused("a reader's key is none".to_owned());
        let key = public_key(reader).ok_or_else(none)?;
        let seal = |packed: &[u8], part| {
            let info = info(request, part);
            let sealed =
                single_shot_seal::<AesGcm256, HkdfSha256, Kem>(&OpModeS::Base, &key, &info, packed, &[]);
            let (encapsulated, message) = sealed.map_err(|_| none())?;
            Ok::<_, Error>(BASE64.encode([encapsulated.to_bytes().as_slice(), &message].concat()))
        };
        Ok(Self {
            asked: seal(asked, "asked")?,
            answered: seal(answered, "answered")?,
            reader: reader.to_owned(),
        })
    }
}

impl Content {
    /// What its row of usage has of it: when it is due, which row of the audit chain says that it is recorded, for whom, and its hash.
    pub fn mark(&self) -> String {
        let sealed = &self.sealed;
        let texts = [
            &self.request,
            &self.fingerprint,
            &sealed.reader,
            &sealed.asked,
            &sealed.answered,
        ];
        format!(
            "{}:{}:{}:{}",
            self.due_ms,
            self.announced,
            short(&sealed.reader),
            hash(texts.into_iter().map(String::as_str))
        )
    }

    /// When a record that began then is due, Unix milliseconds.
    pub fn due(began_ms: i64, days: i64) -> i64 {
        began_ms.saturating_add(days.saturating_mul(DAY_MS))
    }
}

/// What a mark has of a reader's key.
fn short(reader: &str) -> &str {
    reader.get(..SHORT_CHARS).unwrap_or_default()
}

/// Where records do not hold.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub enum BrokenContent {
    #[error("the record of the request {0} is not the one that was written")]
    Changed(String),
    #[error("the record of the request {0} is missing, and its time has not come")]
    Missing(String),
    #[error("the request {0} was recorded, and the audit chain does not say that it was to be")]
    Unannounced(String),
}

/// What a message is bound to: this use, its request and its part.
fn info(request: &str, part: &str) -> Vec<u8> {
    [INFO, request, part].join("\0").into_bytes()
}

fn public_key(reader: &str) -> Option<<Kem as hpke::Kem>::PublicKey> {
    <Kem as hpke::Kem>::PublicKey::from_bytes(&from_hex::<KEY_BYTES>(reader)?).ok()
}

/// The key that opens what is sealed for a reader. It is never printed but into its file.
pub struct ReaderKey(<Kem as hpke::Kem>::PrivateKey);

impl ReaderKey {
    /// Makes one of the system's randomness.
    ///
    /// # Errors
    /// Where the system has none.
    pub fn make() -> Result<Self, Error> {
        let mut seed = [0; KEY_BYTES];
        getrandom::fill(&mut seed)?;
        Ok(Self(Kem::derive_keypair(&seed).0))
    }

    /// Of the text of its file.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = from_hex::<KEY_BYTES>(text.trim().strip_prefix(KEY_PREFIX)?)?;
        <Kem as hpke::Kem>::PrivateKey::from_bytes(&bytes).ok().map(Self)
    }

    /// The text of its file.
    pub fn reveal(&self) -> String {
        format!("{KEY_PREFIX}{}\n", hex(&self.0.to_bytes()))
    }

    /// The public half, in hexadecimal digits.
    pub fn public(&self) -> String {
        hex(&Kem::sk_to_pk(&self.0).to_bytes())
    }

    /// What was asked and answered in a request, if it was sealed for this reader and is as it was written. Of a request whose body
    /// was not read nothing was asked.
    pub fn open(&self, request: &str, sealed: &Sealed) -> Option<(Option<Vec<u8>>, Vec<u8>)> {
        let open = |sealed: &str, part| {
            let sealed = BASE64.decode(sealed).ok()?;
            let (encapsulated, message) = sealed.split_at_checked(KEY_BYTES)?;
            let encapsulated = <Kem as hpke::Kem>::EncappedKey::from_bytes(encapsulated).ok()?;
            let (mode, info) = (OpModeR::Base, info(request, part));
            let packed = single_shot_open::<AesGcm256, HkdfSha256, Kem>(
                &mode,
                &self.0,
                &encapsulated,
                &info,
                message,
                &[],
            );
            packed.ok()
        };
        let asked = open(&sealed.asked, "asked")?;
        let answered = unpack(&open(&sealed.answered, "answered")?).ok()?;
        if asked.is_empty() {
            return Some((None, answered));
        }
        Some((Some(unpack(&asked).ok()?), answered))
    }
}

impl fmt::Debug for ReaderKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ReaderKey")
    }
}
