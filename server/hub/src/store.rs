//! The models on disk: one folder for each below the store's root, and the way from a name to what a loader opens.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Sha256;
use crate::manifest::{self, Manifest};
use crate::reference::{self, HubReference, Reference, check_id, looks_like_path};
use crate::signature;

/// Longest name of a model's folder, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Hexadecimal digits of the digest that ends a name too long to be kept whole.
const NAME_DIGEST_LEN: usize = 12;
/// Most entries read of a folder in search of its one GGUF.
const ENTRIES_MAX: usize = 10_000;

/// How deep in a model's folder files are looked for.
const DEPTH_MAX: usize = 4;

/// A model found on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelPath {
    /// The name to serve it under, unless the user gives another.
    pub name: String,
    /// The folder where its manifest would be.
    pub dir: PathBuf,
    /// What to load: a `.gguf` file, or the folder of a safetensors model (then equal to `dir`).
    pub path: PathBuf,
}

/// A model of the store, as it lies there: nothing of it is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub name: String,
    pub files: usize,
    /// Their length together.
    pub bytes: u64,
    /// The SHA-256 that its manifest gives the model; `None` without one that can be read.
    pub manifest: Option<Sha256>,
    /// Whether there is a signature.
    pub signed: bool,
}

/// Why a name or path leads to no model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Reference(#[from] reference::Error),
    #[error("no model `{name}` in {}: fetch it with `rempart pull {pull}`{hint}", store.display())]
    Absent {
        name: String,
        pull: String,
        store: PathBuf,
        hint: String,
    },
    #[error("{} leaves the model store {}: a model's folder must lie in it", path.display(), store.display())]
    Escape { path: PathBuf, store: PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is neither a .gguf file nor a folder with a model", path.display())]
    NoModel { path: PathBuf },
    #[error("{} holds several GGUF files, name one: {files}", path.display())]
    Several { path: PathBuf, files: String },
}

/// The folder name of a hub model: `organisation--name`, and `--stem` of the file when one is named, so that two
/// quantizations of a repository live side by side. A name over [`NAME_BYTES_MAX`] bytes is cut and ends in a digest.
pub fn folder_name(reference: &HubReference) -> String {
    let mut name = format!("{}--{}", reference.organisation(), reference.name());
    if let Some(file) = reference.file() {
        let stem = file.strip_suffix(".gguf").unwrap_or(file).replace('/', "--");
        name = format!("{name}--{stem}");
    }
    // A leading dot would hide the folder.
    let name = name.trim_start_matches('.');
    if name.len() <= NAME_BYTES_MAX {
        return name.to_owned();
    }
    let digest = Sha256::of(name.as_bytes()).to_string();
    format!(
        "{}--{}",
        &name[..NAME_BYTES_MAX - 2 - NAME_DIGEST_LEN],
        &digest[..NAME_DIGEST_LEN]
    )
}

/// Checks a name that is to become a folder of the store: `^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$`.
///
/// # Errors
/// [`reference::Error::Part`].
pub fn check_name(name: &str) -> Result<(), reference::Error> {
    if name.len() > NAME_BYTES_MAX {
        let text = name.chars().take(32).collect();
        return Err(reference::Error::Part {
            part: "model name",
            text,
            reason: "it is too long",
        });
    }
    if name.starts_with('.') {
        let text = name.to_owned();
        return Err(reference::Error::Part {
            part: "model name",
            text,
            reason: "it may not begin with a dot",
        });
    }
    // The alphabet is ASCII or the check fails, so halves cannot split a character that matters.
    let (head, tail) = name.split_at_checked(name.len().min(64)).unwrap_or((name, ""));
    check_id("model name", head)?;
    if tail.is_empty() {
        Ok(())
    } else {
        check_id("model name", &format!("_{tail}"))
    }
}

/// Finds what `rempart serve --model` was given: the name of a folder in the store, a catalogue name, the reference it
/// was pulled by (`hf:…`), or a path. Only names are confined to the store; a path is the operator's own choice.
///
/// # Errors
/// [`Error::Absent`] says how to fetch a model that is not there; [`Error::Escape`] when a link leads out of the store.
pub fn resolve(store: &Path, name_or_path: &str) -> Result<ModelPath, Error> {
    if name_or_path.is_empty() || name_or_path.chars().any(char::is_control) {
        Reference::parse(name_or_path)?;
    }
    if let Some(rest) = name_or_path.strip_prefix("hf:") {
        return in_store(store, &folder_name(&HubReference::parse(rest)?), name_or_path);
    }
    if looks_like_path(name_or_path) {
        return at_path(Path::new(name_or_path));
    }
    check_name(name_or_path)?;
    match crate::catalogue::find(name_or_path) {
        Some(entry) => in_store(store, entry.name, entry.name),
        None => in_store(store, name_or_path, name_or_path),
    }
}

/// The models of the store, by name. A store that is not there has none.
///
/// # Errors
/// [`Error::Io`].
pub fn list(store: &Path) -> Result<Vec<Stored>, Error> {
    let io = |source| Error::Io {
        path: store.to_owned(),
        source,
    };
    let entries = match fs::read_dir(store) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(io(source)),
    };
    let mut models = Vec::new();
    for entry in entries.take(ENTRIES_MAX) {
        let entry = entry.map_err(io)?;
        let dir = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if check_name(&name).is_ok() && dir.is_dir() {
            models.push(stored(name, &dir)?);
        }
    }
    models.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(models)
}

fn stored(name: String, dir: &Path) -> Result<Stored, Error> {
    let manifest = Manifest::load(dir).ok().flatten();
    let mut files = Vec::new();
    files_below(dir, 0, &mut files).map_err(|source| Error::Io {
        path: dir.to_owned(),
        source,
    })?;
    let is = |path: &Path, name: &str| path.file_name().is_some_and(|own| own == name);
    let is_signature = |path: &Path| {
        is(path, signature::FILE_NAME) || path.as_os_str().as_encoded_bytes().ends_with(b".gguf.sig")
    };
    let signed = files.iter().any(|(path, _)| is_signature(path));
    files.retain(|(path, _)| !is_signature(path) && !is(path, manifest::FILE_NAME));
    Ok(Stored {
        name,
        files: files.len(),
        bytes: files.iter().map(|(_, bytes)| bytes).sum(),
        manifest: manifest.map(|manifest| manifest.root()),
        signed,
    })
}

/// Files, or what links lead to, with their length.
fn files_below(dir: &Path, depth: usize, found: &mut Vec<(PathBuf, u64)>) -> io::Result<()> {
    for entry in fs::read_dir(dir)?.take(ENTRIES_MAX) {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if entry.file_type()?.is_dir() {
            if depth < DEPTH_MAX {
                files_below(&entry.path(), depth + 1, found)?;
            }
        } else if let Ok(metadata) = fs::metadata(entry.path())
            && metadata.is_file()
        {
            found.push((entry.path(), metadata.len()));
        }
    }
    Ok(())
}

fn in_store(store: &Path, name: &str, asked: &str) -> Result<ModelPath, Error> {
    let absent = || Error::Absent {
        name: name.to_owned(),
        pull: asked.to_owned(),
        store: store.to_owned(),
        hint: if Path::new(name).exists() {
            format!(", or write `./{name}` for the one in the current folder")
        } else {
            String::new()
        },
    };
    let dir = match store.join(name).canonicalize() {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(absent()),
        Err(source) => {
            return Err(Error::Io {
                path: store.join(name),
                source,
            });
        }
    };
    let root = store.canonicalize().map_err(|source| Error::Io {
        path: store.to_owned(),
        source,
    })?;
    // The folder itself may be a link to a sibling, the weights may not be one that leads out.
    let escape = |path: &Path| Error::Escape {
        path: path.to_owned(),
        store: root.clone(),
    };
    if !dir.starts_with(&root) || dir == root {
        return Err(escape(&dir));
    }
    let mut found = in_folder(&dir)?;
    name.clone_into(&mut found.name);
    found.path = found.path.canonicalize().map_err(|source| Error::Io {
        path: found.path.clone(),
        source,
    })?;
    if !found.path.starts_with(&root) {
        Err(escape(&found.path))
    } else {
        Ok(found)
    }
}

fn at_path(path: &Path) -> Result<ModelPath, Error> {
    let metadata = fs::metadata(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })?;
    if metadata.is_dir() {
        return in_folder(path);
    }
    if !metadata.is_file() || path.extension().is_none_or(|extension| extension != "gguf") {
        return Err(Error::NoModel {
            path: path.to_owned(),
        });
    }
    let dir = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    Ok(ModelPath {
        name: display_name(path.file_stem(), path),
        dir,
        path: path.to_owned(),
    })
}

/// A folder is a safetensors model when it has a `config.json`, else the one GGUF that it holds (the manifest of a
/// hub model may put it in a sub-folder).
fn in_folder(dir: &Path) -> Result<ModelPath, Error> {
    let canonical = dir.canonicalize().map_err(|source| Error::Io {
        path: dir.to_owned(),
        source,
    })?;
    let name = display_name(canonical.file_name(), dir);
    if dir.join("config.json").is_file() {
        return Ok(ModelPath {
            name,
            dir: dir.to_owned(),
            path: dir.to_owned(),
        });
    }
    let mut ggufs = Vec::new();
    find_ggufs(dir, 0, &mut ggufs).map_err(|source| Error::Io {
        path: dir.to_owned(),
        source,
    })?;
    ggufs.sort();
    match ggufs.as_slice() {
        [] => Err(Error::NoModel { path: dir.to_owned() }),
        [one] => Ok(ModelPath {
            name,
            dir: dir.to_owned(),
            path: one.clone(),
        }),
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            Err(Error::Several {
                path: dir.to_owned(),
                files: names.join(", "),
            })
        }
    }
}

fn find_ggufs(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)?.take(ENTRIES_MAX) {
        let entry = entry?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if entry.file_type()?.is_dir() && depth < DEPTH_MAX {
            find_ggufs(&path, depth + 1, found)?;
        } else if path.extension().is_some_and(|extension| extension == "gguf") {
            found.push(path);
        }
    }
    Ok(())
}

fn display_name(component: Option<&std::ffi::OsStr>, path: &Path) -> String {
    component.map_or_else(
        || path.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}
