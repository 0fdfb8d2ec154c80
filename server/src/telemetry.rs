//! Logs: human or JSON lines on standard error, of this program's own events only.
//!
//! The log libraries of dependencies print what passes through them (hyper and h2 print frames), so their events stay
//! off below `warn` at every level.

use std::io::{IsTerminal as _, Stderr, Write};

use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

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

/// Installs the process's log.
pub fn init(args: &LogArgs) -> anyhow::Result<()> {
    subscriber(args, || Careless(std::io::stderr())).try_init()?;
    hush_panics();
    Ok(())
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
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(args.log_level))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(writer);
    match args.log_format {
        LogFormat::Human => Box::new(builder.with_target(false).finish()),
        LogFormat::Json => Box::new(
            builder
                .json()
                .flatten_event(true)
                .with_current_span(true)
                .finish(),
        ),
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
