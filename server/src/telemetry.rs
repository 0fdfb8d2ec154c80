//! Logs: human or JSON lines on standard error, of this program's own events only.
//!
//! The log libraries of dependencies print what passes through them (hyper and h2 print frames), so their events stay
//! off below `warn` at every level.

use std::io::{IsTerminal as _, Stderr, Write};
use std::sync::OnceLock;

use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, reload};

use anyhow::Context as _;

use crate::config::{LogArgs, LogFormat, LogLevel};

/// Our crates, whose events carry no content at any level.
const OWN: &[&str] = &[
    "rempart",
    "rempart_engine",
    "rempart_governance",
    "rempart_hub",
    "rempart_kernels",
    "rempart_models",
    "rempart_text",
];

static FORMAT: OnceLock<LogFormat> = OnceLock::new();
static LEVEL: OnceLock<SetLevel> = OnceLock::new();

/// Changes how much a log tells; an error where the log is gone.
type SetLevel = Box<dyn Fn(LogLevel) -> Result<(), reload::Error> + Send + Sync>;

/// The format of the process's log as `--log-format` takes it: what this process starts writes to the same place.
pub(crate) fn log_format() -> &'static str {
    match FORMAT.get() {
        Some(LogFormat::Json) => "json",
        Some(LogFormat::Human) | None => "human",
    }
}

/// Installs the process's log.
pub fn init(args: &LogArgs) -> anyhow::Result<()> {
    // A second log is refused below.
    let _ = FORMAT.set(args.log_format);
    let (log, level) = adjustable(args, || Careless(std::io::stderr()));
    log.try_init()?;
    let _ = LEVEL.set(level);
    hush_panics();
    Ok(())
}

/// Changes how much the process's log tells.
///
/// # Errors
/// There is no such log.
pub fn set_level(level: LogLevel) -> anyhow::Result<()> {
    let set = LEVEL.get().context("the process has no log")?;
    Ok(set(level)?)
}

/// Standard error, whose failures are nobody's: where a log can't be written, its disk full or its reader gone, the server goes on.
/// The library would else report the failure to the same place, and panic.
struct Careless(Stderr);

impl Write for Careless {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _lost = self.0.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let _lost = self.0.flush();
        Ok(())
    }
}

/// Panics are logged by place. Their words may quote what the code was working on: a slice out of range quotes the
/// whole string.
fn hush_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "panicked");
    }));
}

/// The subscriber that `init` installs, writing to `writer`.
pub fn subscriber<W>(args: &LogArgs, writer: W) -> Box<dyn tracing::Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    adjustable(args, writer).0
}

fn adjustable<W>(args: &LogArgs, writer: W) -> (Box<dyn tracing::Subscriber + Send + Sync>, SetLevel)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(args.log_level))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(writer);
    match args.log_format {
        LogFormat::Human => {
            let builder = builder.with_target(false).with_filter_reloading();
            let handle = builder.reload_handle();
            (
                Box::new(builder.finish()),
                Box::new(move |level| handle.reload(filter(level))),
            )
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_current_span(true);
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            (
                Box::new(builder.finish()),
                Box::new(move |level| handle.reload(filter(level))),
            )
        }
    }
}

fn filter(level: LogLevel) -> EnvFilter {
    let level = match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    let others = level.min(Level::WARN);
    let own = OWN.iter().map(|name| format!("{name}={level}"));
    let directives: Vec<String> = std::iter::once(others.to_string()).chain(own).collect();
    EnvFilter::new(directives.join(","))
}
