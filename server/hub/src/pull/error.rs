//! Why a pull failed, in words that say what to do. No message holds a token, a signed address or a server's text.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use indicatif::HumanBytes;

use crate::digest::Sha256;
use crate::{manifest, reference};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "`{path}` is a path on this machine: serve it with `rempart serve --model {path}`, there is nothing to pull"
    )]
    LocalPath { path: String },
    #[error("the hub's address `{endpoint}` cannot be used: {reason} (HF_ENDPOINT)")]
    Endpoint { endpoint: String, reason: &'static str },
    #[error("a token is visible ASCII without white space (HF_TOKEN)")]
    Token,
    #[error(transparent)]
    Reference(#[from] reference::Error),
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    #[error(
        "{endpoint} refused access to {repository} (401): it is private, gated or does not exist. {}",
        if *token_sent { "The token in HF_TOKEN was not accepted: check that it is valid and may read this repository" }
        else { "Set HF_TOKEN to a token that may read it" }
    )]
    Unauthorized {
        endpoint: String,
        repository: String,
        token_sent: bool,
    },
    #[error(
        "{endpoint} refused access to {repository} (403): it is gated or the token may not read it. Accept its terms at {endpoint}/{repository} and set HF_TOKEN to a token of that account"
    )]
    Forbidden { endpoint: String, repository: String },
    #[error("{endpoint} has no such thing (404): repository {repository}, revision {revision}{}", in_file(file.as_deref()))]
    NotFound {
        endpoint: String,
        repository: String,
        revision: String,
        file: Option<String>,
    },
    #[error("{endpoint} answered {status} to {what}")]
    Status {
        endpoint: String,
        status: u16,
        what: String,
    },
    #[error(
        "{endpoint}: {what} failed after {attempts} tries: {reason}. Run the same command again to go on from here"
    )]
    Unreachable {
        endpoint: String,
        what: String,
        attempts: u32,
        reason: String,
    },
    #[error("{endpoint}: {what}: {reason}")]
    Malformed {
        endpoint: String,
        what: String,
        reason: String,
    },
    #[error("{repository} lists a file with an unsafe name, `{name}`: refused")]
    UnsafeName { repository: String, name: String },
    #[error("{repository} has no model that can be served: {reason}")]
    NoModel { repository: String, reason: String },
    #[error("{repository} holds several GGUF files, name one as `hf:{repository}:FILE`: {files}")]
    SeveralGgufs { repository: String, files: String },
    #[error(
        "`{file}`: SHA-256 is {found}, {authority} says {expected}. The file was deleted: pull again, and distrust the source if it repeats"
    )]
    Digest {
        file: String,
        authority: &'static str,
        expected: String,
        found: Sha256,
    },
    #[error(
        "`{file}` is not the file that the hub lists: its git object id differs from {expected}. It was deleted: pull again"
    )]
    GitObject { file: String, expected: String },
    #[error("{}: {} needed, {} free", path.display(), HumanBytes(*needed), HumanBytes(*free))]
    Disk { path: PathBuf, needed: u64, free: u64 },
    #[error("offline (HF_HUB_OFFLINE is set) and {reference} is not complete in the cache {}: {reason}", cache.display())]
    Offline {
        reference: String,
        cache: PathBuf,
        reason: String,
    },
    #[error("{} is in the way: it was not put there by a pull. Move it, or replace it with `--force`", path.display())]
    Occupied { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the download stopped on a defect of this program: {0}")]
    Internal(&'static str),
}

/// How a try ended that did not succeed.
pub(super) enum Failure {
    /// Another try may succeed; the hub may have said when.
    Transient {
        reason: String,
        retry_after: Option<Duration>,
    },
    /// What is there already cannot be continued: begin again from the first byte.
    Restart {
        reason: String,
    },
    Fatal(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

impl Failure {
    pub(super) fn transient(reason: impl Into<String>) -> Self {
        Self::Transient {
            reason: reason.into(),
            retry_after: None,
        }
    }
}

fn in_file(file: Option<&str>) -> String {
    file.map(|file| format!(", file {file}")).unwrap_or_default()
}
