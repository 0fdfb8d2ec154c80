//! What a user may name: a catalogue entry, `hf:org/name[@revision][:file]`, or a path on this machine.

use std::fmt;
use std::path::PathBuf;

use crate::catalogue::{self, Entry};

/// Longest organisation, repository or path component, in bytes: the hub's own limit.
pub const ID_BYTES_MAX: usize = 96;
/// Longest revision, in bytes.
pub const REVISION_BYTES_MAX: usize = 128;
/// Longest path of a file inside a repository, in bytes, and its deepest nesting.
pub const FILE_BYTES_MAX: usize = 512;
const FILE_COMPONENTS_MAX: usize = 8;
/// The revision that a reference without one means.
pub const DEFAULT_REVISION: &str = "main";

/// A repository on a hub, a revision of it and, for a GGUF, the one file wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HubReference {
    organisation: String,
    name: String,
    revision: Option<String>,
    file: Option<String>,
}

/// A parsed model reference.
#[derive(Debug, Clone, PartialEq)]
pub enum Reference {
    /// A name the catalogue knows.
    Catalogue(&'static Entry),
    /// A repository on a hub.
    Hub(HubReference),
    /// A file or folder on this machine: to serve, not to pull.
    Path(PathBuf),
}

/// Why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("an empty model reference; {FORMS}")]
    Empty,
    #[error("a model reference holds a control character")]
    Control,
    #[error("`{text}` names no repository: after `hf:` comes `organisation/name`; {FORMS}")]
    Repository { text: String },
    #[error("{part} `{text}` is not valid: {reason}")]
    Part {
        part: &'static str,
        text: String,
        reason: &'static str,
    },
    #[error("`{name}` is not in the catalogue ({known}); {FORMS}")]
    Unknown { name: String, known: String },
}

const FORMS: &str =
    "write a catalogue name, `hf:organisation/name[@revision][:file]`, or a path such as `./model.gguf`";

impl Reference {
    /// Parses what a user typed. A text with a separator (`/`, `\`), a leading dot or the ending `.gguf` is a path;
    /// `hf:` starts a hub reference; anything else must be in the catalogue.
    ///
    /// # Errors
    /// Names the part that is wrong and what it may hold.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::Empty);
        }
        if text.chars().any(char::is_control) {
            return Err(Error::Control);
        }
        if let Some(rest) = text.strip_prefix("hf:") {
            return HubReference::parse(rest).map(Self::Hub);
        }
        if looks_like_path(text) {
            return Ok(Self::Path(PathBuf::from(text)));
        }
        check_id("model name", text)?;
        catalogue::find(text)
            .map(Self::Catalogue)
            .ok_or_else(|| Error::Unknown {
                name: text.to_owned(),
                known: catalogue::entries()
                    .iter()
                    .map(|e| e.name)
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }
}

impl HubReference {
    /// Parses `organisation/name[@revision][:file]`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (repository, file) = match text.split_once(':') {
            Some((repository, file)) => (repository, Some(file)),
            None => (text, None),
        };
        let (repository, revision) = match repository.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (repository, None),
        };
        let (organisation, name) = repository
            .split_once('/')
            .ok_or_else(|| Error::Repository { text: shorten(text) })?;
        check_id("organisation", organisation)?;
        check_id("repository name", name)?;
        revision.map(check_revision).transpose()?;
        file.map(check_file).transpose()?;
        Ok(Self {
            organisation: organisation.to_owned(),
            name: name.to_owned(),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        })
    }

    pub fn organisation(&self) -> &str {
        &self.organisation
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// `organisation/name`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.organisation, self.name)
    }

    /// The revision asked for, or [`DEFAULT_REVISION`].
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(DEFAULT_REVISION)
    }

    /// The file asked for, relative to the repository's root, with `/` between its components.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }
}

impl fmt::Display for HubReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}/{}", self.organisation, self.name)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        self.file.iter().try_for_each(|file| write!(f, ":{file}"))
    }
}

/// Whether a path ends in `.extension`, in any letter case.
pub(crate) fn has_extension(path: &str, extension: &str) -> bool {
    path.rsplit_once('.')
        .is_some_and(|(_, end)| end.eq_ignore_ascii_case(extension))
}

pub(crate) fn looks_like_path(text: &str) -> bool {
    text.contains(['/', '\\']) || text.starts_with('.') || has_extension(text, "gguf")
}

/// One name: `^[A-Za-z0-9._-]{1,96}$`, not all dots.
///
/// # Errors
/// [`Error::Part`] with `part` as the word for what it is.
pub fn check_id(part: &'static str, text: &str) -> Result<(), Error> {
    check_component(part, text, ID_BYTES_MAX)
}

fn check_component(part: &'static str, text: &str, bytes_max: usize) -> Result<(), Error> {
    let refuse = |reason| {
        Err(Error::Part {
            part,
            text: shorten(text),
            reason,
        })
    };
    if text.is_empty() {
        return refuse("it is empty");
    }
    if text.len() > bytes_max {
        return refuse("it is too long");
    }
    if !text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    {
        return refuse("only letters A-Z a-z, digits, `.`, `_` and `-` are allowed");
    }
    if text.bytes().all(|b| b == b'.') {
        return refuse("it may not consist of dots");
    }
    Ok(())
}

fn check_revision(text: &str) -> Result<(), Error> {
    if text.len() > REVISION_BYTES_MAX {
        return Err(Error::Part {
            part: "revision",
            text: shorten(text),
            reason: "it is too long",
        });
    }
    // A revision may be a reference such as `refs/pr/7`.
    text.split('/')
        .try_for_each(|component| check_component("revision", component, REVISION_BYTES_MAX))
}

/// A file's path inside a repository: relative, `/` between components, each of [`check_id`]'s alphabet.
///
/// # Errors
/// [`Error::Part`].
pub fn check_file(text: &str) -> Result<(), Error> {
    let refuse = |reason| {
        Err(Error::Part {
            part: "file",
            text: shorten(text),
            reason,
        })
    };
    if text.len() > FILE_BYTES_MAX {
        return refuse("it is too long");
    }
    if text.split('/').count() > FILE_COMPONENTS_MAX {
        return refuse("it is nested too deeply");
    }
    text.split('/')
        .try_for_each(|component| check_component("file", component, 2 * ID_BYTES_MAX))
}

/// The start of a text, for a message: what a stranger sends must not fill a screen.
fn shorten(text: &str) -> String {
    const CHARS_MAX: usize = 120;
    let mut short: String = text
        .chars()
        .take(CHARS_MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}
