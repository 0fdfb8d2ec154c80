//! Traces of requests: when each waited, was read and was answered, as OpenTelemetry has it (spans by the conventions for generative
//! AI), one line of OTLP/JSON a batch, in a file.
//!
//! A file, and no connection: a server that lets nothing out has no exporter. A collector reads it (its receiver `otlpjsonfile`)
//! and takes it on. What a span holds is numbers, names that the server gives, and what the kinds of requests are called; no prompt,
//! answer or key.
//!
//! Specifications: "OpenTelemetry Protocol File Exporter", OTLP 1.x (JSON), "Semantic conventions for generative AI", W3C Trace
//! Context.

#![forbid(unsafe_code)]

mod file;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Tracer as _, TracerProvider as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span, SpanData,
    SpanLimits, SpanProcessor,
};

pub use opentelemetry::trace::{FutureExt, Status, TraceContextExt};
pub use opentelemetry::{Array, Context, KeyValue, StringValue, Value};

use file::File;

const TRACEPARENT: &str = "traceparent";
/// The scope of all spans, and the name of the service.
const NAME: &str = "rempart";
/// How long spans wait for others before they are written.
const WRITTEN_EVERY: Duration = Duration::from_secs(1);
/// Spans of a line.
const BATCH: usize = 512;
/// How long the last spans get at the end.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// Where traces go, and how many.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub file: PathBuf,
    /// Bytes of the file at which it is put aside, as the one before, and begun anew.
    pub file_bytes_max: u64,
    /// The share of requests that are traced where the client does not say, 0 to 1.
    pub ratio: f64,
    /// Spans that wait to be written; more are lost, and counted.
    pub queue_max: usize,
}

/// What became of spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Spans that ended.
    pub ended: u64,
    /// Those of them that are in the file.
    pub written: u64,
}

#[derive(Debug, Default)]
struct Counters {
    ended: AtomicU64,
    written: AtomicU64,
}

/// Makes spans and has them written by a thread of its own.
#[derive(Clone, Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    counters: Arc<Counters>,
}

impl Traces {
    /// Opens the file, which is added to; its folder must be there. `version` is the service's.
    ///
    /// # Errors
    /// The file can't be opened, is a pipe, or is another server's.
    pub fn open(settings: &Settings, version: &'static str) -> io::Result<Self> {
        let counters = Arc::new(Counters::default());
        let file = File::open(&settings.file, settings.file_bytes_max, Arc::clone(&counters))?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(settings.queue_max)
            .with_max_export_batch_size(BATCH.min(settings.queue_max))
            .with_scheduled_delay(WRITTEN_EVERY)
            .build();
        let writer = BatchSpanProcessor::builder(file)
            .with_batch_config(batches)
            .build();
        let service = Resource::builder_empty()
            .with_service_name(NAME)
            .with_attribute(KeyValue::new("service.version", version));
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                settings.ratio,
            ))))
            .with_resource(service.build())
            // The environment is read in one place, which is not here.
            .with_span_limits(SpanLimits::default())
            .with_span_processor(Counted {
                writer,
                counters: Arc::clone(&counters),
            })
            .build();
        let tracer = provider.tracer(NAME);
        Ok(Self {
            provider,
            tracer,
            counters,
        })
    }

    /// Begins the span of a request that came at a time, within the trace that its headers name if they do. It ends when
    /// it is ended, or with its last context.
    pub fn begin(
        &self,
        headers: &HeaderMap,
        name: String,
        came: SystemTime,
        attributes: Vec<KeyValue>,
    ) -> Context {
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
        let builder = SpanBuilder::from_name(name)
            .with_kind(SpanKind::Server)
            .with_start_time(came)
            .with_attributes(attributes);
        let span = self.tracer.build_with_context(builder, &parent);
        parent.with_span(span).with_value(Maker(self.tracer.clone()))
    }

    /// What became of spans so far.
    pub fn counts(&self) -> Counts {
        Counts {
            ended: self.counters.ended.load(Ordering::Relaxed),
            written: self.counters.written.load(Ordering::Relaxed),
        }
    }

    /// Writes what waits. No span is taken afterwards.
    pub fn close(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(CLOSE_MAX) {
            tracing::error!(%error, "the last traces could not be written");
        }
    }
}

/// What makes the spans of a request's parts, in its context.
struct Maker(SdkTracer);

/// Tells of a part of what a request did, now that it is known when it began and ended. Nothing where the request is not traced.
pub fn part(
    request: &Context,
    name: &'static str,
    times: (SystemTime, SystemTime),
    attributes: Vec<KeyValue>,
) {
    let Some(Maker(tracer)) = request.get::<Maker>().filter(|_| request.span().is_recording()) else {
        return;
    };
    let builder = SpanBuilder::from_name(name)
        .with_kind(SpanKind::Internal)
        .with_start_time(times.0)
        .with_attributes(attributes);
    tracer
        .build_with_context(builder, request)
        .end_with_timestamp(times.1);
}

/// A request's headers, of which a trace's are read.
struct Headers<'h>(&'h HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        // Not `tracestate`: that is a text of the client's, which the spans would carry.
        let value = self.0.get(key).filter(|_| key == TRACEPARENT)?;
        value.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

/// Counts what is handed to a writer, which loses spans where it has too many.
#[derive(Debug)]
struct Counted {
    writer: BatchSpanProcessor,
    counters: Arc<Counters>,
}

impl SpanProcessor for Counted {
    fn on_start(&self, span: &mut Span, parent: &Context) {
        self.writer.on_start(span, parent);
    }

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() {
            self.counters.ended.fetch_add(1, Ordering::Relaxed);
        }
        self.writer.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.writer.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.writer.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.writer.set_resource(resource);
    }
}

#[cfg(test)]
mod tests;
