//! The file of traces: a line of OTLP/JSON for every batch of spans, and the file before it.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry_proto::tonic::trace::v1::TracesData;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use super::Counters;

/// What the name of the file before ends with.
const BEFORE: &str = ".1";

/// Adds lines to a file, which it puts aside when it is full.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    bytes_max: u64,
    open: Mutex<Open>,
    service: ResourceAttributesWithSchema,
    counters: Arc<Counters>,
}

/// A file that is open, and which one it is.
#[derive(Debug)]
struct Open {
    file: fs::File,
    /// Its device and its number there.
    identity: (u64, u64),
    /// A device has no length, and is nobody's to rename.
    is_file: bool,
}

impl Open {
    fn new(path: &Path) -> io::Result<Self> {
        if fs::metadata(path).is_ok_and(|there| there.file_type().is_fifo()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a pipe, which waits for its reader",
            ));
        }
        let mut options = fs::OpenOptions::new();
        // Who asked when is for those who run the server.
        let file = options
            .append(true)
            .read(true)
            .create(true)
            .mode(0o640)
            .open(path)?;
        let about = file.metadata()?;
        let is_file = about.is_file();
        if is_file {
            file.try_lock()
                .map_err(|_| io::Error::new(io::ErrorKind::ResourceBusy, "another server writes to it"))?;
            end_line(&file, about.len())?;
        }
        let identity = (about.dev(), about.ino());
        Ok(Self {
            file,
            identity,
            is_file,
        })
    }
}

/// Ends the line that a process left when it was killed: the next one would be spoiled with it.
fn end_line(mut file: &fs::File, length: u64) -> io::Result<()> {
    let mut last = [b'\n'];
    if let Some(at) = length.checked_sub(1) {
        file.read_exact_at(&mut last, at)?;
    }
    if last == [b'\n'] {
        Ok(())
    } else {
        file.write_all(b"\n")
    }
}

impl File {
    pub(super) fn open(path: &Path, bytes_max: u64, counters: Arc<Counters>) -> io::Result<Self> {
        Ok(Self {
            open: Mutex::new(Open::new(path)?),
            path: path.to_owned(),
            bytes_max,
            service: ResourceAttributesWithSchema::default(),
            counters,
        })
    }

    fn add(&self, line: &[u8]) -> io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have moved or emptied it meanwhile.
        let is_there =
            fs::metadata(&self.path).is_ok_and(|there| (there.dev(), there.ino()) == open.identity);
        if !is_there {
            *open = Open::new(&self.path)?;
        }
        let mut length = open.file.metadata()?.len();
        if open.is_file && length > 0 && length + line.len() as u64 > self.bytes_max {
            let mut before = OsString::from(&self.path);
            before.push(BEFORE);
            fs::rename(&self.path, before)?;
            *open = Open::new(&self.path)?;
            length = 0;
        }
        let written = open.file.write_all(line);
        if written.is_err() && open.is_file {
            // Half a line would spoil the next one, too.
            let _ = open.file.set_len(length);
        }
        written
    }
}

impl SpanExporter for File {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let data = TracesData {
            resource_spans: group_spans_by_resource_and_scope(batch, &self.service),
        };
        let mut line =
            serde_json::to_vec(&data).map_err(|error| OTelSdkError::InternalFailure(error.to_string()))?;
        line.push(b'\n');
        match self.add(&line) {
            Ok(()) => {
                self.counters.written.fetch_add(spans, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(OTelSdkError::InternalFailure(format!(
                "{}: {error}; {spans} spans are lost",
                self.path.display()
            ))),
        }
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.service = resource.into();
    }
}
