//! `rempart audit`: the record of what was done, and the proof that it is whole.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use chrono::NaiveDate;
use clap::Subcommand;
use rempart_governance::{AuditEvent, AuditQuery, BadCheckpoint, Checkpoint, End, Note, Noted, Store};
use serde_json::json;

use super::govern::{say, with_secret, with_store};
use super::retention::day;
use crate::config::DatabaseArgs;

/// The audit chain.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Print its last rows, or the last of some kind
    Tail {
        #[command(flatten)]
        database: DatabaseArgs,
        /// How many
        #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        lines: i64,
        /// What was done, such as `user.deleted`; give it again for further ones
        #[arg(long)]
        action: Vec<String>,
        /// What it was done to: an identifier, as the rows have it
        #[arg(long)]
        object: Vec<String>,
        /// Who did it: the identifier of a key, a person or a service account, or as the rows have it
        #[arg(long)]
        actor: Vec<String>,
        /// Only of this day, of UTC, as YYYY-MM-DD, and later ones
        #[arg(long)]
        from: Option<NaiveDate>,
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
        AuditCommand::Tail {
            database,
            lines,
            action,
            object,
            actor,
            from,
        } => with_store(&database, async |store| {
            let query = AuditQuery {
                actors: actor,
                actions: action,
                objects: object,
                from_ms: from
                    .and_then(|day| day.and_hms_opt(0, 0, 0))
                    .map(|begin| begin.and_utc().timestamp_millis()),
                ..AuditQuery::default()
            };
            for event in store.find_audit(&query, lines).await?.iter().rev() {
                say(&line(event))?;
            }
            Ok(())
        }),
        AuditCommand::Verify {
            database,
            contains,
            checkpoints,
            public_key,
        } => with_store(&database, async |store| {
            let mut noted = read_notes(&contains)?;
            if let Some(file) = checkpoints {
                add_checkpoints(&mut noted, store, &file, public_key)?;
            }
            prove(store, &noted).await
        }),
        AuditCommand::Checkpoint { database } => with_secret(&database, async |store| {
            let chained = store.chain_usage().await;
            // One of what is chained is worth keeping where the rest can't be.
            say(&store.checkpoint().await?.line())?;
            chained.context(
                "the checkpoint does not cover the last rows of usage, which can't be chained now: mend what \
                 follows, and make another",
            )
        }),
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

/// Of lines as [`prove`] prints them.
fn read_notes(lines: &[String]) -> anyhow::Result<Noted> {
    let mut noted = Noted::default();
    for line in lines {
        match line.strip_prefix(USAGE) {
            Some(usage) => noted.usage.push(note(usage)?.into()),
            None => noted.audit.push(note(line)?.into()),
        }
    }
    Ok(noted)
}

/// Adds those of a file of checkpoints.
fn add_checkpoints(
    noted: &mut Noted,
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
        let at_ms = Some(checkpoint.at_ms);
        let note = |end| Note { end, at_ms };
        noted.audit.push(note(checkpoint.audit));
        noted.usage.extend(checkpoint.usage.map(note));
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

/// Proves both chains, and prints their ends.
pub(super) async fn prove(store: &Store, noted: &Noted) -> anyhow::Result<()> {
    let proof = store.prove(noted).await?;
    let (rows, (last, hash)) = &proof.audit;
    ensure!(*rows > 0, "there are no rows: every database begins with some");
    ensure!(proof.contains, CUT);
    ensure!(
        proof.untold == 0,
        "what was noted is of rows that were deleted since, as their time was over: whether it was in the chain can't be told"
    );
    let (used, batch) = &proof.usage;
    say(&format!("{rows} rows, and each is what was written"))?;
    say(&format!(
        "{used} rows of usage, and each is what was written, as are their sums"
    ))?;
    if proof.unchained > 0 {
        say(&format!(
            "{} more wait to be chained, and nothing proves them yet: the disk is full, the file can't be written, or another writes",
            proof.unchained
        ))?;
    }
    if proof.content > 0 {
        say(&format!(
            "{} records of what was asked and answered, and each is what was written",
            proof.content
        ))?;
    }
    for (cut, what) in [
        (&proof.trimmed.audit, "rows"),
        (&proof.trimmed.usage, "rows of usage"),
    ] {
        if let Some(cut) = cut {
            say(&format!(
                "{what} up to {} were deleted, as they were kept for {} days: the chain begins behind {}",
                day(cut.at_ms / 1_000),
                cut.days,
                cut.seq
            ))?;
        }
    }
    if let Some(sums) = &proof.trimmed.sums {
        say(&format!(
            "sums of days before {} are kept by day and without keys",
            day(sums.to)
        ))?;
        if sums.from > 0 {
            say(&format!(
                "and those of days before {} were deleted, as they were kept for {} days",
                day(sums.from),
                sums.from_days
            ))?;
        }
    }
    if proof.deleted > 0 {
        say(&format!(
            "{} ends of chains in checkpoints are of rows that were deleted so: they are older than the last that was",
            proof.deleted
        ))?;
    }
    say(&format!("last: {last}:{hash}"))?;
    batch.as_ref().map_or(Ok(()), |(batch, hash)| {
        say(&format!("last: {USAGE}{batch}:{hash}"))
    })
}

/// A row's number and hash.
fn note(text: &str) -> anyhow::Result<End> {
    const SHAPE: &str = "--contains is NUMBER:HASH or usage:NUMBER:HASH";
    let (seq, hash) = text.split_once(':').context(SHAPE)?;
    Ok((seq.parse().context(SHAPE)?, hash.to_owned()))
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
