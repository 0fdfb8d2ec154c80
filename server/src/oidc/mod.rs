//! Tokens of the company's own login (OIDC), which people show where others show a key.
//!
//! The server asks no login: the public keys that it verifies with are in a file, which is read again when it changes.

mod keys;
mod signature;
mod token;

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rempart_governance::{Error, Store, now_s};
use ring::digest::{SHA256, digest};
use thiserror::Error as ThisError;

pub use keys::{Error as KeysError, FILE_BYTES_MAX, KEYS_MAX, KeySet, SAME_ID_MAX};
pub use token::{BadToken, Expected, TOKEN_BYTES_MAX, Verified, verify};

use crate::config::OidcSettings;
use crate::metrics::Metrics;

/// How often it is looked whether the file has changed.
const LOOK: Duration = Duration::from_secs(5);
/// Good tokens that are known, so that a request with one costs no signature.
const KNOWN_MAX: usize = 4096;
const KEYS: &str = "--oidc-keys";

/// Why tokens can't be verified.
#[derive(Debug, ThisError)]
#[error("{KEYS} {file}: {why}", file = file.display())]
pub struct Unusable {
    file: PathBuf,
    why: KeysError,
}

/// What verifies tokens.
pub struct Oidc {
    file: PathBuf,
    expected: Expected,
    /// Which has the secret that addresses are found by.
    store: Store,
    state: Mutex<State>,
    /// One at a time: an older reading must not take the place of a newer one.
    reading: Mutex<()>,
    metrics: Metrics,
}

/// The keys, and what they have verified: the one goes with the other.
struct State {
    keys: Arc<KeySet>,
    /// By the SHA-256 of the token.
    known: BTreeMap<[u8; 32], Known>,
    /// Counts uses.
    clock: u64,
    stamp: Option<Stamp>,
}

struct Known {
    whose: Arc<Whose>,
    /// Unix seconds.
    expires: i64,
    used: u64,
}

/// Whom a good token is of.
#[derive(Debug)]
pub struct Whose {
    /// The mark of their address.
    pub address: String,
    /// The mark of who they are at the login.
    pub subject: String,
    /// The same for who keeps it, sealed.
    plain: Plain,
}

/// Never printed.
struct Plain(String);

impl fmt::Debug for Plain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Plain")
    }
}

/// What tells a file from itself when it has changed, and from another that has taken its name.
type Stamp = (u64, u64, i64, i64, u64);

impl Oidc {
    /// Whether a text that was shown as a key is a token, good or not: no key has a dot.
    pub fn is_token(text: &str) -> bool {
        text.contains('.')
    }

    /// Reads the keys. Blocks while it does.
    ///
    /// # Errors
    /// Where they can't be used.
    pub fn open(settings: &OidcSettings, store: Store, metrics: &Metrics) -> Result<Self, Unusable> {
        let file = settings.keys.clone();
        let stamp = stamp(&file);
        let keys = KeySet::open(&file).map_err(|why| Unusable {
            file: file.clone(),
            why,
        })?;
        tell(&keys);
        Ok(Self {
            file,
            expected: settings.expected.clone(),
            store,
            state: Mutex::new(State {
                keys: Arc::new(keys),
                known: BTreeMap::new(),
                clock: 0,
                stamp,
            }),
            reading: Mutex::new(()),
            metrics: metrics.clone(),
        })
    }

    /// Whom a token is of, and until when it is good, Unix seconds.
    ///
    /// # Errors
    /// Why it is not good.
    pub fn whose(&self, token: &str) -> Result<(Arc<Whose>, i64), BadToken> {
        let (now, hash) = (now_s(), hash(token));
        let leeway = i64::try_from(self.expected.leeway_s).unwrap_or(i64::MAX);
        let keys = {
            let mut state = self.state();
            state.clock += 1;
            let clock = state.clock;
            if let Some(known) = state.known.get_mut(&hash) {
                if known.expires < now.saturating_sub(leeway) {
                    state.known.remove(&hash);
                    return Err(BadToken::Expired);
                }
                known.used = clock;
                return Ok((Arc::clone(&known.whose), known.expires.saturating_add(leeway)));
            }
            Arc::clone(&state.keys)
        };
        let verified = verify(token, &keys, &self.expected, now)?;
        let address = self.store.mark_of(&verified.address);
        let subject = self
            .store
            .mark_of_subject(&self.expected.issuer, &verified.subject);
        let whose = Arc::new(Whose {
            address: address.map_err(|_| BadToken::Address)?,
            subject: subject.map_err(|_| BadToken::Subject)?,
            plain: Plain(verified.subject),
        });
        let mut state = self.state();
        // Keys that were read meanwhile have not verified it.
        if Arc::ptr_eq(&keys, &state.keys) {
            state.remember(hash, Arc::clone(&whose), verified.expires);
        }
        Ok((whose, verified.expires.saturating_add(leeway)))
    }

    /// Has a person be from then on who shows a token of theirs.
    ///
    /// # Errors
    /// As [`Store::bind_subject`].
    pub async fn bind(&self, person: &str, whose: &Whose) -> Result<(), Error> {
        let subject = (self.expected.issuer.as_str(), whose.plain.0.as_str());
        self.store.bind_subject("server", person, subject).await
    }

    /// Reads the keys again. If they can't be used, those before go on. Blocks while it does.
    pub fn reload(&self) {
        let _turn = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(&self.file);
        let read = KeySet::open(&self.file);
        self.metrics.oidc_reloaded(read.is_ok());
        let mut state = self.state();
        // What can't be used is told once, and looked at again when it has changed again.
        state.stamp = stamp;
        match read {
            Ok(keys) => {
                state.keys = Arc::new(keys);
                state.known.clear();
                tell(&state.keys);
            }
            Err(why) => {
                drop(state);
                let file = self.file.display();
                tracing::error!(%file, %why, "{KEYS} was not read again: the keys before stay in use");
            }
        }
    }

    /// Reads the keys again when their file changes, for as long as it runs.
    pub async fn follow(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let own = Arc::clone(&self);
            // A file may be on a disk that is slow or gone.
            let looked = tokio::task::spawn_blocking(move || {
                let stamp = stamp(&own.file);
                let same = own.state().stamp == stamp;
                if !same {
                    own.reload();
                }
            });
            if looked.await.is_err() {
                tracing::error!("reading {KEYS} again panicked: the keys before stay in use");
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Remembers a token, in the place of the one that was not used for the longest where there are too many.
    fn remember(&mut self, hash: [u8; 32], whose: Arc<Whose>, expires: i64) {
        if self.known.len() >= KNOWN_MAX {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.used);
            if let Some(oldest) = oldest.map(|(hash, _)| *hash) {
                self.known.remove(&oldest);
            }
        }
        let used = self.clock;
        self.known.insert(hash, Known { whose, expires, used });
    }
}

fn tell(keys: &KeySet) {
    let (usable, ignored) = (keys.usable(), keys.ignored);
    tracing::info!(usable, ignored, "keys that verify tokens of the login were read");
}

fn hash(token: &str) -> [u8; 32] {
    let digest = digest(&SHA256, token.as_bytes());
    *digest.as_ref().first_chunk().expect("a digest has 32 bytes")
}

/// `None`: there is no such file now.
fn stamp(file: &std::path::Path) -> Option<Stamp> {
    let own = std::fs::metadata(file).ok()?;
    Some((own.dev(), own.ino(), own.mtime(), own.mtime_nsec(), own.size()))
}
