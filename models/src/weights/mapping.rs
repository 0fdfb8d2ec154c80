//! A weights file mapped into memory, read only.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use memmap2::{Advice, Mmap, UncheckedAdvice};

use super::{Error, Refusal};

/// The map and the file behind it.
///
/// A map shows the file as it is at each read. If another process shortens the file, reading the lost pages raises
/// SIGBUS, which ends the process and cannot be caught; if it rewrites the file, the weights change under the model.
/// So weight files must be replaced by renaming a new file over them, never in place. [`Mapping::check_unchanged`]
/// tells whether that was kept.
#[derive(Debug)]
pub(super) struct Mapping {
    path: PathBuf,
    file: File,
    length: u64,
    modified: Option<SystemTime>,
    identity: [u64; 4],
    map: Arc<Mmap>,
    bytes: Bytes,
}

/// What the bytes of a map belong to.
struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn identity(metadata: &Metadata) -> [u64; 4] {
    let changed = metadata
        .mtime()
        .wrapping_mul(1_000_000_000)
        .wrapping_add(metadata.mtime_nsec());
    [
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        changed.cast_unsigned(),
    ]
}

impl Mapping {
    /// Maps a regular file of at least `bytes_min` bytes.
    pub(super) fn open(path: &Path, bytes_min: u64) -> Result<Self, Error> {
        // Asked before opening, because opening a pipe waits for a writer.
        let kind = std::fs::metadata(path).map_err(|source| Error::io(path, "open", source))?;
        if !kind.is_file() {
            return Err(Refusal::new("file", "something else", "a regular file is needed").of(path));
        }
        let file = File::open(path).map_err(|source| Error::io(path, "open", source))?;
        let metadata = file
            .metadata()
            .map_err(|source| Error::io(path, "read the length", source))?;
        let length = metadata.len();
        if length < bytes_min {
            let rule = format!("the shortest valid file has {bytes_min}");
            return Err(Refusal::new("file length", format!("{length} bytes"), rule).of(path));
        }
        let map = map(&file).map_err(|source| Error::io(path, "map", source))?;
        let mapping = Self {
            path: path.to_path_buf(),
            file,
            length,
            modified: metadata.modified().ok(),
            identity: identity(&metadata),
            bytes: Bytes::from_owner(Owner(Arc::clone(&map))),
            map,
        };
        mapping.check_unchanged()?;
        Ok(mapping)
    }

    /// What tells the file from every other, as it was mapped: its device, its number there, its bytes, and when it was changed in
    /// nanoseconds.
    pub(super) fn identity(&self) -> [u64; 4] {
        self.identity
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Reads a part of the map ahead, if `part` is one: in one call, where each page's first use would be a fault of its
    /// own. Best effort: without it the pages come as they are used.
    pub(super) fn read_ahead(&self, part: &[u8]) {
        #[cfg(target_os = "linux")]
        let advice = Advice::PopulateRead;
        #[cfg(not(target_os = "linux"))]
        let advice = Advice::WillNeed;
        if let Some(at) = self.offset(part) {
            let _unsupported = self.map.advise_range(advice, at, part.len());
        }
    }

    /// Gives a part's memory back, if it is one of this map: it is read from the file again if it is used again.
    #[expect(unsafe_code, reason = "the advice would lose data in maps of another kind")]
    pub(super) fn release(&self, part: &[u8]) {
        if let Some(at) = self.offset(part) {
            // SAFETY: the map is read only, so that its pages are the file's: those of neighbours on the part's first and
            // last page too, which are read again.
            let _unsupported = unsafe {
                self.map
                    .unchecked_advise_range(UncheckedAdvice::DontNeed, at, part.len())
            };
        }
    }

    fn offset(&self, part: &[u8]) -> Option<usize> {
        let at = part.as_ptr().addr().checked_sub(self.map.as_ptr().addr())?;
        (at < self.map.len() && part.len() <= self.map.len() - at).then_some(at)
    }

    /// Refuses when the file no longer has the length or the time of change that it was mapped with.
    pub(super) fn check_unchanged(&self) -> Result<(), Error> {
        let now = self
            .file
            .metadata()
            .map_err(|source| Error::io(&self.path, "read the length", source))?;
        let mapped = self.bytes.len() as u64;
        if now.len() != self.length || mapped != self.length {
            let found = format!("{} bytes", now.len());
            let rule = format!("it had {} when it was opened and must not change", self.length);
            return Err(Refusal::new("file length", found, rule).of(&self.path));
        }
        if now.modified().ok() != self.modified {
            let rule = "it must not change while it is loaded";
            return Err(Refusal::new("file content", "a later time of change", rule).of(&self.path));
        }
        Ok(())
    }
}

#[expect(
    unsafe_code,
    reason = "weights are too large to copy, and a memory map cannot be made safely"
)]
fn map(file: &File) -> std::io::Result<Arc<Mmap>> {
    // SAFETY: the map is read only and nothing in this process writes to the file. That no
    // other process does is the operator's part, documented on `Mapping` and checked by `check_unchanged`; every
    // value read from the map is checked when it is read, never trusted from an earlier reading.
    let map = unsafe { Mmap::map(file)? };
    Ok(Arc::new(map))
}
