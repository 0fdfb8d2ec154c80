//! The hub's shared cache as `huggingface_hub` lays it out, so that what either has fetched the other finds:
//! `models--ORG--NAME/{blobs/ETAG, refs/REVISION, snapshots/COMMIT/PATH → ../../blobs/ETAG}`. The etag of an LFS file is
//! its SHA-256, that of a small one its git object id: both are checked against the content before it is used.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use sha1::Digest;

use super::error::Error;
use crate::digest::{Hasher, Sha256, hex};
use crate::progress::{Action, Event, Progress};
use crate::reference::HubReference;

/// Deepest folder of a snapshot that is read.
const DEPTH_MAX: usize = 8;
/// Most files of a repository, cached or listed by the hub.
pub(super) const FILES_MAX: usize = 10_000;

/// What identifies the content of a file on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Identity {
    /// LFS: the SHA-256 of the content.
    Lfs(Sha256),
    /// A file kept in git itself: the object id, 40 hexadecimal digits.
    Git(String),
    /// In the cache by name only: its content is recorded, not compared.
    Unknown,
}

impl Identity {
    pub(super) fn from_etag(etag: &str) -> Self {
        match etag.parse() {
            Ok(sha256) => Self::Lfs(sha256),
            Err(_) if is_commit(etag) => Self::Git(etag.to_owned()),
            Err(_) => Self::Unknown,
        }
    }
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteFile {
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) identity: Identity,
}

/// Computes what proves a file while it is written or read.
#[derive(Clone)]
pub(super) struct Checker {
    sha256: Hasher,
    git: Option<sha1::Sha1>,
}

impl Checker {
    pub(super) fn new(file: &RemoteFile) -> Self {
        let git = matches!(file.identity, Identity::Git(_))
            .then(|| sha1::Sha1::new_with_prefix(format!("blob {}\0", file.bytes)));
        Self {
            sha256: Hasher::default(),
            git,
        }
    }

    pub(super) fn update(&mut self, chunk: &[u8]) {
        self.sha256.update(chunk);
        if let Some(git) = &mut self.git {
            git.update(chunk);
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.sha256.bytes()
    }

    /// The SHA-256, if the content is what the hub says.
    pub(super) fn finish(self, file: &RemoteFile) -> Result<Sha256, Error> {
        let found = self.sha256.finish();
        match &file.identity {
            Identity::Lfs(expected) if *expected != found => Err(Error::Digest {
                file: file.path.clone(),
                authority: "the hub",
                expected: expected.to_string(),
                found,
            }),
            Identity::Git(expected) => {
                let id = self.git.map(|git| hex(&git.finalize())).unwrap_or_default();
                if id == *expected {
                    return Ok(found);
                }
                Err(Error::GitObject {
                    file: file.path.clone(),
                    expected: expected.clone(),
                })
            }
            Identity::Lfs(_) | Identity::Unknown => Ok(found),
        }
    }
}

/// One repository's part of the cache.
pub(super) struct Cache {
    root: PathBuf,
    folder: String,
}

impl Cache {
    pub(super) fn new(root: &Path, reference: &HubReference) -> Self {
        let folder = format!("models--{}--{}", reference.organisation(), reference.name());
        Self {
            root: root.to_owned(),
            folder,
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Where a file's content lies, or will; `None` when its identity is unknown.
    pub(super) fn blob(&self, file: &RemoteFile) -> Option<PathBuf> {
        let etag = match &file.identity {
            Identity::Lfs(sha256) => sha256.to_string(),
            Identity::Git(id) => id.clone(),
            Identity::Unknown => return None,
        };
        Some(self.root.join(&self.folder).join("blobs").join(etag))
    }

    /// Holds other processes off a blob until the file is dropped. `on_wait` is called if one has it now.
    pub(super) fn lock(&self, blob: &Path, on_wait: impl FnOnce()) -> Result<File, Error> {
        let name = blob.file_name().unwrap_or_default().to_string_lossy();
        lock_file(
            &self
                .root
                .join(".locks")
                .join(&self.folder)
                .join(format!("{name}.lock")),
            on_wait,
        )
    }

    /// The commit that a branch or tag was last seen at.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.root.join(&self.folder).join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// The files that the cache has of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> Vec<RemoteFile> {
        let mut files = Vec::new();
        // An unreadable cache is an empty one: the caller says what is missing.
        drop(collect(&self.snapshot_dir(commit), "", 0, &mut files));
        files
    }

    /// The path of a file in a snapshot.
    pub(super) fn snapshot_file(&self, commit: &str, path: &str) -> PathBuf {
        self.snapshot_dir(commit).join(path)
    }

    fn snapshot_dir(&self, commit: &str) -> PathBuf {
        self.root.join(&self.folder).join("snapshots").join(commit)
    }

    /// Records that `file` at `commit` is the blob that was just checked.
    pub(super) fn link(&self, commit: &str, file: &RemoteFile, blob: &Path) -> Result<(), Error> {
        let link = self.snapshot_file(commit, &file.path);
        create_parent(&link)?;
        let up = "../".repeat(2 + file.path.matches('/').count());
        let name = blob.file_name().unwrap_or_default();
        let target = Path::new(&up).join("blobs").join(name);
        if fs::read_link(&link).is_ok_and(|current| current == target) {
            return Ok(());
        }
        if fs::symlink_metadata(&link).is_ok() {
            fs::remove_file(&link).map_err(|source| Error::Io {
                path: link.clone(),
                source,
            })?;
        }
        std::os::unix::fs::symlink(target, &link).map_err(|source| Error::Io { path: link, source })
    }

    /// Records the commit of a branch or tag, for offline use.
    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> Result<(), Error> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.root.join(&self.folder).join("refs").join(revision);
        create_parent(&path)?;
        fs::write(&path, commit).map_err(|source| Error::Io { path, source })
    }
}

/// Reads a file and returns its SHA-256 if it is the one meant. A file of another length, or none, is `Ok(None)`.
pub(super) fn check(
    path: &Path,
    file: &RemoteFile,
    progress: &dyn Progress,
) -> Result<Option<Sha256>, Error> {
    let io_error = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() == file.bytes => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(error)),
    }
    progress.report(Event::Started {
        action: Action::Checking,
        file: &file.path,
        bytes: file.bytes,
        done: 0,
    });
    let mut checker = Checker::new(file);
    feed(&mut checker, path, |done| {
        progress.report(Event::Advanced {
            file: &file.path,
            done,
        });
    })
    .map_err(io_error)?;
    progress.report(Event::Finished { file: &file.path });
    Ok(checker.finish(file).ok())
}

/// Feeds what a partial download has already brought.
pub(super) fn feed(checker: &mut Checker, path: &Path, mut on_bytes: impl FnMut(u64)) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match io::Read::read(&mut file, &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                checker.update(&buffer[..n]);
                on_bytes(checker.bytes());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Locks a file that exists for nothing else; the lock ends with the handle, or with the process.
pub(super) fn lock_file(path: &Path, on_wait: impl FnOnce()) -> Result<File, Error> {
    create_parent(path)?;
    let io_error = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .map_err(io_error)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            on_wait();
            file.lock().map_err(io_error)?;
        }
        Err(TryLockError::Error(source)) => return Err(io_error(source)),
    }
    Ok(file)
}

pub(super) fn create_parent(path: &Path) -> Result<(), Error> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|source| Error::Io {
        path: parent.to_owned(),
        source,
    })
}

/// 40 hexadecimal digits: a commit, or a git object's id.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn collect(dir: &Path, prefix: &str, depth: usize, files: &mut Vec<RemoteFile>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let relative = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}/{name}")
        };
        if entry.file_type()?.is_dir() {
            if depth < DEPTH_MAX {
                collect(&path, &relative, depth + 1, files)?;
            }
        } else if let Ok(metadata) = fs::metadata(&path)
            && files.len() < FILES_MAX
        {
            let target = fs::read_link(&path).unwrap_or_default();
            let etag = target
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            files.push(RemoteFile {
                path: relative,
                bytes: metadata.len(),
                identity: Identity::from_etag(&etag),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_git_object_id_is_checked() {
        // `printf 'hello\n' | git hash-object --stdin`
        let id = "ce013625030ba8dba906f756967f9e9ca394464a".to_owned();
        let file = RemoteFile {
            path: "a".into(),
            bytes: 6,
            identity: Identity::from_etag(&id),
        };
        assert_eq!(file.identity, Identity::Git(id));
        let mut checker = Checker::new(&file);
        checker.update(b"hel");
        let mut other = checker.clone();
        checker.update(b"lo\n");
        other.update(b"p!\n");
        assert_eq!(checker.finish(&file).unwrap(), Sha256::of(b"hello\n"));
        assert!(matches!(other.finish(&file), Err(Error::GitObject { .. })));
    }
}
