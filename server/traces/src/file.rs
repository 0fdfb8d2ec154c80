//! The file of traces: a line of OTLP/JSON for every batch of spans, and the file before it.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
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

/// A file, and how long it is.
#[derive(Debug)]
struct Open {
    file: fs::File,
    bytes: u64,
}

impl Open {
    fn new(path: &Path) -> io::Result<Self> {
        let mut options = fs::OpenOptions::new();
        options.append(true).create(true);
        #[cfg(unix)]
        {
            // Who asked when is for those who run the server.
            use std::os::unix::fs::OpenOptionsExt as _;
            options.mode(0o640);
        }
        let file = options.open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { file, bytes })
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
        let length = line.len() as u64;
        if open.bytes > 0 && open.bytes + length > self.bytes_max {
            let mut before = OsString::from(&self.path);
            before.push(BEFORE);
            fs::rename(&self.path, before)?;
            *open = Open::new(&self.path)?;
        }
        if let Err(error) = open.file.write_all(line) {
            // Half a line would spoil the next one, too.
            open.file.set_len(open.bytes)?;
            return Err(error);
        }
        open.bytes += length;
        Ok(())
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
