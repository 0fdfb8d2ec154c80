//! `rempart audit`: the record of what was done, and the proof that it is whole.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::Subcommand;
use rempart_governance::{AuditEvent, BadCheckpoint, Checkpoint, End, Store, verify};
use serde_json::json;

use super::govern::{say, with_secret, with_store};
use crate::config::DatabaseArgs;

/// The audit chain.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Print its last rows
    Tail {
        #[command(flatten)]
        database: DatabaseArgs,
        /// How many
        #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        lines: i64,
    },
    /// Prove that no row was changed, moved or taken out
    Verify {
        #[command(flatten)]
        database: DatabaseArgs,
        /// What was noted earlier of a `last:` line, that must be in its chain; once for each chain
        #[arg(long)]
        contains: Vec<String>,
        /// File of checkpoints, all of which must be signed and in the chains
        #[arg(long, value_name = "FILE")]
        checkpoints: Option<PathBuf>,
        /// Whose signature they must have, as `rempart audit public-key` tells it [default: that of the database's secret]
        #[arg(long, value_name = "KEY")]
        public_key: Option<String>,
    },
    /// Print a signed line that says what the chains are now, to be kept elsewhere
    Checkpoint {
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Print what the signatures of checkpoints are proven with; give it to the auditor
    PublicKey {
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Print all rows as lines of JSON, with their hashes
    Export {
        #[command(flatten)]
        database: DatabaseArgs,
    },
}

pub(super) fn audit(command: AuditCommand) -> anyhow::Result<()> {
    match command {
        AuditCommand::Tail { database, lines } => with_store(&database, async |store| {
            let (end, _) = store.audit_end().await?;
            for event in store.audit_events(end - lines).await? {
                say(&line(&event))?;
            }
            Ok(())
        }),
        AuditCommand::Verify {
            database,
            contains,
            checkpoints,
            public_key,
        } => with_store(&database, async |store| {
            let mut noted = Noted::read(&contains)?;
            if let Some(file) = checkpoints {
                noted.add_checkpoints(store, &file, public_key)?;
            }
            prove(store, &noted).await
        }),
        AuditCommand::Checkpoint { database } => {
            with_secret(&database, async |store| say(&store.checkpoint().await?.line()))
        }
        AuditCommand::PublicKey { database } => {
            with_secret(&database, async |store| say(&store.secret()?.public_key()))
        }
        AuditCommand::Export { database } => with_store(&database, async |store| {
            let mut behind = i64::MIN;
            loop {
                let page = store.audit_events(behind).await?;
                let Some(last) = page.last() else {
                    return Ok(());
                };
                behind = last.seq;
                for event in &page {
                    say(&line(event))?;
                }
            }
        }),
    }
}

/// What a note of usage begins with.
const USAGE: &str = "usage:";
const CUT: &str =
    "what was noted is not in the chain: what is at its end was taken out, or all was written anew";

/// What must be in the chains: numbers of rows and of batches, and their hashes.
#[derive(Default)]
pub(super) struct Noted {
    audit: Vec<End>,
    usage: Vec<End>,
}

impl Noted {
    /// Of lines as [`prove`] prints them.
    fn read(lines: &[String]) -> anyhow::Result<Self> {
        let mut noted = Self::default();
        for line in lines {
            match line.strip_prefix(USAGE) {
                Some(usage) => noted.usage.push(note(usage)?),
                None => noted.audit.push(note(line)?),
            }
        }
        Ok(noted)
    }

    fn add_checkpoints(
        &mut self,
        store: &Store,
        file: &Path,
        public_key: Option<String>,
    ) -> anyhow::Result<()> {
        // Who can write a checkpoint of their own can also write their key into it.
        let key = match public_key {
            Some(key) => key,
            None => store
                .secret()
                .context("whose signature is right: give --public-key, or the secret")?
                .public_key(),
        };
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let lines = text.lines().enumerate();
        let (mut count, mut cut) = (0, 0);
        for (at, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
            let place = || format!("line {} of {}", at + 1, file.display());
            let checkpoint = match Checkpoint::read(line, Some(&key)) {
                // A loss of power leaves such. Whoever can write one could as well take lines away.
                Err(BadCheckpoint::Form) => {
                    cut += 1;
                    continue;
                }
                read => read.with_context(place)?,
            };
            self.audit.push(checkpoint.audit);
            self.usage.extend(checkpoint.usage);
            count += 1;
        }
        ensure!(count > 0, "{} has no checkpoint", file.display());
        if cut > 0 {
            say(&format!(
                "{cut} lines that are no checkpoints: they were cut, or are of something else"
            ))?;
        }
        say(&format!("{count} checkpoints, each signed"))
    }
}

/// Proves both chains, and prints their ends.
pub(super) async fn prove(store: &Store, noted: &Noted) -> anyhow::Result<()> {
    let (rows, hash) = check_chain(store, &noted.audit).await?;
    if rows == 0 {
        bail!("there are no rows: every database begins with some");
    }
    let used = store.prove_usage(&noted.usage).await?;
    if !used.contains {
        bail!("{CUT}");
    }
    say(&format!("{rows} rows, and each is what was written"))?;
    say(&format!(
        "{} rows of usage, and each is what was written, as are their sums",
        used.rows
    ))?;
    say(&format!("last: {rows}:{hash}"))?;
    used.last.map_or(Ok(()), |(batch, hash)| {
        say(&format!("last: {USAGE}{batch}:{hash}"))
    })
}

/// A row's number and hash.
fn note(text: &str) -> anyhow::Result<End> {
    const SHAPE: &str = "--contains is NUMBER:HASH or usage:NUMBER:HASH";
    let (seq, hash) = text.split_once(':').context(SHAPE)?;
    Ok((seq.parse().context(SHAPE)?, hash.to_owned()))
}

/// Verifies page by page; the number of rows and the last hash.
async fn check_chain(store: &Store, noted: &[End]) -> anyhow::Result<End> {
    let mut missing: BTreeSet<&End> = noted.iter().collect();
    let mut end = verify(&[], None)?;
    loop {
        // The first page has what stands before the first row, too, where nothing may.
        let behind = if end.0 == 0 { i64::MIN } else { end.0 };
        let page = store.audit_events(behind).await?;
        if page.is_empty() {
            break;
        }
        end = verify(&page, Some(end))?;
        for row in page {
            missing.remove(&(row.seq, row.hash));
        }
    }
    if !missing.is_empty() {
        bail!("{CUT}");
    }
    Ok(end)
}

/// A row as JSON, in which nothing can look like another row.
fn line(event: &AuditEvent) -> String {
    json!({
        "seq": event.seq, "at_ms": event.at_ms, "actor": event.actor, "action": event.action, "object": event.object,
        "detail": serde_json::from_str(&event.detail).unwrap_or_else(|_| json!(event.detail)), "previous": event.previous,
        "hash": event.hash,
    })
    .to_string()
}
