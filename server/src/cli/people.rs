//! `rempart user` and `rempart gdpr`: the people whose keys are whose, and what they may ask for.

use std::collections::HashSet;
use std::io::{BufWriter, Write as _};

use clap::Subcommand;
use rempart_governance::{AuditQuery, KeyRecord, Person, Role, Store, UsageEvent};
use serde_json::{Value, json};

use super::govern::{say, with_secret, with_store};
use super::processing::{RecordArgs, record};
use crate::config::DatabaseArgs;

/// Rows of usage that are read at one time.
const PAGE: i64 = 100_000;
/// Rows of the audit chain that are read at one time.
const AUDIT_PAGE: i64 = 10_000;

/// People.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Add a person, or have one come back who had left
    Add {
        #[command(flatten)]
        database: DatabaseArgs,
        /// owner, admin, auditor or member: the most that their keys may do
        #[arg(long, default_value = "member")]
        role: Role,
        /// Their name
        #[arg(long)]
        name: String,
        /// Their address
        email: String,
    },
    /// List the people, with the names that the secret opens
    List {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Those who have left, too
        #[arg(long)]
        all: bool,
    },
    /// Give a person another role; keys of theirs that may do more end
    Role {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Their address or identifier
        whom: String,
        /// owner, admin, auditor or member
        role: Role,
    },
    /// Let a person have keys of a project
    Join {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Name or identifier of the project
        #[arg(long)]
        project: String,
        /// Their address or identifier
        whom: String,
    },
    /// Take a person out of a project; their keys of it end
    Leave {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Name or identifier of the project
        #[arg(long)]
        project: String,
        /// Their address or identifier
        whom: String,
    },
    /// Have a person's next good token say anew who they are at the login: their account there was made again
    Unbind {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Their address or identifier
        whom: String,
    },
    /// Have a person leave the company: all of their keys end. Who they were is known until they are erased
    Remove {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Their address or identifier
        whom: String,
    },
}

/// What the law gives people a right to, and asks of the company.
#[derive(Debug, Subcommand)]
pub enum GdprCommand {
    /// Print all that is kept of a person, as JSON (GDPR, articles 15 and 20)
    Export {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Their address or identifier
        whom: String,
    },
    /// Print the entry of the record of processing activities (GDPR, article 30), as Markdown, from what is set and kept
    Record(RecordArgs),
    /// Erase who a person is or was; what they did is then nobody's, and the audit chain holds (GDPR, article 17)
    Erase {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Their address or identifier
        whom: String,
    },
}

pub(super) fn user(command: UserCommand) -> anyhow::Result<()> {
    match command {
        UserCommand::Add {
            database,
            role,
            name,
            email,
        } => with_secret(&database, async |store| {
            anyhow::ensure!(
                role != Role::Service,
                "service accounts have that role, and no people"
            );
            let person = store.add_person(&database.actor(), &email, &name, role).await?;
            say(&format!("{} is a person of the role {role}", person.id))?;
            say(&format!(
                "next: rempart user join --project default {}",
                person.id
            ))
        }),
        UserCommand::List { database, all } => with_store(&database, async |store| {
            say("id                     role     state   address                          name")?;
            for person in store.people().await? {
                if all || person.ended.is_none() {
                    say(&told(&person))?;
                }
            }
            Ok(())
        }),
        UserCommand::Role { database, whom, role } => with_store(&database, async |store| {
            anyhow::ensure!(
                role != Role::Service,
                "service accounts have that role, and no people"
            );
            let id = store.person(&whom).await?.id;
            store.set_person_role(&database.actor(), &id, role).await?;
            say(&format!("{id} has the role {role}"))
        }),
        UserCommand::Join {
            database,
            project,
            whom,
        } => with_store(&database, async |store| {
            let member = store.add_member(&database.actor(), &project, &whom).await?;
            let id = member.person.id;
            say(&format!("{id} is in the project"))?;
            say(&format!(
                "next: rempart key create --project {project} --user {id} NAME"
            ))
        }),
        UserCommand::Leave {
            database,
            project,
            whom,
        } => with_store(&database, async |store| {
            let id = store.person(&whom).await?.id;
            let project = project_id(store, project).await?;
            store.remove_member(&database.actor(), &project, &id).await?;
            say(&format!("{id} is no longer in the project"))
        }),
        UserCommand::Unbind { database, whom } => with_store(&database, async |store| {
            let id = store.person(&whom).await?.id;
            store.unbind_subject(&database.actor(), &id).await?;
            say(&format!("{id} is bound by their next good token"))
        }),
        UserCommand::Remove { database, whom } => with_store(&database, async |store| {
            let id = store.person(&whom).await?.id;
            store.end_person(&database.actor(), &id).await?;
            say(&format!("{id} has left, and all of their keys have ended"))
        }),
    }
}

/// The identifier of a project that is named by that or by its name.
async fn project_id(store: &Store, named: String) -> anyhow::Result<String> {
    let all = store.projects().await?;
    let known = all.into_iter().find(|one| one.name == named || one.id == named);
    Ok(known.map_or(named, |project| project.id))
}

fn told(person: &Person) -> String {
    let state = person.ended.map_or("here", |_| "left");
    let (email, name) = person
        .named
        .as_ref()
        .map_or(("(sealed)", "(sealed)"), |named| (&named.email, &named.name));
    let role = person.role.name();
    format!("{:21}  {role:7}  {state:6}  {email:31}  {name}", person.id)
}

pub(super) fn gdpr(command: GdprCommand) -> anyhow::Result<()> {
    match command {
        GdprCommand::Export { database, whom } => with_store(&database, async |store| {
            // Without it, what names them would be missing.
            store.secret()?;
            let person = store.person(&whom).await?;
            store
                .record(&database.actor(), "user.exported", &person.id, "{}".to_owned())
                .await?;
            export(store, &person).await
        }),
        GdprCommand::Record(args) => record(&args),
        GdprCommand::Erase { database, whom } => with_store(&database, async |store| {
            let id = store.person(&whom).await?.id;
            store.erase_person(&database.actor(), &id).await?;
            say(&format!("{id} is nobody any more"))
        }),
    }
}

/// Prints one JSON object, row by row: there can be more of them than should be held at one time.
async fn export(store: &Store, person: &Person) -> anyhow::Result<()> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let named = person.named.as_ref();
    let login = store
        .subject_of(&person.id)
        .await?
        .map(|login| json!({"issuer": login.issuer, "subject": login.subject, "bound": login.bound}));
    let about = json!({
        "id": person.id, "email": named.map(|named| &named.email), "name": named.map(|named| &named.name),
        "role": person.role.name(), "added": person.created, "left": person.ended,
        "login": login,
    });
    writeln!(out, "{{\"person\": {about},")?;
    let mut projects = Vec::new();
    for project in store.projects().await? {
        let members = store.members(&project.id).await?;
        let own = members.iter().find(|member| member.person.id == person.id);
        projects.extend(
            own.map(|member| json!({"id": project.id, "name": project.name, "joined": member.added})),
        );
    }
    writeln!(out, "\"projects\": {},", json!(projects))?;
    let keys = store.keys_of(&person.id).await?;
    let told: Vec<_> = keys
        .iter()
        .map(|key| {
            json!({
                "id": key.id.0, "name": key.name, "project": key.project, "role": key.role.name(), "created": key.created,
                "expires": key.expires, "revoked": key.revoked, "opened_by": key.kind.name(),
            })
        })
        .collect();
    writeln!(out, "\"keys\": {},\n\"requests\": [", json!(told))?;
    export_requests(store, &keys, &mut out).await?;
    let mut recorded = Vec::new();
    for key in &keys {
        let own = store.content_of_key(&key.id.0).await?;
        // The server can't open it: `rempart content open` can, with the reader's key.
        recorded.extend(own.into_iter().map(|(request, began_ms, due_ms)| {
            json!({"request": request, "began_ms": began_ms, "deleted_after_ms": due_ms})
        }));
    }
    writeln!(out, "],\n\"recorded_content\": {},", json!(recorded))?;
    writeln!(out, "\"record\": [")?;
    export_record(store, person, &keys, &mut out).await?;
    writeln!(out, "]}}")?;
    Ok(out.flush()?)
}

/// What was asked with their keys: rows that are chained, then those that wait for it.
async fn export_requests(
    store: &Store,
    keys: &[KeyRecord],
    out: &mut impl std::io::Write,
) -> anyhow::Result<()> {
    // Before the others: what is chained meanwhile is found there, and nothing is missed.
    let mut unchained = Vec::new();
    for key in keys {
        unchained.extend(store.unchained_usage_of(&key.id.0).await?);
    }
    let (end, mut first) = (store.usage_end().await?, true);
    for key in keys {
        for from in (1..=end).step_by(usize::try_from(PAGE)?) {
            let rows = store.usage_events_of(&key.id.0, from, from + PAGE - 1).await?;
            if !unchained.is_empty() {
                let found: HashSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
                unchained.retain(|row| !found.contains(row.id.as_str()));
            }
            for row in &rows {
                export_request(row, std::mem::take(&mut first), out)?;
            }
        }
    }
    for row in &unchained {
        export_request(row, std::mem::take(&mut first), out)?;
    }
    Ok(())
}

fn export_request(row: &UsageEvent, first: bool, out: &mut impl std::io::Write) -> anyhow::Result<()> {
    let told = json!({
        "id": row.id, "began_ms": row.began_ms, "project": row.project, "key": row.key, "model": row.model, "endpoint": row.endpoint,
        "input_tokens": row.input, "cached_tokens": row.cached, "output_tokens": row.output,
        "first_ms": row.first_ms, "duration_ms": row.duration_ms, "status": row.status,
        "outcome": row.outcome, "cost_nano": row.cost_nano,
    });
    Ok(write!(out, "{}{told}", if first { "" } else { ",\n" })?)
}

/// What they did, and what was done to them and their keys.
async fn export_record(
    store: &Store,
    person: &Person,
    keys: &[KeyRecord],
    out: &mut impl std::io::Write,
) -> anyhow::Result<()> {
    let by = AuditQuery {
        actors: vec![person.id.clone()],
        ..AuditQuery::default()
    };
    let own = keys.iter().map(|key| key.id.0.clone());
    let to = AuditQuery {
        objects: std::iter::once(person.id.clone()).chain(own).collect(),
        ..AuditQuery::default()
    };
    let mut first = true;
    for mut query in [by, to] {
        loop {
            let rows = store.find_audit(&query, AUDIT_PAGE).await?;
            let Some(last) = rows.last() else { break };
            query.before = Some(last.seq);
            for row in rows {
                let detail: Value = serde_json::from_str(&row.detail).unwrap_or_default();
                let row = json!({
                    "seq": row.seq, "at_ms": row.at_ms, "actor": row.actor, "action": row.action, "object": row.object,
                    "detail": detail,
                });
                write!(out, "{}{row}", if first { "" } else { ",\n" })?;
                first = false;
            }
        }
    }
    Ok(())
}
