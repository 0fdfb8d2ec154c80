//! What an operator is told of a model.

use rempart_hub::digest::Sha256;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Entry, Registry, State, Then};

/// A model and its state.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = AdminModel)]
pub struct Snapshot {
    pub id: String,
    object: &'static str,
    /// All that clients may ask for it by.
    names: Vec<String>,
    /// `generator`, `embedder`, `ranker` or `classifier`; `null` before it was loaded once.
    kind: Option<&'static str>,
    /// `loading`, `ready`, `draining`, `unloaded`, `idle` (unloaded until a request asks for it) or `failed`.
    state: &'static str,
    /// Bytes of memory that it takes at most; 0 where it isn't loaded.
    bytes: u64,
    /// Unix time in seconds; `null` where it never was.
    last_used: Option<i64>,
    /// SHA-256 of its files, as signatures of models have it: of the binary SHA-256 of each, ordered by path. `null` where neither a
    /// signature nor a manifest was checked.
    sha256: Option<String>,
    /// Who has signed it, if that was checked.
    signer: Option<String>,
    /// Why it is `failed`.
    error: Option<String>,
}

impl Registry {
    /// The SHA-256 that names the files of a model that is in memory, where that is known.
    pub fn sha256_of(&self, name: &str) -> Option<Sha256> {
        let entries = self.lock();
        let entry = entries.iter().find(|entry| entry.has(name))?;
        match &entry.state {
            State::Ready(loaded) => loaded.proof.sha256,
            _ => None,
        }
    }

    /// All models that are known, in the order in which they became so.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.lock().iter().map(Entry::snapshot).collect()
    }
}

impl Entry {
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            id: self.id().to_owned(),
            object: "model",
            names: self.names.clone(),
            kind: self.about.map(|about| about.kind.name()),
            state: self.state.name(),
            bytes: self.bytes,
            last_used: self.used.map(|used| used.unix_s),
            sha256: self
                .about
                .and_then(|about| about.sha256)
                .map(|sha256| sha256.to_string()),
            signer: self.signer.clone(),
            error: match &self.state {
                State::Failed { error, .. } => Some(error.clone()),
                _ => None,
            },
        }
    }
}

impl State {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready(_) => "ready",
            Self::Draining(Then::Stay | Then::Idle | Then::Reload) => "draining",
            Self::Unloaded { idle: false } => "unloaded",
            Self::Unloaded { idle: true } => "idle",
            Self::Failed { .. } => "failed",
        }
    }
}
