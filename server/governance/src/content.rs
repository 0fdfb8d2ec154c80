//! What was asked and answered, where a project has it recorded: sealed for a reader whose key the server does not have.
//!
//! The reader makes a pair of keys and gives the public one to who runs the server. Each record is sealed for it by hybrid public key
//! encryption (HPKE, RFC 9180, single-shot in its base mode, with X25519, HKDF with SHA-256 and AES-256-GCM): one message of what was
//! asked and one of what was answered, each compressed (gzip, RFC 1952) and bound to its request. Neither the database nor its secret opens
//! them; where the reader's key is destroyed, nothing does. A hash of each record is in its row of usage, and so in that chain.

use std::collections::BTreeMap;
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

use crate::audit::AuditEvent;
use crate::key::{from_hex, hex};
use crate::retention::{AHEAD_MAX_MS, DAY_MS, DAY_S, Policy, RUN, Trimmed};
use crate::store::Error;
use crate::usage::hash;

/// What is done of it, in the audit chain.
pub(crate) const SET: &str = "content.recording";
pub(crate) const DELETED: &str = "content.deleted";
const RESTORED: &str = "database.restored";

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

/// What a mark says beside the hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark<'a> {
    /// Unix milliseconds.
    pub(crate) due_ms: i64,
    pub(crate) announced: i64,
    /// The beginning of the reader's key; empty where nothing is sealed.
    reader: &'a str,
}

impl<'a> Mark<'a> {
    pub(crate) fn read(mark: &'a str) -> Option<Self> {
        let mut parts = mark.split(':');
        Some(Self {
            due_ms: parts.next()?.parse().ok()?,
            announced: parts.next()?.parse().ok()?,
            reader: parts.next()?,
        })
    }
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

/// What the audit chain tells of records: what was to be recorded, and what was deleted before its time.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Where the chain began once its beginning was deleted, each time, and when that was, Unix milliseconds.
    begins: Vec<(i64, i64)>,
    /// By row: the project's identifier, what was to be recorded of it, and when another row took its place, Unix milliseconds.
    announced: BTreeMap<i64, (String, Announced, i64)>,
    /// The last of these rows, by project.
    last: BTreeMap<String, i64>,
    deletions: Deletions,
}

/// Records that were deleted: those of requests that began before a time, Unix milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Deletions {
    all_ms: Option<i64>,
    projects: BTreeMap<String, i64>,
    keys: BTreeMap<String, i64>,
}

impl Told {
    /// Takes the next row of the chain; `begins`: it is the first of a chain whose beginning was deleted.
    pub(crate) fn take(&mut self, row: &AuditEvent, begins: bool) {
        if row.action == RUN
            && let Ok(Trimmed { audit: Some(cut), .. }) = Trimmed::read(row.seq, &row.detail)
        {
            self.begins.push((cut.seq, row.at_ms));
        }
        if begins {
            // What was deleted before nobody can tell.
            self.deletions.all_ms = Some(row.at_ms);
        }
        if row.action == RESTORED {
            // A copy of a database has no records.
            self.deletions.all_ms = self.deletions.all_ms.max(Some(row.at_ms));
        }
        if row.action == DELETED {
            self.deletions.take(&row.object, row.at_ms, &row.detail);
        }
        if row.action == SET
            && let Ok(recording) = serde_json::from_str(&row.detail)
        {
            let announced = Announced {
                row: row.seq,
                at_ms: row.at_ms,
                recording,
            };
            let before = self.last.insert(row.object.clone(), row.seq);
            if let Some((.., ended_ms)) = before.and_then(|before| self.announced.get_mut(&before)) {
                *ended_ms = row.at_ms;
            }
            self.announced
                .insert(row.seq, (row.object.clone(), announced, i64::MAX));
        }
    }

    /// Whether a request was to be recorded so.
    pub(crate) fn announced(&self, project: &str, began_ms: i64, mark: Mark<'_>) -> bool {
        let Some((object, announced, ended_ms)) = self.announced.get(&mark.announced) else {
            // That row is gone with others: its recording ended before they went.
            let gone = |(begin, _): &&(i64, i64)| (1..*begin).contains(&mark.announced);
            let by = self.begins.iter().find(gone);
            return by.is_some_and(|(_, at_ms)| began_ms <= at_ms.saturating_add(AHEAD_MAX_MS));
        };
        // Who has a project recorded may have another clock than the server.
        let Announced { at_ms, recording, .. } = announced;
        let until_ms = recording.until.saturating_mul(1_000);
        let within = at_ms.saturating_sub(AHEAD_MAX_MS)..until_ms.min(ended_ms.saturating_add(AHEAD_MAX_MS));
        object == project
            && within.contains(&began_ms)
            && mark.due_ms == Content::due(began_ms, recording.days)
            && mark.reader == short(recording.reader.as_deref().unwrap_or_default())
    }

    /// Whether the record of a request was deleted before its time.
    pub(crate) fn deleted(&self, project: &str, key: &str, began_ms: i64) -> bool {
        self.deletions.cover(project, key, began_ms)
    }
}

impl Deletions {
    /// Takes a row that tells of one.
    pub(crate) fn take(&mut self, object: &str, at_ms: i64, detail: &str) {
        let OfKeys { keys } = serde_json::from_str(detail).unwrap_or_default();
        let later = |known: &mut BTreeMap<String, i64>, of: String| {
            let known = known.entry(of).or_insert(at_ms);
            *known = at_ms.max(*known);
        };
        later(&mut self.projects, object.to_owned());
        for key in keys {
            later(&mut self.keys, key);
        }
    }

    /// Whether the record of a request is among them.
    pub(crate) fn cover(&self, project: &str, key: &str, began_ms: i64) -> bool {
        let times = [
            self.all_ms,
            self.projects.get(project).copied(),
            self.keys.get(key).copied(),
        ];
        times.into_iter().flatten().any(|at_ms| began_ms <= at_ms)
    }
}

/// What a deletion of somebody's records says.
#[derive(Default, Deserialize)]
struct OfKeys {
    #[serde(default)]
    keys: Vec<String>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retention::Cut;

    fn row(seq: i64, at_ms: i64, action: &str, detail: String) -> AuditEvent {
        AuditEvent {
            seq,
            at_ms,
            actor: "x".to_owned(),
            action: action.to_owned(),
            object: "proj_a".to_owned(),
            detail,
            previous: String::new(),
            hash: String::new(),
        }
    }

    #[test]
    fn a_row_that_is_gone_has_announced_no_request_that_came_later() {
        let cut = |seq| {
            let audit = Some(Cut {
                seq,
                hash: String::new(),
                at_ms: 0,
                days: 32,
            });
            let trimmed = Trimmed {
                audit,
                ..Trimmed::default()
            };
            trimmed.detail()
        };
        let (first, second) = (100 * DAY_MS, 200 * DAY_MS);
        let mut told = Told::default();
        told.take(&row(8, 0, "x", "{}".to_owned()), true);
        told.take(&row(20, first, RUN, cut(6)), false);
        told.take(&row(30, second, RUN, cut(8)), false);
        let announced = |row: i64, began_ms| {
            let mark = format!("9:{row}::h");
            told.announced("proj_a", began_ms, Mark::read(&mark).unwrap())
        };
        assert!(announced(5, first) && announced(7, second));
        assert!(!announced(5, first + DAY_MS) && !announced(7, second + DAY_MS));
        assert!(!announced(0, first) && !announced(8, first) && !announced(9, first));
        // And none of a chain that is whole.
        let told = Told::default();
        assert!(!told.announced("proj_a", 0, Mark::read("9:1::h").unwrap()));
        assert_eq!(Mark::read("9:x::h"), None);
    }
}
