//! Why a model can't be signed, or its signature proves nothing.

use std::io;
use std::path::PathBuf;

use super::{FILES_MAX, SUFFIX};
use crate::report::Report;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: more than {limit} bytes", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("{}: {reason}", path.display())]
    Key { path: PathBuf, reason: &'static str },
    #[error("{}: not a model signature that can be used: {reason}", path.display())]
    Invalid { path: PathBuf, reason: String },
    #[error("{}: {reason}", path.display())]
    Untrusted { path: PathBuf, reason: String },
    #[error("{} has no signature: neither {} beside it nor {} in its folder", file.display(), beside.display(), inside.display())]
    Unsigned {
        file: PathBuf,
        beside: PathBuf,
        inside: PathBuf,
    },
    #[error("{} has no signature: there is no {}", folder.display(), inside.display())]
    FolderUnsigned { folder: PathBuf, inside: PathBuf },
    #[error("the model is not what was signed in {}: {}", path.display(), summary(report))]
    Differs { path: PathBuf, report: Report },
    #[error("{}: {reason}", path.display())]
    Content { path: PathBuf, reason: &'static str },
    #[error("{}: more than {FILES_MAX} files", path.display())]
    TooMany { path: PathBuf },
    #[error(
        "{}: files were changed while they were loaded: what was checked may not be what was loaded",
        path.display()
    )]
    Changed { path: PathBuf },
    #[error("{} is the model itself: a signature goes into a file of its own, such as {}{SUFFIX}", path.display(), path.display())]
    OverModel { path: PathBuf },
    #[error("{} is there, and is no signature: it is not overwritten", path.display())]
    OverOther { path: PathBuf },
    #[error("the key could not sign. This is a bug.")]
    Signing,
}

fn summary(report: &Report) -> String {
    let Some(first) = report.differences.first() else {
        return "nothing differs. This is a bug.".to_owned();
    };
    match report.differences.len() - 1 {
        0 => first.to_string(),
        1 => format!("{first}; and another difference"),
        more => format!("{first}; and {more} other differences"),
    }
}
