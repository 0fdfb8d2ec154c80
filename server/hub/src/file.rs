//! Files as they are read and written beside a running server, whatever somebody has put in their place.

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use ring::rand::{SecureRandom as _, SystemRandom};
use rustix::fs::OFlags;

/// Opens a regular file to be read.
///
/// # Errors
/// What the system says, and where it is something else.
pub fn open(path: &Path) -> io::Result<File> {
    // To open a pipe would wait for whoever writes into it, and one may take the file's place between a look and the opening.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::other("it is no regular file"))
}

/// All of a regular file; `None` where that is more than `bytes_max`.
///
/// # Errors
/// As [`open`], and what the system says while it is read.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    read_from(open(path)?, bytes_max)
}

/// The same of one that is open.
///
/// # Errors
/// What the system says.
pub fn read_from(file: File, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= bytes_max).then_some(bytes))
}

/// Writes a file, whole or not at all, in the place of what has its name. Without a `mode` it is what the process gives to
/// others.
///
/// # Errors
/// What the system says.
pub fn write(path: &Path, bytes: &[u8], mode: Option<u32>) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Random: what a process left behind that was killed is in nobody's way.
    let mut random = [0; 8];
    let filled = SystemRandom::new().fill(&mut random);
    filled.map_err(|_| io::Error::other("the system has no randomness"))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = folder.join(format!(".{name}.{:016x}", u64::from_ne_bytes(random)));
    let written = (|| {
        // Nothing that somebody has put there is written to.
        let mut file = File::create_new(&draft)?;
        if let Some(mode) = mode {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // The error that matters is the first one.
        drop(fs::remove_file(&draft));
    }
    written
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    /// A pipe that nobody writes into.
    fn pipe(folder: &Path) -> PathBuf {
        let path = folder.join("pipe");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        path
    }

    #[test]
    fn what_is_no_file_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        for path in [pipe(folder.path()), folder.path().to_owned(), "/dev/zero".into()] {
            let refused = read(&path, 10).unwrap_err().to_string();
            assert_eq!(refused, "it is no regular file", "{}", path.display());
        }
        assert_eq!(
            open(Path::new("/nowhere")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn no_more_is_read_than_may_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "1234").unwrap();
        assert_eq!(read(&path, 4).unwrap().as_deref(), Some(b"1234".as_slice()));
        assert_eq!(read(&path, 3).unwrap(), None);
        assert_eq!(read(&path, u64::MAX).unwrap().map(|bytes| bytes.len()), Some(4));
    }

    #[test]
    fn a_file_is_replaced_whole_and_has_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "before").unwrap();
        // Whoever has it open goes on with what it was.
        let before = File::open(&path).unwrap();
        write(&path, b"after", Some(0o640)).unwrap();
        assert_eq!(
            read_from(before, 10).unwrap().as_deref(),
            Some(b"before".as_slice())
        );
        assert_eq!(fs::read(&path).unwrap(), b"after");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        let inside = folder.path().join("missing").join("a");
        assert!(write(&inside, b"", None).is_err());
        // A folder is not replaced, and nothing is left of the try.
        let taken = folder.path().join("folder");
        fs::create_dir(&taken).unwrap();
        assert!(write(&taken, b"", None).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
