//! One file from the hub into the cache: continued where it stopped, tried again, checked before it gets its name.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::StreamExt;

use super::Limits;
use super::cache::{self, Cache, Checker, RemoteFile};
use super::error::{Error, Failure};
use super::hub::Hub;
use crate::digest::Sha256;
use crate::progress::{Action, Event, Progress};

/// Bytes that a try must bring for the count of tries to begin anew: a long download over a bad line gets there, a
/// connection that brings nothing does not go on for ever.
const PROGRESS_BYTES_MIN: u64 = 1 << 20;

/// Brings `file` into the cache at `blob` and returns its SHA-256. A blob that is already right is not fetched, unless
/// `force`.
pub(super) async fn fetch(
    hub: &Hub,
    cache: &Cache,
    commit: &str,
    file: &RemoteFile,
    options: Options<'_>,
) -> Result<Sha256, Error> {
    let progress = options.progress;
    let blob = cache.blob(file).ok_or_else(|| Error::Malformed {
        endpoint: hub.endpoint().to_owned(),
        what: file.path.clone(),
        reason: "the hub gives it no identity".to_owned(),
    })?;
    let wait = || {
        progress.report(Event::Note(
            "another process is fetching this file: waiting for it",
        ));
    };
    let _lock = cache.lock(&blob, wait)?;
    if !options.force
        && let Some(sha256) = cache::check(&blob, file, progress)?
    {
        return Ok(sha256);
    }
    cache::create_parent(&blob)?;
    let partial = Partial {
        path: with_suffix(&blob, ".incomplete"),
        file,
    };
    if options.force {
        partial.remove()?;
    }
    let sha256 = download(hub, commit, &partial, options).await?;
    fs::rename(&partial.path, &blob).map_err(|source| Error::Io { path: blob, source })?;
    Ok(sha256)
}

/// How a file is to be fetched.
#[derive(Clone, Copy)]
pub(super) struct Options<'a> {
    pub(super) force: bool,
    pub(super) limits: &'a Limits,
    pub(super) progress: &'a dyn Progress,
}

/// The bytes of a file that have arrived so far.
struct Partial<'a> {
    path: PathBuf,
    file: &'a RemoteFile,
}

/// A partial file open at its end, with the digest of what is in it.
struct Sink {
    output: File,
    checker: Checker,
}

impl Partial<'_> {
    fn io_error(&self, source: io::Error) -> Error {
        Error::Io {
            path: self.path.clone(),
            source,
        }
    }

    fn remove(&self) -> Result<(), Error> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.io_error(error)),
            _ => Ok(()),
        }
    }

    /// Opens what an earlier run left, or an empty file.
    fn open(&self) -> Result<Sink, Error> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(&self.path)
            .map_err(|e| self.io_error(e))?;
        let length = output.metadata().map_err(|e| self.io_error(e))?.len();
        let mut checker = Checker::new(self.file);
        if length > self.file.bytes {
            output.set_len(0).map_err(|e| self.io_error(e))?;
        } else if length > 0 {
            cache::feed(&mut checker, &self.path, |_| {}).map_err(|e| self.io_error(e))?;
        }
        Ok(Sink { output, checker })
    }
}

async fn download(
    hub: &Hub,
    commit: &str,
    partial: &Partial<'_>,
    options: Options<'_>,
) -> Result<Sha256, Error> {
    let (file, progress) = (partial.file, options.progress);
    let mut sink = partial.open()?;
    let mut continued = sink.checker.bytes() > 0;
    let started = |done| Event::Started {
        action: Action::Downloading,
        file: &file.path,
        bytes: file.bytes,
        done,
    };
    progress.report(started(sink.checker.bytes()));
    let mut attempt = 1;
    loop {
        let before = sink.checker.bytes();
        let result = receive(hub, commit, partial, &mut sink, options).await;
        let failure = match result {
            Ok(()) => match sink.checker.clone().finish(file) {
                Ok(sha256) => {
                    sink.output.sync_all().map_err(|e| partial.io_error(e))?;
                    progress.report(Event::Finished { file: &file.path });
                    return Ok(sha256);
                }
                Err(error) if !continued => {
                    partial.remove()?;
                    return Err(error);
                }
                Err(_) => Failure::Restart {
                    reason: "what was continued does not add up".to_owned(),
                },
            },
            Err(failure) => failure,
        };
        let restart = matches!(failure, Failure::Restart { .. });
        if sink.checker.bytes() >= before.saturating_add(PROGRESS_BYTES_MIN) && !restart {
            attempt = 1;
        }
        continued = !restart;
        if restart {
            partial.remove()?;
            sink = partial.open()?;
        }
        hub.pause(&file.path, &mut attempt, failure, progress).await?;
        progress.report(started(sink.checker.bytes()));
    }
}

/// One try: asks for what is missing and appends what comes. `Ok` means that the file has its full length.
async fn receive(
    hub: &Hub,
    commit: &str,
    partial: &Partial<'_>,
    sink: &mut Sink,
    options: Options<'_>,
) -> Result<(), Failure> {
    let file = partial.file;
    if sink.checker.bytes() == file.bytes {
        return Ok(());
    }
    let mut stream = hub.stream(commit, file, sink.checker.bytes()).await?;
    let mut rate = Rate::new(options.limits);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| hub.classify(&error, Some(file), &file.path))?;
        if chunk.len() as u64 > file.bytes - sink.checker.bytes() {
            let reason = "more bytes came than the hub lists for this file".to_owned();
            return Err(Failure::Restart { reason });
        }
        sink.output
            .write_all(&chunk)
            .map_err(|source| Failure::Fatal(partial.io_error(source)))?;
        sink.checker.update(&chunk);
        options.progress.report(Event::Advanced {
            file: &file.path,
            done: sink.checker.bytes(),
        });
        if rate.is_too_slow(chunk.len()) {
            return Err(Failure::transient("the hub sends too slowly"));
        }
    }
    if sink.checker.bytes() < file.bytes {
        return Err(Failure::transient("the connection ended before the file did"));
    }
    Ok(())
}

/// Notices a server that keeps a connection alive with a trickle, which no read timeout ends.
struct Rate {
    window: Duration,
    bytes_min: u64,
    since: Instant,
    bytes: u64,
}

impl Rate {
    fn new(limits: &Limits) -> Self {
        Self {
            window: limits.rate_window,
            bytes_min: limits.rate_window_bytes_min,
            since: Instant::now(),
            bytes: 0,
        }
    }

    fn is_too_slow(&mut self, bytes: usize) -> bool {
        self.bytes += bytes as u64;
        if self.since.elapsed() < self.window {
            return false;
        }
        let too_slow = self.bytes < self.bytes_min;
        (self.since, self.bytes) = (Instant::now(), 0);
        too_slow
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    PathBuf::from(path)
}
