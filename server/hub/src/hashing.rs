//! SHA-256 of many files, or of pieces of them, on all processors.

use std::fs::Metadata;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::num::NonZero;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::digest::{Hasher, Sha256};
use crate::file;
use crate::progress::{Action, Event, Progress};

/// Most pieces hashed at once: beyond this a disk is the limit, not the processor.
const HASHERS_MAX: usize = 8;

/// What is to be hashed.
pub(crate) struct Piece {
    /// As progress names it.
    name: String,
    path: PathBuf,
    start: u64,
    bytes: u64,
    /// What the opened file must be, where that matters.
    stamp: Option<Stamp>,
}

/// Which file it is, and in which state: it differs after every write, replacement or renaming, whatever the clock of modification
/// was set to, since nobody but the kernel sets the time of the last change. (What is written to a mapping of the file changes that
/// time when the kernel writes it back.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    pub(crate) bytes: u64,
    modified: (i64, i64),
    /// Seconds and nanoseconds since 1970.
    pub(crate) changed: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Piece {
    /// A whole file, whatever its length is by the time it is read.
    pub(crate) fn whole(name: String, path: PathBuf, bytes: u64) -> Self {
        Self {
            name,
            path,
            start: 0,
            bytes,
            stamp: None,
        }
    }

    /// `bytes` of a file that must be as `stamp` says.
    pub(crate) fn part(name: String, path: PathBuf, stamp: Stamp, (start, bytes): (u64, u64)) -> Self {
        Self {
            name,
            path,
            start,
            bytes,
            stamp: Some(stamp),
        }
    }

    /// Length and digest of what is there.
    fn hash(&self, on_bytes: impl FnMut(u64)) -> io::Result<(u64, Sha256)> {
        let mut file = file::open(&self.path)?;
        let mut hasher = Hasher::default();
        match self.stamp {
            None => hasher.read_from(file, on_bytes)?,
            Some(stamp) => {
                if Stamp::of(&file.metadata()?) != stamp {
                    return Err(io::Error::other("it was changed while it was to be read"));
                }
                file.seek(SeekFrom::Start(self.start))?;
                hasher.read_from(file.take(self.bytes), on_bytes)?;
            }
        }
        Ok((hasher.bytes(), hasher.finish()))
    }
}

/// Hashes the pieces on as many threads as the machine has processors, and returns length and digest in the same order. The
/// error is the first one in that order; a piece that fails stops threads from starting others.
pub(crate) fn hash(
    pieces: &[Piece],
    progress: &dyn Progress,
) -> Result<Vec<(u64, Sha256)>, (PathBuf, io::Error)> {
    let threads = thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(HASHERS_MAX)
        .min(pieces.len());
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let results = Mutex::new(Vec::with_capacity(pieces.len()));
    let hash_some = || {
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = pieces.get(index) else {
                return;
            };
            let file = piece.name.as_str();
            progress.report(Event::Started {
                action: Action::Checking,
                file,
                bytes: piece.bytes,
                done: 0,
            });
            let result = piece.hash(|done| progress.report(Event::Advanced { file, done }));
            match &result {
                Ok(_) => progress.report(Event::Finished { file }),
                Err(_) => failed.store(true, Ordering::Relaxed),
            }
            let result = result.map_err(|source| (piece.path.clone(), source));
            results
                .lock()
                .expect("no thread panics while it holds the results")
                .push((index, result));
        }
    };
    thread::scope(|scope| {
        // The caller's thread is one of them.
        for _ in 1..threads {
            scope.spawn(hash_some);
        }
        hash_some();
    });
    let mut results = results
        .into_inner()
        .expect("no thread panics while it holds the results");
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}
