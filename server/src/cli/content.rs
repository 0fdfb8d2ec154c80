//! `rempart content`: what is recorded of what projects ask and are answered, and who can read it.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, BufWriter, Read as _, Write as _, stdin, stdout};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail, ensure};
use chrono::{Days, NaiveDate};
use clap::{ArgGroup, Subcommand};
use rempart_governance::{Content, ContentQuery, DAY_S, ReaderKey, Recording, Sealed, Store, now_s};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::govern::{say, with_secret, with_store};
use super::retention::day;
use crate::config::DatabaseArgs;

/// Records that are read at one time: each can be as large as a request's body.
const RECORDS: i64 = 20;
/// Who may read a reader's key: its owner.
const MODE: u32 = 0o600;
/// A key's file is one line.
const KEY_BYTES_MAX: u64 = 1024;
/// Bytes of a prompt that is looked for, and of a line of sealed records.
const PROMPT_BYTES_MAX: u64 = 16 << 20;
const LINE_BYTES_MAX: u64 = 512 << 20;

/// What is asked and answered.
#[derive(Debug, Subcommand)]
pub enum ContentCommand {
    /// Make the key of a reader, where it is to stay, and print its public half
    Keygen {
        /// File of the key; there must be none
        file: PathBuf,
    },
    /// Have what a project asks and is answered recorded, sealed for a reader; or keyed hashes of its prompts; or both
    #[command(group = ArgGroup::new("what").required(true).multiple(true))]
    Record {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Name or identifier of the project
        #[arg(long)]
        project: String,
        /// The public key of who can read it, which `keygen` has printed [default: it is not kept]
        #[arg(long, value_name = "KEY", group = "what")]
        reader: Option<String>,
        /// Keep a keyed hash of each prompt, by which `find` tells whether a text was asked
        #[arg(long, group = "what")]
        fingerprints: bool,
        /// Days after which a record is deleted
        #[arg(long, default_value_t = 14, value_parser = clap::value_parser!(i64).range(1..=366))]
        days: i64,
        /// Days after which the recording ends by itself
        #[arg(long, value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(i64).range(1..=366))]
        r#for: i64,
    },
    /// End the recording of a project; what is recorded stays until its time is over, or it is deleted
    Stop {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Name or identifier of the project
        #[arg(long)]
        project: String,
    },
    /// Tell what is recorded, and how much there is
    Status {
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Print the records of a project as they are, sealed, one JSON object a line
    Export {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Name or identifier of the project
        #[arg(long)]
        project: String,
        /// Only of this day, of UTC, as YYYY-MM-DD, and later ones
        #[arg(long)]
        from: Option<NaiveDate>,
        /// Only of this day, of UTC, and earlier ones
        #[arg(long)]
        to: Option<NaiveDate>,
        /// Only of the request with this identifier
        #[arg(long)]
        request: Option<String>,
    },
    /// Open exported records with the reader's key, on any machine
    Open {
        /// File of the reader's key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// File of what was exported [default: standard input]
        records: Option<PathBuf>,
    },
    /// Find the requests of a project that asked just this: the last message of a user, or the prompt
    Find {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Name or identifier of the project
        #[arg(long)]
        project: String,
        /// File of the text, all of which counts [default: standard input]
        text: Option<PathBuf>,
    },
    /// Delete all records of a project at once
    Delete {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Name or identifier of the project
        #[arg(long)]
        project: String,
    },
}

/// A record as it is exported.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exported {
    request: String,
    project: String,
    key: String,
    began_ms: i64,
    due_ms: i64,
    announced: i64,
    fingerprint: String,
    reader: String,
    asked: String,
    answered: String,
}

impl From<Content> for Exported {
    fn from(content: Content) -> Self {
        Self {
            request: content.request,
            project: content.project,
            key: content.key,
            began_ms: content.began_ms,
            due_ms: content.due_ms,
            announced: content.announced,
            fingerprint: content.fingerprint,
            reader: content.sealed.reader,
            asked: content.sealed.asked,
            answered: content.sealed.answered,
        }
    }
}

pub(super) fn content(command: ContentCommand) -> anyhow::Result<()> {
    match command {
        ContentCommand::Keygen { file } => keygen(&file),
        ContentCommand::Record {
            database,
            project,
            reader,
            fingerprints,
            days,
            r#for,
        } => {
            let recording = Recording {
                reader,
                fingerprints,
                days,
                until: now_s() + r#for * DAY_S,
            };
            let set = async |store: &Store| set(store, &database, &project, &recording).await;
            // Prompts are hashed with it.
            if fingerprints {
                with_secret(&database, set)
            } else {
                with_store(&database, set)
            }
        }
        ContentCommand::Stop { database, project } => {
            with_store(&database, async |store| stop(store, &database, &project).await)
        }
        ContentCommand::Status { database } => with_store(&database, status),
        ContentCommand::Export {
            database,
            project,
            from,
            to,
            request,
        } => with_store(&database, async |store| {
            let query = ContentQuery {
                project: id_of(store, &project).await?,
                from_ms: from.map(began),
                to_ms: to.and_then(|to| to.checked_add_days(Days::new(1))).map(began),
                request,
                ..ContentQuery::default()
            };
            export(store, &database, query).await
        }),
        ContentCommand::Open { key, records } => open(&key, records.as_deref()),
        ContentCommand::Find {
            database,
            project,
            text,
        } => with_store(&database, async |store| {
            find(store, &database, &project, text.as_deref()).await
        }),
        ContentCommand::Delete { database, project } => with_store(&database, async |store| {
            let records = store.delete_content(&database.actor(), &project).await?;
            say(&format!("{records} records of {project} are deleted"))
        }),
    }
}

fn keygen(file: &Path) -> anyhow::Result<()> {
    let key = ReaderKey::make()?;
    let mut options = OpenOptions::new();
    let made = options.write(true).create_new(true).mode(MODE).open(file);
    let mut made = made.with_context(|| format!("the key's file {}", file.display()))?;
    made.write_all(key.reveal().as_bytes())?;
    made.sync_all()?;
    say(&key.public())
}

async fn set(
    store: &Store,
    database: &DatabaseArgs,
    project: &str,
    recording: &Recording,
) -> anyhow::Result<()> {
    let id = store.set_recording(&database.actor(), project, recording).await?;
    say(&format!(
        "{} of {project} ({id}) until {}",
        what(recording),
        day(recording.until)
    ))?;
    say("those who use the project have to know: answers tell it in the header x-rempart-recorded")
}

async fn stop(store: &Store, database: &DatabaseArgs, project: &str) -> anyhow::Result<()> {
    let id = id_of(store, project).await?;
    let known = store.recordings().await?.remove(&id);
    let running = known.filter(|known| known.recording.runs(now_s()));
    let running = running.with_context(|| format!("nothing of {project} is recorded"))?;
    let stopped = Recording {
        until: now_s(),
        ..running.recording
    };
    store.set_recording(&database.actor(), &id, &stopped).await?;
    say(&format!(
        "nothing of {project} is recorded any more; a running server ends within two seconds"
    ))
}

/// What a recording keeps.
pub(super) fn what(recording: &Recording) -> String {
    let kept = match (&recording.reader, recording.fingerprints) {
        (Some(_), true) => "prompts, answers and fingerprints are recorded",
        (Some(_), false) => "prompts and answers are recorded",
        (None, _) => "fingerprints of prompts are recorded",
    };
    format!("{kept} for {} days each", recording.days)
}

/// Prints what is recorded, and how much there is.
pub(super) async fn status(store: &Store) -> anyhow::Result<()> {
    let (recordings, kept) = (store.recordings().await?, store.kept_content().await?);
    let mut any = false;
    for (project, announced) in &recordings {
        let recording = &announced.recording;
        if recording.runs(now_s()) {
            let reader = recording
                .reader
                .as_ref()
                .map_or_else(String::new, |key| format!(", for the reader {key}"));
            say(&format!(
                "{project}: {}, until {}{reader}",
                what(recording),
                day(recording.until)
            ))?;
            any = true;
        }
    }
    if !any {
        say("nothing is recorded of what is asked and answered")?;
    }
    for kept in &kept {
        let oldest = day(kept.oldest_ms / 1_000);
        say(&format!(
            "{}: {} records, the oldest of {oldest}",
            kept.project, kept.records
        ))?;
    }
    Ok(())
}

async fn export(store: &Store, database: &DatabaseArgs, mut query: ContentQuery) -> anyhow::Result<()> {
    // First: whoever gets them is told of, whatever happens then.
    let detail =
        json!({"from_ms": query.from_ms, "to_ms": query.to_ms, "request": query.request}).to_string();
    store
        .record(&database.actor(), "content.exported", &query.project, detail)
        .await?;
    let mut out = BufWriter::new(stdout().lock());
    loop {
        let page = store.contents(&query, RECORDS).await?;
        let Some(last) = page.last() else { break };
        query.behind = Some((last.began_ms, last.request.clone()));
        for content in page {
            writeln!(out, "{}", serde_json::to_string(&Exported::from(content))?)?;
        }
    }
    Ok(out.flush()?)
}

fn open(key: &Path, records: Option<&Path>) -> anyhow::Result<()> {
    let named = || format!("the key's file {}", key.display());
    let mut text = String::new();
    File::open(key)
        .with_context(named)?
        .take(KEY_BYTES_MAX)
        .read_to_string(&mut text)
        .with_context(named)?;
    let key = ReaderKey::parse(&text)
        .with_context(|| format!("{} holds none that `rempart content keygen` has made", named()))?;
    let mut lines = BufReader::new(input(records)?);
    let mut out = BufWriter::new(stdout().lock());
    let (mut number, mut closed, mut unkept) = (0_u64, 0_u64, 0_u64);
    loop {
        let mut line = String::new();
        if lines.by_ref().take(LINE_BYTES_MAX).read_line(&mut line)? == 0 {
            break;
        }
        number += 1;
        // What is wrong with it is not told: it may be somebody's.
        let record: Exported =
            serde_json::from_str(&line).map_err(|_| anyhow!("line {number} is no exported record"))?;
        if record.reader.is_empty() {
            unkept += 1;
            continue;
        }
        match opened(&key, record)? {
            Some(opened) => writeln!(out, "{opened}")?,
            None => closed += 1,
        }
    }
    out.flush()?;
    if unkept > 0 {
        eprintln(&format!("{unkept} of {number} records have fingerprints alone"))?;
    }
    ensure!(
        closed == 0,
        "{closed} of {number} records are not sealed for this key, or were changed"
    );
    Ok(())
}

/// What is told beside what is printed.
fn eprintln(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stderr().lock(), "{line}")?)
}

/// A record that is opened, as it is printed.
#[derive(Serialize)]
struct Opened {
    request: String,
    project: String,
    key: String,
    began_ms: i64,
    /// The body, as it was sent; `null` where it was not read.
    asked: Option<Box<RawValue>>,
    answered: Box<RawValue>,
}

/// A record as one line of JSON, if it opens.
fn opened(key: &ReaderKey, record: Exported) -> anyhow::Result<Option<String>> {
    let sealed = Sealed {
        reader: record.reader,
        asked: record.asked,
        answered: record.answered,
    };
    let Some((asked, answered)) = key.open(&record.request, &sealed) else {
        return Ok(None);
    };
    let opened = Opened {
        request: record.request,
        project: record.project,
        key: record.key,
        began_ms: record.began_ms,
        asked: asked.map(|body| raw(&body)).transpose()?,
        answered: raw(&answered)?,
    };
    Ok(Some(serde_json::to_string(&opened)?))
}

/// JSON as it is, on one line; anything else as a text. (It was refused, but it was asked.)
fn raw(bytes: &[u8]) -> anyhow::Result<Box<RawValue>> {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(value) = RawValue::from_string(text.to_string()) {
        // Between its values JSON may have ends of lines; in its texts they are written otherwise.
        return Ok(RawValue::from_string(value.get().replace(['\n', '\r'], " "))?);
    }
    Ok(RawValue::from_string(serde_json::to_string(&text)?)?)
}

async fn find(
    store: &Store,
    database: &DatabaseArgs,
    project: &str,
    text: Option<&Path>,
) -> anyhow::Result<()> {
    let id = id_of(store, project).await?;
    let (mut prompt, mut text) = (String::new(), input(text)?.take(PROMPT_BYTES_MAX + 1));
    text.read_to_string(&mut prompt).context("the text")?;
    ensure!(
        prompt.len() as u64 <= PROMPT_BYTES_MAX,
        "the text has more than {PROMPT_BYTES_MAX} bytes: no prompt can have"
    );
    // First, as with all that is told of records.
    let actor = database.actor();
    store
        .record(&actor, "content.sought", &id, "{}".to_owned())
        .await?;
    let found = store.find_prompt(&id, &prompt).await?;
    say("request                           key       day")?;
    for (request, key, began_ms) in found {
        say(&format!("{request:32}  {key:8}  {}", day(began_ms / 1_000)))?;
    }
    Ok(())
}

/// A file, or standard input.
fn input(file: Option<&Path>) -> anyhow::Result<Box<dyn std::io::Read>> {
    let Some(file) = file else {
        return Ok(Box::new(stdin().lock()));
    };
    let opened = File::open(file).with_context(|| file.display().to_string())?;
    Ok(Box::new(opened))
}

/// The identifier of a project, by name or identifier.
async fn id_of(store: &Store, project: &str) -> anyhow::Result<String> {
    let all = store.projects().await?;
    match all
        .into_iter()
        .find(|one| one.name == project || one.id == project)
    {
        Some(found) => Ok(found.id),
        None => bail!("there is no project {project}"),
    }
}

/// When a day began, Unix milliseconds.
fn began(day: NaiveDate) -> i64 {
    day.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis()
}
