//! What is signed: the list of a model's files with their SHA-256, as an in-toto statement of OpenSSF model signing 1.0.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{FILES_MAX, PATH_BYTES_MAX};
use crate::digest::Sha256;
use crate::manifest;
use crate::report::in_brief;

const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const PREDICATE: &str = "https://model_signing/signature/v1.0";
/// Its own predecessor, which does not say whether it is complete.
const PREDICATE_OLD: &str = "https://model_signing/Digests/v0.1";
/// The only hash of the reference implementation that is known here; it has BLAKE2 and BLAKE3, too.
const HASH: &str = "sha256";
const SHARDED: &str = "sha256-sharded-";
/// What a file that was signed alone is called.
pub(super) const ITSELF: &str = ".";
/// Most resources of a statement: files, or pieces of files.
const RESOURCES_MAX: usize = 100_000;
/// Most paths that a statement leaves out.
const IGNORED_MAX: usize = 1000;
/// What git keeps beside files, which nobody signs.
const GIT: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];

/// A signed list of files, checked for being one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// What the signer called the model. Proves nothing.
    pub name: String,
    /// The SHA-256 that names the model.
    pub root: Sha256,
    /// By path. Without [`ITSELF`] unless that is all.
    pub(super) files: BTreeMap<String, Content>,
    /// Whether links stood for the files that they lead to.
    pub(super) links: bool,
    ignored: BTreeSet<String>,
}

/// What a file contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Whole(Sha256),
    /// Pieces from start to end, in bytes, ordered.
    Pieces(Vec<(u64, u64, Sha256)>),
}

#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Serialize, Deserialize)]
struct Subject {
    #[serde(default)]
    name: String,
    digest: SubjectDigest,
}

#[derive(Serialize, Deserialize)]
struct SubjectDigest {
    sha256: Sha256,
}

#[derive(Serialize, Deserialize)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Resource>,
}

#[derive(Serialize, Deserialize)]
struct Serialization {
    method: String,
    hash_type: String,
    allow_symlinks: bool,
    #[serde(default)]
    ignore_paths: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Resource {
    name: String,
    algorithm: String,
    digest: Sha256,
}

/// Only what tells the kinds apart, before anything is asked of the rest.
#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "_type")]
    kind: String,
    #[serde(rename = "predicateType")]
    predicate_type: String,
}

impl Statement {
    /// A statement on whole files, of which `ignored` were left out.
    pub(super) fn new(name: &str, files: BTreeMap<String, Sha256>, links: bool, ignored: &[String]) -> Self {
        let git = GIT.iter().map(|&path| path.to_owned());
        Self {
            name: name.to_owned(),
            root: crate::report::root(files.iter().map(|(path, sha256)| (path.as_str(), *sha256))),
            files: files
                .into_iter()
                .map(|(path, sha256)| (path, Content::Whole(sha256)))
                .collect(),
            links,
            ignored: ignored.iter().cloned().chain(git).collect(),
        }
    }

    /// Reads a statement, and checks that it is consistent.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let kind: Kind =
            serde_json::from_slice(json).map_err(|e| format!("its payload: {}", in_brief(&e)))?;
        if kind.kind != STATEMENT {
            return Err(format!("its payload is not of type {STATEMENT}"));
        }
        match kind.predicate_type.as_str() {
            PREDICATE => {}
            PREDICATE_OLD => {
                return Err(
                    "it was made with model signing 0.2, which signs no complete list: sign the model again"
                        .into(),
                );
            }
            _ => return Err(format!("its payload has no predicate of type {PREDICATE}")),
        }
        let wire: Wire =
            serde_json::from_slice(json).map_err(|e| format!("its payload: {}", in_brief(&e)))?;
        let [subject] = wire.subject.as_slice() else {
            return Err("it has not one subject".into());
        };
        let Predicate {
            serialization,
            resources,
        } = wire.predicate;
        let ignored = ignored(&serialization)?;
        let sharded = match serialization.method.as_str() {
            "files" => false,
            "shards" => true,
            _ => return Err("its method is neither `files` nor `shards`".into()),
        };
        let root = Sha256::of(
            &resources
                .iter()
                .flat_map(|r| *r.digest.as_bytes())
                .collect::<Vec<u8>>(),
        );
        if root != subject.digest.sha256 {
            return Err("the digest of its subject is not that of its resources".into());
        }
        Ok(Self {
            name: subject.name.clone(),
            root,
            files: files(resources, sharded)?,
            links: serialization.allow_symlinks,
            ignored,
        })
    }

    /// The statement as JSON. Only of whole files.
    pub(super) fn json(&self) -> Vec<u8> {
        let mut files: Vec<_> = self.files.iter().collect();
        // As the reference implementation orders paths: as lists of components.
        files.sort_by(|(a, _), (b, _)| a.split('/').cmp(b.split('/')));
        let resource = |(path, content): (&String, &Content)| match content {
            Content::Whole(sha256) => Resource {
                name: path.clone(),
                algorithm: HASH.to_owned(),
                digest: *sha256,
            },
            Content::Pieces(_) => unreachable!("nothing is signed in pieces here. This is a bug."),
        };
        let wire = Wire {
            kind: STATEMENT.to_owned(),
            subject: vec![Subject {
                name: self.name.clone(),
                digest: SubjectDigest { sha256: self.root },
            }],
            predicate_type: PREDICATE.to_owned(),
            predicate: Predicate {
                serialization: Serialization {
                    method: "files".to_owned(),
                    hash_type: HASH.to_owned(),
                    allow_symlinks: self.links,
                    ignore_paths: self.ignored.iter().cloned().collect(),
                },
                resources: files.into_iter().map(resource).collect(),
            },
        };
        serde_json::to_vec(&wire).expect("strings and lists of them always serialize")
    }

    /// Whether it is about one file, whatever that is called.
    pub(super) fn is_of_file(&self) -> bool {
        self.files.contains_key(ITSELF)
    }

    /// Whether the signer left a path out on purpose.
    pub(super) fn ignores(&self, path: &str) -> bool {
        is_below(path, self.ignored.iter().map(String::as_str))
    }
}

/// Whether a path is one that nobody signs: git's, and our own manifest.
pub(super) fn is_never_signed(path: &str) -> bool {
    path == manifest::FILE_NAME || is_below(path, GIT.into_iter())
}

fn is_below<'a>(path: &str, mut folders: impl Iterator<Item = &'a str> + Clone) -> bool {
    folders.any(|folder| {
        path.strip_prefix(folder)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

fn ignored(serialization: &Serialization) -> Result<BTreeSet<String>, String> {
    if serialization.hash_type != HASH {
        return Err(format!(
            "its files are hashed with {:?}: only {HASH} is known here",
            clipped(&serialization.hash_type)
        ));
    }
    if serialization.ignore_paths.len() > IGNORED_MAX {
        return Err(format!("it ignores more than {IGNORED_MAX} paths"));
    }
    for path in &serialization.ignore_paths {
        check_path(path)?;
    }
    Ok(serialization.ignore_paths.iter().cloned().collect())
}

fn files(resources: Vec<Resource>, sharded: bool) -> Result<BTreeMap<String, Content>, String> {
    if resources.is_empty() {
        return Err("it lists no file".into());
    }
    if resources.len() > RESOURCES_MAX {
        return Err(format!("it lists more than {RESOURCES_MAX} files or pieces"));
    }
    let mut files = BTreeMap::new();
    for resource in resources {
        let twice = || format!("it lists {:?} twice", clipped(&resource.name));
        let strange = || format!("{:?} is hashed in an unknown way", clipped(&resource.name));
        if !sharded {
            if resource.algorithm != HASH {
                return Err(strange());
            }
            if resource.name != ITSELF {
                check_path(&resource.name)?;
            }
            let whole = Content::Whole(resource.digest);
            if files.insert(resource.name.clone(), whole).is_some() {
                return Err(twice());
            }
            continue;
        }
        if !resource.algorithm.starts_with(SHARDED) {
            return Err(strange());
        }
        let (path, start, end) = piece(&resource.name).ok_or_else(|| {
            format!(
                "{:?} is not PATH:START:END, a piece of a file",
                clipped(&resource.name)
            )
        })?;
        if path != ITSELF {
            check_path(path)?;
        }
        let pieces = files
            .entry(path.to_owned())
            .or_insert_with(|| Content::Pieces(Vec::new()));
        let Content::Pieces(pieces) = pieces else {
            return Err(twice());
        };
        pieces.push((start, end, resource.digest));
    }
    for content in files.values_mut() {
        if let Content::Pieces(pieces) = content {
            pieces.sort_unstable_by_key(|(start, end, _)| (*start, *end));
        }
    }
    if files.contains_key(ITSELF) && files.len() > 1 {
        return Err("it lists files beside a model that is one file".into());
    }
    if files.len() > FILES_MAX {
        return Err(format!("it lists more than {FILES_MAX} files"));
    }
    Ok(files)
}

fn piece(name: &str) -> Option<(&str, u64, u64)> {
    let mut parts = name.split(':');
    let (path, start, end) = (parts.next()?, parts.next()?, parts.next()?);
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().ok()).flatten()
    };
    let (start, end) = (number(start)?, number(end)?);
    (parts.next().is_none() && start < end).then_some((path, start, end))
}

/// A path that stays below the folder that it is relative to, and is written in one way only.
pub(super) fn check_path(path: &str) -> Result<(), String> {
    let stays = |component: &str| !component.is_empty() && component != "." && component != "..";
    if path.len() > PATH_BYTES_MAX || path.chars().any(char::is_control) || !path.split('/').all(stays) {
        return Err(format!(
            "{:?} is not the path of a file in a model's folder",
            clipped(path)
        ));
    }
    Ok(())
}

/// What a stranger wrote, short enough for a message.
fn clipped(text: &str) -> String {
    text.chars().take(80).collect()
}
