//! `rempart traces send`: what a server writes to its file of traces, to a collector over OTLP/HTTP, each line at least once.
//!
//! A process of its own: a server that lets nothing out has no connection to a collector, and one that is slow or gone delays
//! no request. What has been taken is kept beside the file ([`place`]), so that it goes on there; a collector that was told of a
//! span twice, as the process ended between the answer and that note, knows it by its number. Lines that the collector can't read
//! are left behind when it has read a later one.
//!
//! Specification: OTLP 1.x, "OTLP/HTTP".

mod place;
mod tail;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use clap::Args;
use percent_encoding::percent_decode_str;
use rempart_client::{Client, Failure, HeaderArgs, Patience, Secret, seconds};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use crate::AGENT;
use place::Kept;
use tail::{Line, Tail};

/// Where a collector takes traces, behind its URL.
const ROUTE: &str = "v1/traces";
/// Of its answer.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// How often it is looked whether a line has been added.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long is waited before a line is sent again, at first and at most; each time twice as long.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// How long a line is tried for where all is sent once.
const ONCE_PATIENCE: Duration = Duration::from_secs(30);
/// Lines in a row that a collector can't read before it is thought to be none: they are sent again later.
const UNREAD_MAX: u32 = 8;
/// The longest wait that a collector may ask for.
const WAIT_ASKED_MAX: Duration = Duration::from_mins(5);

/// Options of `rempart traces send`.
#[derive(Clone, Debug, Args)]
pub struct TracesSendArgs {
    /// The server's `--traces-file`; how much of it has been sent is kept in `FILE.sent`
    #[arg(value_name = "FILE", env = "REMPART_TRACES_FILE")]
    file: PathBuf,
    /// Where the collector is: traces are posted to `URL/v1/traces`
    #[arg(
        long,
        value_name = "URL",
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        default_value = "http://127.0.0.1:4318"
    )]
    endpoint: String,
    /// Send what is there, and end
    #[arg(long)]
    once: bool,
    /// End with an error when the collector has not taken a line for so long [default: never; with --once 30]
    #[arg(long, value_name = "S")]
    give_up_after_s: Option<f64>,
    /// For one request and its answer
    #[arg(long, value_name = "S", default_value = "10")]
    timeout_s: f64,
    /// Sent with each request, as OpenTelemetry writes them: several with commas between, and what is special in `%XX`
    #[arg(
        long,
        value_name = "NAME=VALUE,..",
        env = "OTEL_EXPORTER_OTLP_HEADERS",
        hide_env_values = true,
        help_heading = "Server"
    )]
    headers: Option<Secret>,
    #[command(flatten)]
    server: HeaderArgs,
}

/// What became of what was sent.
#[derive(Debug, Default)]
struct Counts {
    /// Lines that the collector took.
    lines: u64,
    /// Spans of them that it did not keep.
    rejected: u64,
    /// Lines that it, or nobody, can read.
    skipped: u64,
}

/// What a collector makes of a line.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It has it, but for some spans.
    Taken { rejected: u64 },
    /// It can't read it, and never will.
    Unread(String),
    /// It may take it later, at the earliest after a time that it names.
    Later(String, Option<Duration>),
    /// It takes nothing of what is sent so.
    Refused(String),
}

/// Sends until there is no more, where that was asked for, or until a signal comes. What is worth knowing goes to `out`.
///
/// # Errors
/// A file can't be read or written, or is not there and all was to be sent at once; the collector refuses what comes from here,
/// or has taken nothing for as long as was said; a signal came before all was sent that was to be sent at once.
pub fn send(args: &TracesSendArgs, out: &mut impl Write) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(send_all(args, out))
}

async fn send_all(args: &TracesSendArgs, out: &mut impl Write) -> anyhow::Result<()> {
    // Before anything is laid beside it.
    let named = args.file.display();
    if !tail::is_there(&args.file).with_context(|| named.to_string())? {
        ensure!(!args.once, "{named}: there is no such file");
        writeln!(out, "{named} is not there yet")?;
    }
    let mut sender = Sender::new(args)?;
    if sender.client.target().tells_key() {
        writeln!(
            out,
            "the collector's key goes to another machine in the clear: https:// would hide it"
        )?;
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let ended = tokio::select! {
        done = sender.run(out) => done,
        _ = terminate.recv() => interrupted(args.once),
        _ = interrupt.recv() => interrupted(args.once),
    };
    let Counts {
        lines,
        rejected,
        skipped,
    } = sender.counts;
    writeln!(
        out,
        "{lines} lines sent; {rejected} spans of them not kept by the collector, {skipped} lines left out"
    )?;
    ended
}

/// How a signal ends it: as it should, unless all was to be sent.
fn interrupted(once: bool) -> anyhow::Result<()> {
    ensure!(!once, "ended before all was sent");
    Ok(())
}

struct Sender {
    client: Client,
    path: String,
    tail: Tail,
    kept: Kept,
    once: bool,
    patience: Option<Duration>,
    /// Lines since the last that was taken: the place stays before them.
    unread: u32,
    counts: Counts,
}

impl Sender {
    fn new(args: &TracesSendArgs) -> anyhow::Result<Self> {
        let headers = args.headers.as_ref().map(headers).transpose()?;
        let target = args
            .server
            .target("--endpoint", &args.endpoint, headers.unwrap_or_default())?;
        let path = target.path(ROUTE);
        let patience = match args.give_up_after_s {
            Some(given) => Some(seconds("--give-up-after-s", given)?),
            None => args.once.then_some(ONCE_PATIENCE),
        };
        let request = seconds("--timeout-s", args.timeout_s)?;
        // Only the whole is limited, by an option that there is.
        let times = Patience {
            connect: 2 * request,
            idle: 2 * request,
            request,
        };
        let (kept, place) = Kept::open(&args.file)?;
        let named = || args.file.display().to_string();
        Ok(Self {
            client: Client::new(target, times, AGENT),
            path,
            tail: Tail::open(&args.file, place).with_context(named)?,
            kept,
            once: args.once,
            patience,
            unread: 0,
            counts: Counts::default(),
        })
    }

    async fn run(&mut self, out: &mut impl Write) -> anyhow::Result<()> {
        loop {
            let line = self.tail.next().context("the file of traces")?;
            if self.tail.has_missed() {
                writeln!(
                    out,
                    "the file was put aside more than once before it was sent: some of it may be lost; see --traces-file-mib-max"
                )?;
            }
            match line {
                Some(line) => self.deliver(line, out).await?,
                None if self.once => return Ok(()),
                None => sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Sends a line until it is taken, or never will be.
    async fn deliver(&mut self, line: Line, out: &mut impl Write) -> anyhow::Result<()> {
        let outcome = match line.bytes {
            None => Outcome::Unread("it is too long".into()),
            Some(bytes) if bytes.is_empty() => return Ok(()),
            Some(bytes) => self.insist(bytes.into(), out).await?,
        };
        match outcome {
            Outcome::Taken { rejected } => {
                self.unread = 0;
                self.counts.lines += 1;
                self.counts.rejected += rejected;
                if rejected > 0 {
                    writeln!(out, "the collector did not keep {rejected} spans of a line")?;
                }
            }
            Outcome::Unread(why) => {
                self.counts.skipped += 1;
                writeln!(out, "a line is left out: {why}")?;
                self.unread += 1;
                ensure!(
                    self.unread < UNREAD_MAX,
                    "none of {UNREAD_MAX} lines in a row was read, which are sent again: is --endpoint right?"
                );
                return Ok(());
            }
            Outcome::Later(why, _) | Outcome::Refused(why) => bail!("nothing more is sent: {why}"),
        }
        self.kept.set(line.behind)
    }

    /// Sends until there is an answer that stays one.
    async fn insist(&self, body: Bytes, out: &mut impl Write) -> anyhow::Result<Outcome> {
        let (began, mut wait) = (Instant::now(), WAITS.0);
        loop {
            let (why, asked) = match self.post(body.clone()).await {
                Outcome::Later(why, asked) => (why, asked),
                settled => return Ok(settled),
            };
            let pause = asked.unwrap_or(wait).clamp(wait, WAIT_ASKED_MAX);
            if let Some(patience) = self.patience
                && began.elapsed() + pause > patience
            {
                return Ok(Outcome::Later(why, asked));
            }
            writeln!(
                out,
                "the collector takes nothing: {why}; again in {} s",
                pause.as_secs()
            )?;
            sleep(pause).await;
            wait = (2 * wait).min(WAITS.1);
        }
    }

    async fn post(&self, body: Bytes) -> Outcome {
        match self.client.post(&self.path, body, ANSWER_BYTES_MAX).await {
            Ok(answer) => outcome(answer.status, answer.retry_after, &answer.body),
            Err(failure) => Outcome::Later(failure.to_string(), None),
        }
    }
}

/// Names and values of a list of headers ("Protocol Exporter", "Specifying headers via environment variables").
fn headers(list: &Secret) -> anyhow::Result<Vec<(String, String)>> {
    let parts = list.reveal().split(',').filter(|part| !part.trim().is_empty());
    let pair = |part: &str| {
        let (name, value) = part.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        Some((name.trim().to_owned(), value.into_owned()))
    };
    parts
        .map(|part| pair(part).context("--headers: needs NAME=VALUE, and commas between several"))
        .collect()
}

/// What an answer means: by OTLP, whether to come again is told by the status alone.
fn outcome(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Outcome {
    let why = Failure::Status { status, code: None }.to_string();
    match status {
        200..=299 => Outcome::Taken {
            rejected: rejected(body),
        },
        400 | 413 | 422 | 500 => Outcome::Unread(why),
        429 | 502 | 503 | 504 => Outcome::Later(why, retry_after),
        _ => Outcome::Refused(format!("{why}: are --endpoint and the headers right?")),
    }
}

/// Spans that an answer says were not kept. Whole numbers of 64 bits are texts in the JSON of protocol buffers, and may be
/// numbers.
fn rejected(body: &[u8]) -> u64 {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    match &answer["partialSuccess"]["rejectedSpans"] {
        Value::String(text) => text.parse().unwrap_or(0),
        number => number.as_u64().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Typed {
        #[command(flatten)]
        server: HeaderArgs,
    }

    #[test]
    fn the_status_tells_whether_to_come_again() {
        let of = |status| outcome(status, Some(Duration::from_secs(7)), b"");
        assert_eq!(of(200), Outcome::Taken { rejected: 0 });
        for status in [400, 413, 500] {
            assert!(matches!(of(status), Outcome::Unread(_)), "{status}");
        }
        for status in [429, 502, 503, 504] {
            let Outcome::Later(why, Some(after)) = of(status) else {
                panic!("{status}");
            };
            assert!(why.contains(&status.to_string()) && after.as_secs() == 7);
        }
        for status in [301, 401, 404, 405] {
            assert!(matches!(of(status), Outcome::Refused(_)), "{status}");
        }
    }

    #[test]
    fn headers_are_those_of_the_list_and_in_no_error() {
        let of = |list: &str| headers(&Secret::from(list));
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            of("Authorization=Bearer%20a%3Db, x=1,").unwrap(),
            [pair("Authorization", "Bearer a=b"), pair("x", "1")]
        );
        for bad in ["tok-hidden", "x=%ff-hidden"] {
            let said = format!("{:?}", of(bad).unwrap_err());
            assert!(said.contains("--headers") && !said.contains("hidden"), "{said}");
        }
        let typed = Typed::try_parse_from(["x"]).unwrap();
        for bad in ["Authorization: Bearer hidden=", "Bearer hidden="] {
            let target = typed
                .server
                .target("--endpoint", "http://localhost", of(bad).unwrap());
            let said = format!("{:?}", target.unwrap_err());
            assert!(said.contains("NAME=VALUE") && !said.contains("hidden"), "{said}");
        }
    }

    #[test]
    fn what_was_not_kept_is_counted_however_it_is_written() {
        for body in [
            r#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"no"}}"#,
            r#"{"partialSuccess":{"rejectedSpans":3}}"#,
        ] {
            assert_eq!(
                outcome(200, None, body.as_bytes()),
                Outcome::Taken { rejected: 3 }
            );
        }
        for body in ["", "{}", "[]", "{\"partialSuccess\":null}", "x"] {
            assert_eq!(rejected(body.as_bytes()), 0, "{body}");
        }
    }
}
