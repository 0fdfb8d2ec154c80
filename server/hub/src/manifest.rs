//! The list of a model's files with their sizes and SHA-256, kept beside them, and the check of one against the other.
//!
//! Nothing here touches a network; `serve` runs [`Manifest::verify`] at every load.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Sha256;
use crate::file;
use crate::hashing::{Piece, hash};
use crate::progress::Progress;
use crate::reference::check_file;
use crate::report::{Difference, How, Report, in_brief, root};

/// The manifest's own name, in the model's folder.
pub const FILE_NAME: &str = "rempart-manifest.json";
/// The format written and read.
pub const VERSION: u32 = 1;
/// Largest manifest read, in bytes: some 20,000 files.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Most files a model may have.
const FILES_MAX: usize = 10_000;

/// What a model consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// Where the files came from: a hub reference, or `local`.
    pub source: String,
    /// The commit they belong to; empty for local files.
    pub revision: String,
    /// Every file, ordered by path.
    pub files: Vec<FileEntry>,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Relative to the manifest, `/` between components.
    pub path: String,
    pub bytes: u64,
    pub sha256: Sha256,
}

/// Why a manifest cannot be used, or what differs from it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: not a valid manifest: {reason}; {REPAIR}", path.display())]
    Invalid { path: PathBuf, reason: String },
    #[error("{}: manifest version {found}, this program reads {VERSION}; update Rempart or {REPAIR}", path.display())]
    Version { path: PathBuf, found: u32 },
    #[error("{}: `{file}` is missing; {REPAIR}", dir.display())]
    Missing { dir: PathBuf, file: String },
    #[error(
        "{}: `{file}` is not in the manifest: remove it, or describe the folder again if you put it there; {REPAIR}",
        dir.display()
    )]
    Extra { dir: PathBuf, file: String },
    #[error("{}: `{file}` is {found} bytes long, the manifest says {expected}; {REPAIR}", dir.display())]
    Size {
        dir: PathBuf,
        file: String,
        expected: u64,
        found: u64,
    },
    #[error("{}: SHA-256 of `{file}` is {found}, the manifest says {expected}; {REPAIR}", dir.display())]
    Digest {
        dir: PathBuf,
        file: String,
        expected: Sha256,
        found: Sha256,
    },
    #[error("{}: `{file}` cannot belong to a model: {reason}", dir.display())]
    Name {
        dir: PathBuf,
        file: String,
        reason: &'static str,
    },
}

const REPAIR: &str = "fetch it again with `rempart pull … --force`";

impl Manifest {
    /// Reads the manifest of a folder. `Ok(None)` means that the folder has none, which is legal: the caller warns that
    /// nothing proves the files.
    ///
    /// # Errors
    /// [`Error::Invalid`] or [`Error::Version`] when there is one that cannot be trusted, [`Error::Io`].
    pub fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(FILE_NAME);
        let read = match file::read(&path, MANIFEST_BYTES_MAX) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Io { path, source }),
        };
        let invalid = |reason: String| Error::Invalid {
            path: path.clone(),
            reason,
        };
        let text = read.ok_or_else(|| invalid(format!("it is longer than {MANIFEST_BYTES_MAX} bytes")))?;
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| invalid(in_brief(&e)))?;
        let version = value.get("version").and_then(serde_json::Value::as_u64);
        let version = version
            .and_then(|v| u32::try_from(v).ok())
            .ok_or_else(|| invalid("it has no version".into()))?;
        if version != VERSION {
            return Err(Error::Version { path, found: version });
        }
        let manifest: Self = serde_json::from_value(value).map_err(|e| invalid(in_brief(&e)))?;
        manifest.check().map_err(invalid)?;
        Ok(Some(manifest))
    }

    /// Writes the manifest into a folder, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it would not load again, [`Error::Io`].
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        let path = dir.join(FILE_NAME);
        self.check().map_err(|reason| Error::Invalid {
            path: path.clone(),
            reason,
        })?;
        let mut text = serde_json::to_vec_pretty(self).expect("strings and numbers always serialize");
        text.push(b'\n');
        file::write(&path, &text, None).map_err(|source| Error::Io { path, source })
    }

    /// Compares every file of the folder with the manifest: its presence, its size, its SHA-256, and that no other file
    /// lies there. Names that begin with a dot are ignored: nothing loads them. Files are hashed in parallel.
    ///
    /// # Errors
    /// The first difference in the order of paths, saying what was expected, what was found and what to do.
    pub fn verify(&self, dir: &Path, progress: &dyn Progress) -> Result<(), Error> {
        self.check().map_err(|reason| Error::Invalid {
            path: dir.join(FILE_NAME),
            reason,
        })?;
        let found: BTreeMap<String, u64> = list_files(dir)?.into_iter().collect();
        for file in &self.files {
            let Some(&bytes) = found.get(&file.path) else {
                return Err(Error::Missing {
                    dir: dir.to_owned(),
                    file: file.path.clone(),
                });
            };
            if bytes != file.bytes {
                return Err(size_differs(dir, file, bytes));
            }
        }
        let listed: BTreeSet<&str> = self.files.iter().map(|file| file.path.as_str()).collect();
        if let Some(extra) = found.keys().find(|path| !listed.contains(path.as_str())) {
            return Err(Error::Extra {
                dir: dir.to_owned(),
                file: extra.clone(),
            });
        }
        let sizes: Vec<(&str, u64)> = self
            .files
            .iter()
            .map(|file| (file.path.as_str(), file.bytes))
            .collect();
        for (file, (bytes, sha256)) in self.files.iter().zip(hash_files(dir, &sizes, progress)?) {
            if bytes != file.bytes {
                return Err(size_differs(dir, file, bytes));
            }
            if sha256 != file.sha256 {
                return Err(Error::Digest {
                    dir: dir.to_owned(),
                    file: file.path.clone(),
                    expected: file.sha256,
                    found: sha256,
                });
            }
        }
        Ok(())
    }

    /// Compares as [`Manifest::verify`] does, and goes on to the end: every difference there is.
    ///
    /// # Errors
    /// What keeps the files from being compared.
    pub fn compare(&self, dir: &Path, progress: &dyn Progress) -> Result<Report, Error> {
        self.check().map_err(|reason| Error::Invalid {
            path: dir.join(FILE_NAME),
            reason,
        })?;
        let mut found: BTreeMap<String, u64> = list_files(dir)?.into_iter().collect();
        let mut report = Report::default();
        let mut same_size = Vec::new();
        for file in &self.files {
            match found.remove(&file.path) {
                None => report.add(&file.path, How::Missing),
                Some(bytes) if bytes != file.bytes => {
                    let expected = file.bytes;
                    report.add(&file.path, How::Size { expected, bytes });
                }
                Some(_) => same_size.push(file),
            }
        }
        let unknown = found.into_keys().map(|path| Difference {
            path,
            how: How::Unknown,
        });
        report.differences.extend(unknown);
        let sizes: Vec<(&str, u64)> = same_size.iter().map(|f| (f.path.as_str(), f.bytes)).collect();
        for (file, (bytes, sha256)) in same_size.iter().zip(hash_files(dir, &sizes, progress)?) {
            if bytes == file.bytes && sha256 == file.sha256 {
                report.same(bytes);
            } else {
                let expected = file.sha256;
                report.add(&file.path, How::Content { expected, sha256 });
            }
        }
        report.differences.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(report)
    }

    /// The SHA-256 that names the model: see [`root`].
    pub fn root(&self) -> Sha256 {
        root(self.files.iter().map(|file| (file.path.as_str(), file.sha256)))
    }

    /// Makes the manifest of files that did not come from a hub; the caller saves it with [`Manifest::save`].
    ///
    /// # Errors
    /// [`Error::Name`] for a file that no manifest may list, [`Error::Io`].
    pub fn describe(dir: &Path, progress: &dyn Progress) -> Result<Self, Error> {
        let files = list_files(dir)?;
        let sizes: Vec<(&str, u64)> = files
            .iter()
            .map(|(path, bytes)| (path.as_str(), *bytes))
            .collect();
        let digests = hash_files(dir, &sizes, progress)?;
        let files = files
            .iter()
            .zip(digests)
            .map(|((path, _), (bytes, sha256))| FileEntry {
                path: path.clone(),
                bytes,
                sha256,
            })
            .collect();
        Ok(Self {
            version: VERSION,
            source: "local".to_owned(),
            revision: String::new(),
            files,
        })
    }

    fn check(&self) -> Result<(), String> {
        if self.files.is_empty() {
            return Err("it lists no file".to_owned());
        }
        if self.files.len() > FILES_MAX {
            return Err(format!("it lists more than {FILES_MAX} files"));
        }
        for file in &self.files {
            check_path(&file.path)
                .map_err(|reason| format!("file `{}`: {reason}", file.path.escape_debug()))?;
        }
        if let Some(pair) = self.files.windows(2).find(|pair| pair[0].path >= pair[1].path) {
            return Err(format!(
                "its files are not in order of path, each once: `{}`",
                pair[1].path
            ));
        }
        Ok(())
    }
}

fn check_path(path: &str) -> Result<(), &'static str> {
    if path == FILE_NAME {
        return Err("it is the manifest itself");
    }
    if path.split('/').any(|component| component.starts_with('.')) {
        return Err("names that begin with a dot are not part of a model");
    }
    check_file(path)
        .map_err(|_| "only letters A-Z a-z, digits, `.`, `_`, `-` and `/` between names are allowed")
}

fn size_differs(dir: &Path, file: &FileEntry, found: u64) -> Error {
    Error::Size {
        dir: dir.to_owned(),
        file: file.path.clone(),
        expected: file.bytes,
        found,
    }
}

/// Every file below `dir` with its size, ordered by path, without the manifest and without names that begin with a dot.
/// A link counts as the file it leads to, as its content is what gets hashed; a link to a folder is refused.
fn list_files(dir: &Path) -> Result<Vec<(String, u64)>, Error> {
    let mut files = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let path = dir.join(&folder);
        let io_error = |source| Error::Io {
            path: path.clone(),
            source,
        };
        for entry in fs::read_dir(&path).map_err(io_error)? {
            let entry = entry.map_err(io_error)?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let relative = match folder.as_str() {
                "" => name.to_string_lossy().into_owned(),
                parent => format!("{parent}/{}", name.to_string_lossy()),
            };
            let refuse = |reason| Error::Name {
                dir: dir.to_owned(),
                file: relative.clone(),
                reason,
            };
            if relative == FILE_NAME {
                continue;
            }
            check_path(&relative).map_err(refuse)?;
            let io_error = |source| Error::Io {
                path: entry.path(),
                source,
            };
            let is_link = entry.file_type().map_err(io_error)?.is_symlink();
            let metadata = fs::metadata(entry.path()).map_err(io_error)?;
            if metadata.is_file() {
                files.push((relative, metadata.len()));
            } else if metadata.is_dir() && !is_link {
                folders.push(relative);
            } else {
                return Err(refuse("it is neither a file nor a folder"));
            }
            if files.len() + folders.len() > FILES_MAX {
                return Err(Error::Invalid {
                    path,
                    reason: format!("more than {FILES_MAX} files"),
                });
            }
        }
    }
    files.sort();
    Ok(files)
}

fn hash_files(
    dir: &Path,
    files: &[(&str, u64)],
    progress: &dyn Progress,
) -> Result<Vec<(u64, Sha256)>, Error> {
    let pieces: Vec<Piece> = files
        .iter()
        .map(|&(file, bytes)| Piece::whole(file.to_owned(), dir.join(file), bytes))
        .collect();
    hash(&pieces, progress).map_err(|(path, source)| Error::Io { path, source })
}
