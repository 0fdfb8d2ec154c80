//! `rempart key`, `rempart project` and `rempart audit`: what operators do to the database, running server or not.

use std::io::Write as _;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use rempart_governance::{AuditEvent, NewKeyRequest, Role, Store, WEIGHT_MAX, now_s, verify};
use serde_json::json;

use crate::config::DatabaseArgs;

const DAY_S: i64 = 86_400;

/// Keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key, and print it: it is shown this once
    Create {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Name or identifier of the project that it belongs to
        #[arg(long, default_value = "default")]
        project: String,
        /// owner, admin, auditor, member or service
        #[arg(long, default_value = "member")]
        role: Role,
        /// Days until it expires [default: it does not]
        #[arg(long, value_parser = clap::value_parser!(i64).range(1..=36_500))]
        days: Option<i64>,
        /// What to call it
        name: String,
    },
    /// List the keys of living projects
    List {
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// End a key; a running server notices within two seconds
    Revoke {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Its identifier: the eight characters after `sk-rempart-`
        id: String,
    },
}

/// Projects.
#[derive(Debug, Subcommand)]
pub enum ProjectCommand {
    /// Make a project
    Create {
        #[command(flatten)]
        database: DatabaseArgs,
        /// A model that it may use; give it again for further ones [default: all]
        #[arg(long)]
        model: Vec<String>,
        /// What to call it
        name: String,
    },
    /// List the projects
    List {
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Set a project's part of the machine, where several want it, against those of the others
    Weight {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Its name or identifier
        project: String,
        /// Twice the weight is twice the tokens
        #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(WEIGHT_MAX)))]
        weight: u32,
    },
    /// End a project with all its keys
    Archive {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Its name or identifier
        project: String,
    },
}

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
    },
}

pub(super) fn key(command: KeyCommand) -> anyhow::Result<()> {
    match command {
        KeyCommand::Create {
            database,
            project,
            role,
            days,
            name,
        } => with_store(&database, async |store| {
            let wanted = NewKeyRequest {
                project: &project,
                role,
                name: &name,
                expires: days.map(|days| now_s() + days * DAY_S),
            };
            let actor = database.actor();
            let key = store.create_key(&actor, &wanted).await?;
            let said = say(key.reveal());
            if said.is_err() {
                // Nobody has seen it, and nobody will.
                store.revoke_key(&actor, &key.id.0).await?;
            }
            said.context("the key could not be shown, and is revoked")
        }),
        KeyCommand::List { database } => with_store(&database, async |store| {
            say("id        role     project           state    name")?;
            for key in store.keys().await? {
                let state = match (key.revoked, key.expires) {
                    (Some(_), _) => "revoked",
                    (None, Some(expires)) if expires <= now_s() => "expired",
                    _ => "good",
                };
                let (id, role, project) = (&key.id.0, key.role.name(), &key.project_name);
                say(&format!(
                    "{id:8}  {role:7}  {project:16}  {state:7}  {}",
                    key.name
                ))?;
            }
            Ok(())
        }),
        KeyCommand::Revoke { database, id } => with_store(&database, async |store| {
            store.revoke_key(&database.actor(), &id).await?;
            say(&format!("{id} is revoked"))
        }),
    }
}

pub(super) fn project(command: ProjectCommand) -> anyhow::Result<()> {
    match command {
        ProjectCommand::Create {
            database,
            model,
            name,
        } => with_store(&database, async |store| {
            let project = store.create_project(&database.actor(), &name, &model).await?;
            say(&format!("{} is {}", project.name, project.id))?;
            say(&format!("next: rempart key create --project {} NAME", project.id))
        }),
        ProjectCommand::List { database } => with_store(&database, async |store| {
            say("id                     state     weight  models            name")?;
            for project in store.projects().await? {
                let state = project.archived.map_or("living", |_| "archived");
                let models = match project.models.as_slice() {
                    [] => "all".to_owned(),
                    models => models.join(","),
                };
                say(&format!(
                    "{:21}  {state:8}  {:6}  {models:16}  {}",
                    project.id, project.weight, project.name
                ))?;
            }
            Ok(())
        }),
        ProjectCommand::Weight {
            database,
            project,
            weight,
        } => with_store(&database, async |store| {
            store.set_weight(&database.actor(), &project, weight).await?;
            say(&format!("{project} has the weight {weight}"))
        }),
        ProjectCommand::Archive { database, project } => with_store(&database, async |store| {
            store.archive_project(&database.actor(), &project).await?;
            say(&format!("{project} is archived"))
        }),
    }
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
        AuditCommand::Verify { database, contains } => with_store(&database, async |store| {
            let (of_usage, of_audit): (Vec<&String>, Vec<&String>) =
                contains.iter().partition(|noted| noted.starts_with(USAGE));
            let noted = one_note(&of_audit)?;
            let (rows, hash) = check_chain(store, noted).await?;
            if rows == 0 {
                bail!("there are no rows: every database begins with some");
            }
            let used = store.prove_usage(one_note(&of_usage)?.as_ref()).await?;
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
        }),
    }
}

/// What a note of usage begins with.
const USAGE: &str = "usage:";
const CUT: &str =
    "what was noted is not in the chain: what is at its end was taken out, or all was written anew";

/// The number and the hash that were noted, if there is one such.
fn one_note(noted: &[&String]) -> anyhow::Result<Option<(i64, String)>> {
    match noted {
        [] => Ok(None),
        [one] => note(one.trim_start_matches(USAGE)).map(Some),
        _ => bail!("--contains takes one note of each chain"),
    }
}

/// A row's number and hash as [`audit`] prints them.
fn note(text: &str) -> anyhow::Result<(i64, String)> {
    const SHAPE: &str = "--contains is NUMBER:HASH or usage:NUMBER:HASH";
    let (seq, hash) = text.split_once(':').context(SHAPE)?;
    Ok((seq.parse().context(SHAPE)?, hash.to_owned()))
}

/// Verifies page by page; the number of rows and the last hash.
async fn check_chain(store: &Store, noted: Option<(i64, String)>) -> anyhow::Result<(i64, String)> {
    let (mut end, mut found) = verify(&[], None).map(|start| (start, noted.is_none()))?;
    loop {
        // The first page has what stands before the first row, too, where nothing may.
        let behind = if end.0 == 0 { i64::MIN } else { end.0 };
        let page = store.audit_events(behind).await?;
        if page.is_empty() {
            break;
        }
        end = verify(&page, Some(end))?;
        found |= page.iter().any(|row| {
            noted
                .as_ref()
                .is_some_and(|(seq, hash)| row.seq == *seq && row.hash == *hash)
        });
    }
    if !found {
        bail!("{CUT}");
    }
    Ok(end)
}

/// A row as JSON, in which nothing can look like another row.
fn line(event: &AuditEvent) -> String {
    json!({
        "seq": event.seq, "at_ms": event.at_ms, "actor": event.actor, "action": event.action, "object": event.object,
        "detail": serde_json::from_str(&event.detail).unwrap_or_else(|_| json!(event.detail)), "hash": event.hash,
    })
    .to_string()
}

pub(super) fn with_store<F>(database: &DatabaseArgs, work: F) -> anyhow::Result<()>
where
    F: AsyncFnOnce(&Store) -> anyhow::Result<()>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting tokio")?;
    runtime.block_on(async {
        let store = Store::open_existing(&database.database).await?;
        let done = work(&store).await;
        store.close().await;
        done
    })
}

pub(super) fn say(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{line}")?)
}
