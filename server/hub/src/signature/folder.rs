//! The files of a model on disk, against what was signed: which there are, what they contain, and that they stay so.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::statement::{Content, ITSELF, Statement, check_path, is_never_signed};
use super::{Error, FILES_MAX, Signed, Target};
use crate::digest::Sha256;
use crate::hashing::{Piece, Stamp, hash};
use crate::manifest;
use crate::progress::Progress;
use crate::report::{How, Report};

/// Kernels note the time of a change in steps of up to 10 ms: files as young as that could change again without a trace.
const SETTLED: Duration = Duration::from_millis(50);
/// How often files may turn out to be younger than that.
const SETTLING_TRIES: usize = 40;
/// What loaders open.
const LOADED: [&str; 4] = ["gguf", "jinja", "json", "safetensors"];

/// Which files there were, and in which state: taken before they are hashed, and compared after they were loaded.
#[derive(Debug, PartialEq, Eq)]
pub struct Seal {
    target: Target,
    files: Files,
    /// A folder that is renamed away and back was another meanwhile.
    folders: BTreeMap<String, Stamp>,
}

type Files = BTreeMap<String, Entry>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    stamp: Stamp,
    is_link: bool,
}

impl Seal {
    fn take(target: &Target) -> Result<Self, Error> {
        for _ in 0..SETTLING_TRIES {
            let seal = list(target)?;
            let mut files = seal.files.values().map(|entry| &entry.stamp);
            if !files.any(is_young) && !seal.folders.values().any(is_young) {
                return Ok(seal);
            }
            thread::sleep(SETTLED);
        }
        Err(Error::Content {
            path: target.path().to_owned(),
            reason: "its files are being written: try again when that is done",
        })
    }

    /// Proves that no file was written, replaced, renamed, added or removed since the seal was taken, so that what was loaded
    /// meanwhile is what was hashed. What is written to a file afterwards is another matter: a model that is mapped shows it.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn check(&self) -> Result<(), Error> {
        if list(&self.target)? == *self {
            return Ok(());
        }
        let path = self.target.path().to_owned();
        Err(Error::Changed { path })
    }
}

impl Target {
    fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::File(path) => path,
        }
    }

    fn join(&self, path: &str) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(path),
            Self::File(file) => file.clone(),
        }
    }
}

fn is_young(stamp: &Stamp) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, nanos) = stamp.changed;
    let changed = Duration::new(seconds.try_into().unwrap_or(0), nanos.try_into().unwrap_or(0));
    // One from the future changes back to the present.
    now.checked_sub(changed).is_some_and(|age| age < SETTLED)
}

/// Compares files with what was signed. Without an error the report tells of every file.
pub(super) fn compare(
    signed: &Signed,
    statement: &Statement,
    progress: &dyn Progress,
) -> Result<(Report, Seal), Error> {
    let seal = Seal::take(&signed.target)?;
    let names = names(signed, statement)?;
    let own = own(signed);
    let mut report = Report::default();
    let mut pieces = Vec::new();
    let mut expected = Vec::new();
    for (path, content) in &names {
        let Some(entry) = seal.files.get(*path) else {
            // Files without a byte have no piece.
            report.add(path, How::Missing);
            continue;
        };
        if entry.is_link && !statement.links {
            report.add(path, How::Link);
            continue;
        }
        let Some(parts) = parts(content, entry.stamp.bytes) else {
            report.add(path, How::Holes);
            continue;
        };
        let name = if parts.len() == 1 {
            |path: &str, _| path.to_owned()
        } else {
            |path: &str, start| format!("{path} from byte {start}")
        };
        for (start, bytes, sha256) in parts {
            let piece = Piece::part(
                name(path, start),
                signed.target.join(path),
                entry.stamp,
                (start, bytes),
            );
            pieces.push(piece);
            expected.push((*path, start, bytes, sha256));
        }
    }
    for (path, _) in seal
        .files
        .iter()
        .filter(|(path, _)| !names.contains_key(path.as_str()))
    {
        if Some(path) == own.as_ref() || is_never_signed(path) {
            continue;
        }
        if !statement.ignores(path) {
            report.add(path, How::Unknown);
        } else if is_loaded(path) {
            report.add(path, How::LeftOut);
        }
    }
    let found = hash(&pieces, progress).map_err(|(path, source)| Error::Io { path, source })?;
    tell(&mut report, &expected, &found);
    Ok((report, seal))
}

/// Adds to a report what the pieces of files turned out to be. Pieces of a file are in a row.
fn tell(report: &mut Report, expected: &[(&str, u64, u64, Sha256)], found: &[(u64, Sha256)]) {
    let all: Vec<_> = expected.iter().zip(found).collect();
    for file in all.chunk_by(|(a, _), (b, _)| a.0 == b.0) {
        let wrong = file
            .iter()
            .find(|((_, _, bytes, sha256), found)| *found != &(*bytes, *sha256));
        match wrong {
            None => report.same(file.iter().map(|(_, (bytes, _))| bytes).sum()),
            Some(((path, _, _, expected), (_, sha256))) if file.len() == 1 => {
                let (expected, sha256) = (*expected, *sha256);
                report.add(path, How::Content { expected, sha256 });
            }
            Some(((path, start, _, _), _)) => report.add(path, How::Piece { start: *start }),
        }
    }
    report.differences.sort_by(|a, b| a.path.cmp(&b.path));
}

/// What was signed, by the names that the listing of the target has.
fn names<'a>(signed: &Signed, statement: &'a Statement) -> Result<BTreeMap<&'a str, &'a Content>, Error> {
    let invalid = |reason: &str| Error::Invalid {
        path: signed.signature.clone(),
        reason: reason.to_owned(),
    };
    let all = statement
        .files
        .iter()
        .map(|(path, content)| (path.as_str(), content));
    match &signed.target {
        Target::Folder(_) if statement.is_of_file() => Err(invalid("it is of one file, not of a folder")),
        Target::Folder(_) => Ok(all.collect()),
        Target::File(_) if statement.is_of_file() => Ok(all.collect()),
        Target::File(file) => {
            let name = file.file_name().and_then(|name| name.to_str());
            let mut own = all.filter(|(path, _)| Some(*path) == name);
            match (own.next(), statement.files.len()) {
                (Some((_, content)), 1) => Ok(BTreeMap::from([(ITSELF, content)])),
                _ => Err(invalid("it is of a folder, not of this one file")),
            }
        }
    }
}

/// Start, length and SHA-256 of the pieces of a file; `None` where they are not the whole of it.
fn parts(content: &Content, file_bytes: u64) -> Option<Vec<(u64, u64, Sha256)>> {
    let pieces = match content {
        Content::Whole(sha256) => return Some(vec![(0, file_bytes, *sha256)]),
        Content::Pieces(pieces) => pieces,
    };
    let mut at = 0;
    let mut parts = Vec::with_capacity(pieces.len());
    for &(start, end, sha256) in pieces {
        if start != at {
            return None;
        }
        parts.push((start, end - start, sha256));
        at = end;
    }
    (at == file_bytes).then_some(parts)
}

/// What is to be signed.
pub(super) fn describe(signed: &Signed, progress: &dyn Progress) -> Result<Statement, Error> {
    let seal = Seal::take(&signed.target)?;
    let own = own(signed);
    let is_left_out = |path: &str| own.as_deref() == Some(path) || is_never_signed(path);
    let mut paths = Vec::new();
    let mut pieces = Vec::new();
    for (path, entry) in seal.files.iter().filter(|(path, _)| !is_left_out(path)) {
        let file = signed.target.join(path);
        if entry.is_link {
            let reason = "a link: only files are signed";
            return Err(Error::Content { path: file, reason });
        }
        pieces.push(Piece::part(
            path.clone(),
            file,
            entry.stamp,
            (0, entry.stamp.bytes),
        ));
        paths.push(path.clone());
    }
    let found = hash(&pieces, progress).map_err(|(path, source)| Error::Io { path, source })?;
    seal.check()?;
    if paths.is_empty() {
        return Err(Error::Content {
            path: signed.target.path().to_owned(),
            reason: "there is no file to sign in it",
        });
    }
    let files = paths.into_iter().zip(found.into_iter().map(|(_, sha256)| sha256));
    let mut ignored: Vec<String> = own.into_iter().collect();
    if matches!(signed.target, Target::Folder(_)) {
        ignored.push(manifest::FILE_NAME.to_owned());
    }
    let name = signed.target.path().canonicalize().ok();
    let name = name.as_deref().and_then(Path::file_name).unwrap_or_default();
    Ok(Statement::new(
        &name.to_string_lossy(),
        files.collect(),
        false,
        &ignored,
    ))
}

/// The path of the signature in the folder that is signed, if it lies there, whether it is there by now or not.
fn own(signed: &Signed) -> Option<String> {
    let Target::Folder(folder) = &signed.target else {
        return None;
    };
    let parent = signed
        .signature
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new(".")).canonicalize().ok()?;
    let inside = parent.strip_prefix(folder.canonicalize().ok()?).ok()?;
    let path = inside.join(signed.signature.file_name()?);
    path.to_str().map(str::to_owned)
}

fn is_loaded(path: &str) -> bool {
    let extension = Path::new(path)
        .extension()
        .and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| LOADED.contains(&extension.to_ascii_lowercase().as_str()))
}

fn list(target: &Target) -> Result<Seal, Error> {
    let folder = match target {
        Target::Folder(folder) => folder,
        Target::File(file) => {
            let entry = entry(file)?.ok_or_else(|| strange(file))?;
            return Ok(Seal {
                target: target.clone(),
                files: Files::from([(ITSELF.to_owned(), entry)]),
                folders: BTreeMap::new(),
            });
        }
    };
    let (mut files, mut known) = (Files::new(), BTreeMap::new());
    let mut folders = vec![String::new()];
    while let Some(inner) = folders.pop() {
        let here = folder.join(&inner);
        let io = |source| Error::Io {
            path: here.clone(),
            source,
        };
        known.insert(inner.clone(), Stamp::of(&fs::metadata(&here).map_err(io)?));
        for found in fs::read_dir(&here).map_err(io)? {
            let path = found.map_err(io)?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let name = match (name, inner.as_str()) {
                (Some(name), "") => name.to_owned(),
                (Some(name), inner) => format!("{inner}/{name}"),
                (None, _) => String::new(),
            };
            if check_path(&name).is_err() {
                let reason = "no name that a signature can have: control characters, or not UTF-8";
                return Err(Error::Content { path, reason });
            }
            // What git keeps changes by itself.
            if name != manifest::FILE_NAME && is_never_signed(&name) {
                continue;
            }
            match entry(&path)? {
                Some(entry) => drop(files.insert(name, entry)),
                None if is_folder(&path)? => folders.push(name),
                None => return Err(strange(&path)),
            }
            if files.len() + known.len() + folders.len() > FILES_MAX {
                let path = folder.clone();
                return Err(Error::TooMany { path });
            }
        }
    }
    Ok(Seal {
        target: target.clone(),
        files,
        folders: known,
    })
}

/// What is known of a file, or of the one that a link leads to; `None` for what is no file.
fn entry(path: &Path) -> Result<Option<Entry>, Error> {
    let io = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let metadata = fs::metadata(path).map_err(io)?;
    let is_link = fs::symlink_metadata(path).map_err(io)?.is_symlink();
    Ok(metadata.is_file().then(|| Entry {
        stamp: Stamp::of(&metadata),
        is_link,
    }))
}

fn is_folder(path: &Path) -> Result<bool, Error> {
    let metadata = fs::symlink_metadata(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok(metadata.is_dir())
}

fn strange(path: &Path) -> Error {
    Error::Content {
        path: path.to_owned(),
        reason: "neither a file nor a folder of its own: links to folders are not followed",
    }
}
