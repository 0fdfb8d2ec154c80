//! How far a file has been sent, in a file beside it that one sender holds.

use std::ffi::OsString;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, bail};

/// What the name of the file of the place ends with.
const SENT: &str = ".sent";
/// Of that file: three numbers.
const BYTES_MAX: u64 = 256;

/// Which file of its folder it is, whatever its name is by now. A number is given again when its file is gone, but not with the
/// time; that of the device is another one after a start of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    inode: u64,
    /// Nanoseconds since 1970; 0 where the file system does not tell.
    born: u64,
}

impl FileId {
    pub(super) fn new(about: &fs::Metadata) -> Self {
        let born = about.created().ok();
        let since = born.and_then(|born| born.duration_since(SystemTime::UNIX_EPOCH).ok());
        Self {
            inode: about.ino(),
            born: since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0)),
        }
    }
}

/// A place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: FileId,
    /// Bytes before it.
    pub(super) offset: u64,
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_ascii_whitespace().map(str::parse);
        let mut next = || numbers.next()?.ok();
        let file = FileId {
            inode: next()?,
            born: next()?,
        };
        let offset = next()?;
        numbers.next().is_none().then_some(Self { file, offset })
    }
}

/// The file that has the place.
#[derive(Debug)]
pub(super) struct Kept {
    file: fs::File,
    path: PathBuf,
}

impl Kept {
    /// Opens it, or begins it, beside the file that is sent; returns the place that it has.
    ///
    /// # Errors
    /// It can't be opened, is another sender's, or is something else.
    pub(super) fn open(sent: &Path) -> anyhow::Result<(Self, Option<Place>)> {
        let mut name = OsString::from(sent);
        name.push(SENT);
        let path = PathBuf::from(name);
        let mut options = fs::OpenOptions::new();
        let options = options.read(true).write(true).create(true).mode(0o640);
        let mut file = options
            .open(&path)
            .with_context(|| format!("{}: this is where it is kept what has been sent", path.display()))?;
        if file.try_lock().is_err() {
            bail!("{}: another process sends these traces", path.display());
        }
        let mut text = String::new();
        let read = (&mut file).take(BYTES_MAX).read_to_string(&mut text);
        let place = match read {
            Ok(_) if text.trim().is_empty() => None,
            Ok(_) => Place::parse(&text),
            Err(_) => None,
        };
        if place.is_none() && file.metadata()?.len() > 0 {
            bail!(
                "{}: not a place in a file of traces; without it all is sent from the beginning",
                path.display()
            );
        }
        Ok((Self { file, path }, place))
    }

    /// Replaces the place. All are of one length, so that no part of one stays behind another.
    ///
    /// # Errors
    /// It can't be written.
    pub(super) fn set(&self, place: Place) -> anyhow::Result<()> {
        let Place { file, offset } = place;
        let FileId { inode, born } = file;
        let text = format!("{inode:>20} {born:>20} {offset:>20}\n");
        self.file
            .write_all_at(text.as_bytes(), 0)
            .with_context(|| self.path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_kept_by_one_sender() {
        let folder = tempfile::tempdir().unwrap();
        let traces = folder.path().join("traces.jsonl");
        let file = FileId::new(&fs::metadata(folder.path()).unwrap());
        let place = |offset| Place { file, offset };
        let (kept, before) = Kept::open(&traces).unwrap();
        assert_eq!(before, None);
        kept.set(place(u64::MAX)).unwrap();
        kept.set(place(7)).unwrap();
        assert!(Kept::open(&traces).is_err(), "it is held");
        drop(kept);
        assert_eq!(Kept::open(&traces).unwrap().1, Some(place(7)));
        for strange in ["7", "1 2 3 4", "1 2 x", "\u{0}"] {
            fs::write(folder.path().join("traces.jsonl.sent"), strange).unwrap();
            let said = Kept::open(&traces).unwrap_err().to_string();
            assert!(said.contains("traces.jsonl.sent"), "{said}");
        }
    }
}
