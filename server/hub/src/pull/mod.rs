//! `rempart pull`: a model from a hub into the store, every byte checked. The only module with a network; in it, [`login`]
//! fetches the public keys of a company's login.
//!
//! hf-hub speaks to the hub (listing, addresses, tokens, ranges, xet storage). Resuming, checking and installing are
//! done here, because hf-hub 1.0 begins an interrupted file again and verifies nothing. Everything comes as arguments:
//! the environment is not consulted, with these exceptions inside the libraries: reqwest honours `HTTPS_PROXY` and its
//! kind for hubs that are not on this machine, and hf-xet reads `HF_XET_*` tuning when a hub stores a file in xet.

mod cache;
mod download;
mod error;
mod hub;
mod install;
pub mod login;
mod select;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

pub use error::Error;
pub use hub::{DEFAULT_ENDPOINT, Token};

use crate::digest::Sha256;
use crate::manifest::{self, FileEntry, Manifest};
use crate::progress::{Event, Progress};
use crate::reference::{HubReference, Reference};
use crate::store;
use cache::{Cache, Identity, RemoteFile};
use download::Options;
use hub::{Hub, Listing};
use install::Place;

/// Free space to leave on a disk, beyond what the model takes.
const DISK_RESERVE_BYTES: u64 = 64 << 20;

/// What to pull, from where, and to where.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// A catalogue name or a hub reference.
    pub reference: Reference,
    /// The hub's cache, shared with other tools: usually `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// The store that gets the model's folder.
    pub store: PathBuf,
    /// The folder's name; by default the catalogue name or [`store::folder_name`].
    pub name: Option<String>,
    /// Fetch again what is already there, and replace a folder that no pull has made.
    pub force: bool,
    /// The hub's address.
    pub endpoint: String,
    /// Sent to `endpoint` alone.
    pub token: Option<Token>,
    /// Use the cache only.
    pub offline: bool,
    pub limits: Limits,
}

/// How long and how often a pull tries.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tries of one request that brings nothing.
    pub attempts_max: u32,
    /// Wait before the second try; it doubles from try to try.
    pub retry_delay: Duration,
    /// Longest wait between tries, also when the hub asks for more.
    pub retry_delay_max: Duration,
    pub connect_timeout: Duration,
    /// Longest silence within an answer.
    pub read_timeout: Duration,
    /// Longest time for a complete listing.
    pub listing_timeout: Duration,
    /// A download must bring `rate_window_bytes_min` in each such time.
    pub rate_window: Duration,
    pub rate_window_bytes_min: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            attempts_max: 6,
            retry_delay: Duration::from_secs(1),
            retry_delay_max: Duration::from_mins(1),
            connect_timeout: Duration::from_secs(15),
            read_timeout: Duration::from_mins(1),
            listing_timeout: Duration::from_mins(2),
            rate_window: Duration::from_mins(1),
            rate_window_bytes_min: 64 << 10,
        }
    }
}

impl PullRequest {
    /// A request to the public hub, without a token.
    pub fn new(reference: Reference, cache: PathBuf, store: PathBuf) -> Self {
        Self {
            reference,
            cache,
            store,
            name: None,
            force: false,
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            token: None,
            offline: false,
            limits: Limits::default(),
        }
    }
}

/// A model that is now in the store, verified.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// What `rempart serve --model` calls it.
    pub name: String,
    /// Its folder.
    pub dir: PathBuf,
    pub manifest: Manifest,
}

/// Fetches a model into the store. A model that is already there, complete and at the revision's commit, is verified
/// and left alone. Blocks; may be called inside an asynchronous runtime, on a thread that may block.
///
/// # Errors
/// See [`Error`]. After an interruption or an error the bytes that came stay in the cache, and the next pull goes on
/// from there; bytes that fail their check are deleted. The store never holds an incomplete model.
pub fn pull(request: &PullRequest, progress: &dyn Progress) -> Result<Pulled, Error> {
    alone(|| Box::pin(run(request, progress))).map_err(Error::Internal)?
}

/// Runs what waits for a network to its end. On a thread of its own: a runtime may be neither entered nor dropped within another.
fn alone<T: Send, F: Future<Output = T>>(work: impl FnOnce() -> F + Send) -> Result<T, &'static str> {
    let blocking = || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.map_err(|_| "no runtime could be started")?;
        Ok(runtime.block_on(work()))
    };
    thread::scope(|scope| scope.spawn(blocking).join()).map_err(|_| "it panicked")?
}

async fn run(request: &PullRequest, progress: &dyn Progress) -> Result<Pulled, Error> {
    let model = Model::new(request)?;
    if let Some(terms) = model.terms {
        progress.report(Event::Note(&format!(
            "{} comes under its own terms: {terms}",
            model.name
        )));
    }
    let wait = || {
        progress.report(Event::Note(
            "another process is pulling this model: waiting for it",
        ));
    };
    let place = Place::reserve(&request.store, &model.name, wait)?;
    let cache = Cache::new(&request.cache, &model.reference);
    let manifest = if request.offline {
        offline(request, &model, &cache, &place, progress)?
    } else {
        online(request, &model, &cache, &place, progress).await?
    };
    Ok(Pulled {
        name: model.name,
        dir: place.dir().to_owned(),
        manifest,
    })
}

/// What a request means, resolved.
struct Model {
    reference: HubReference,
    name: String,
    terms: Option<&'static str>,
    /// What the catalogue says of the file, over and above the hub.
    sha256: Option<Sha256>,
}

impl Model {
    fn new(request: &PullRequest) -> Result<Self, Error> {
        let (reference, name, terms, sha256) = match &request.reference {
            Reference::Path(path) => {
                return Err(Error::LocalPath {
                    path: path.display().to_string(),
                });
            }
            Reference::Hub(hub) => (hub.clone(), store::folder_name(hub), None, None),
            Reference::Catalogue(entry) => {
                let sha256 = entry
                    .sha256
                    .map(|text| text.parse().expect("a test parses every entry's digest"));
                (entry.reference(), entry.name.to_owned(), entry.terms, sha256)
            }
        };
        let name = request.name.clone().unwrap_or(name);
        store::check_name(&name)?;
        Ok(Self {
            reference,
            name,
            terms,
            sha256,
        })
    }

    fn check(&self, file: &str, found: Sha256) -> Result<(), Error> {
        match self.sha256 {
            Some(expected) if expected != found => Err(Error::Digest {
                file: file.to_owned(),
                authority: "the catalogue",
                expected: expected.to_string(),
                found,
            }),
            _ => Ok(()),
        }
    }

    fn manifest(&self, commit: &str, files: Vec<FileEntry>) -> Manifest {
        let source = self.reference.to_string();
        Manifest {
            version: manifest::VERSION,
            source,
            revision: commit.to_owned(),
            files,
        }
    }
}

async fn online(
    request: &PullRequest,
    model: &Model,
    cache: &Cache,
    place: &Place,
    progress: &dyn Progress,
) -> Result<Manifest, Error> {
    let hub = Hub::new(
        &model.reference,
        &request.endpoint,
        request.token.as_ref(),
        request.limits,
    )?;
    let Listing { commit, files } = hub.list(progress).await?;
    let files = select::select(&model.reference, files)?;
    for file in &files {
        if let Identity::Lfs(sha256) = file.identity {
            model.check(&file.path, sha256)?;
        }
    }
    if !request.force
        && let Some(manifest) = installed(place, &commit, &files, progress)
    {
        return Ok(manifest);
    }
    place.check_replaceable(request.force)?;
    check_disks(request, cache, &files)?;
    let mut entries = Vec::with_capacity(files.len());
    let options = Options {
        force: request.force,
        limits: &request.limits,
        progress,
    };
    for file in &files {
        let sha256 = Box::pin(download::fetch(&hub, cache, &commit, file, options)).await?;
        model.check(&file.path, sha256)?;
        if let Some(blob) = cache.blob(file) {
            cache.link(&commit, file, &blob)?;
        }
        entries.push(FileEntry {
            path: file.path.clone(),
            bytes: file.bytes,
            sha256,
        });
    }
    cache.set_commit(model.reference.revision(), &commit)?;
    let manifest = model.manifest(&commit, entries);
    place.install(&manifest, |path| cache.snapshot_file(&commit, path))?;
    Ok(manifest)
}

/// The manifest of what the store already has, if that is exactly what the hub lists and proves intact.
fn installed(place: &Place, commit: &str, files: &[RemoteFile], progress: &dyn Progress) -> Option<Manifest> {
    let manifest = Manifest::load(place.dir()).ok()??;
    let same = |(entry, file): (&FileEntry, &RemoteFile)| {
        let known = match file.identity {
            Identity::Lfs(sha256) => entry.sha256 == sha256,
            Identity::Git(_) | Identity::Unknown => true,
        };
        known && entry.path == file.path && entry.bytes == file.bytes
    };
    let current = manifest.revision == commit
        && manifest.files.len() == files.len()
        && manifest.files.iter().zip(files).all(same);
    (current && manifest.verify(place.dir(), progress).is_ok()).then_some(manifest)
}

fn offline(
    request: &PullRequest,
    model: &Model,
    cache: &Cache,
    place: &Place,
    progress: &dyn Progress,
) -> Result<Manifest, Error> {
    match from_cache(request, model, cache, place, progress) {
        // The cache may have been cleaned since: what is installed and intact will do.
        Err(Error::Offline { .. }) if !request.force && is_from(place, &model.reference) => {
            let manifest = Manifest::load(place.dir())?.ok_or(Error::Internal("the manifest vanished"))?;
            manifest.verify(place.dir(), progress)?;
            Ok(manifest)
        }
        other => other,
    }
}

fn is_from(place: &Place, reference: &HubReference) -> bool {
    Manifest::load(place.dir())
        .is_ok_and(|manifest| manifest.is_some_and(|m| m.source == reference.to_string()))
}

fn from_cache(
    request: &PullRequest,
    model: &Model,
    cache: &Cache,
    place: &Place,
    progress: &dyn Progress,
) -> Result<Manifest, Error> {
    let missing = |reason: String| Error::Offline {
        reference: model.reference.to_string(),
        cache: cache.root().to_owned(),
        reason,
    };
    let revision = model.reference.revision();
    let commit = cache
        .commit(revision)
        .ok_or_else(|| missing(format!("revision {revision} is not there")))?;
    let listing = cache.snapshot(&commit);
    if listing.is_empty() {
        return Err(missing(format!("no file of {commit} is there")));
    }
    let files = select::select(&model.reference, listing).map_err(|error| missing(error.to_string()))?;
    let mut entries = Vec::with_capacity(files.len());
    for file in &files {
        let path = cache.snapshot_file(&commit, &file.path);
        let sha256 = cache::check(&path, file, progress)?
            .ok_or_else(|| missing(format!("`{}` is damaged: pull it again online", file.path)))?;
        model.check(&file.path, sha256)?;
        entries.push(FileEntry {
            path: file.path.clone(),
            bytes: file.bytes,
            sha256,
        });
    }
    place.check_replaceable(request.force)?;
    let manifest = model.manifest(&commit, entries);
    place.install(&manifest, |path| cache.snapshot_file(&commit, path))?;
    Ok(manifest)
}

/// Refuses a download that cannot fit before it begins: into the cache, and into the store if that is another disk.
fn check_disks(request: &PullRequest, cache: &Cache, files: &[RemoteFile]) -> Result<(), Error> {
    let total = |files: &mut dyn Iterator<Item = u64>| files.fold(0_u64, u64::saturating_add);
    let is_cached = |file: &&RemoteFile| {
        let blob = cache.blob(file).and_then(|blob| blob.metadata().ok());
        !request.force && blob.is_some_and(|metadata| metadata.len() == file.bytes)
    };
    let fetched = total(
        &mut files
            .iter()
            .filter(|file| !is_cached(file))
            .map(|file| file.bytes),
    );
    check_disk(&request.cache, fetched)?;
    if disk_id(&request.cache) != disk_id(&request.store) {
        check_disk(&request.store, total(&mut files.iter().map(|file| file.bytes)))?;
    }
    Ok(())
}

fn check_disk(path: &Path, needed: u64) -> Result<(), Error> {
    let Some(existing) = existing_ancestor(path) else {
        return Ok(());
    };
    // A file system that cannot say what is free gets the benefit of the doubt.
    let Ok(status) = rustix::fs::statvfs(&existing) else {
        return Ok(());
    };
    let free = status.f_bavail.saturating_mul(status.f_frsize);
    if needed.saturating_add(DISK_RESERVE_BYTES) > free && needed > 0 {
        return Err(Error::Disk {
            path: existing,
            needed,
            free,
        });
    }
    Ok(())
}

fn disk_id(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    existing_ancestor(path)?
        .metadata()
        .ok()
        .map(|metadata| metadata.dev())
}

fn existing_ancestor(path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    absolute
        .ancestors()
        .find(|ancestor| ancestor.is_dir())
        .map(Path::to_owned)
}
