//! `rempart gdpr record`: the entry of the record of processing activities (GDPR, article 30(1)), from what is set and kept.

use std::fmt::Write as _;

use anyhow::Context as _;
use clap::Args;
use rempart_governance::{AuditEvent, AuditQuery, Policy, Recording, Store, now_s};
use serde_json::Value;

use super::content::what;
use super::govern::{say, with_store};
use super::retention::day;
use crate::config::DatabaseArgs;

/// What stands where the company has to say something.
const OPEN: &str = "(to be filled in)";
const PURPOSES: [&str; 2] = [
    "answering questions and working on texts with language models on the company's own machines",
    "knowing who used them and what was changed: security, limits, and the division of costs",
];

/// Options of `rempart gdpr record`.
#[derive(Debug, Args)]
pub struct RecordArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Who is responsible: name and address of the company
    #[arg(long)]
    controller: Option<String>,
    /// How they are reached
    #[arg(long)]
    contact: Option<String>,
    /// The data protection officer, where there is one
    #[arg(long)]
    dpo: Option<String>,
    /// What models are used for; give it again for further ones [default: two that always hold]
    #[arg(long)]
    purpose: Vec<String>,
}

/// Prints it as Markdown.
pub(super) fn record(args: &RecordArgs) -> anyhow::Result<()> {
    with_store(&args.database, async |store| {
        let facts = Facts::read(store, &args.database.place()?.to_string()).await?;
        say(text(args, &facts)?.trim_end())
    })
}

/// What the database tells of the installation.
struct Facts {
    place: String,
    started: Option<AuditEvent>,
    policy: Policy,
    /// What is recorded of prompts and answers, by project.
    recorded: Vec<(String, Recording)>,
    people: usize,
    projects: usize,
    keys: usize,
    copied: Option<AuditEvent>,
    tested: Option<AuditEvent>,
}

impl Facts {
    async fn read(store: &Store, place: &str) -> anyhow::Result<Self> {
        let last = async |action: &str| {
            let query = AuditQuery {
                actions: vec![action.to_owned()],
                ..AuditQuery::default()
            };
            anyhow::Ok(store.find_audit(&query, 1).await?.pop())
        };
        Ok(Self {
            place: place.to_owned(),
            started: last("server.started").await?,
            policy: store.retention().await?,
            recorded: store
                .recordings()
                .await?
                .into_iter()
                .map(|(project, announced)| (project, announced.recording))
                .filter(|(_, recording)| recording.runs(now_s()))
                .collect(),
            people: store
                .people()
                .await?
                .iter()
                .filter(|one| one.ended.is_none())
                .count(),
            projects: store
                .projects()
                .await?
                .iter()
                .filter(|one| one.archived.is_none())
                .count(),
            keys: store
                .keys()
                .await?
                .iter()
                .filter(|key| key.revoked.is_none() && key.expires.is_none_or(|at| at > now_s()))
                .count(),
            copied: last("database.exported").await?,
            tested: last("backup.tested").await?,
        })
    }

    /// What the server said of itself at its last start; `None` where no row tells.
    fn at_start(&self, name: &str) -> Option<Value> {
        let detail: Value = serde_json::from_str(&self.started.as_ref()?.detail).ok()?;
        detail.get(name).cloned()
    }

    fn has(&self, name: &str) -> Option<bool> {
        self.at_start(name)?.as_bool()
    }
}

fn text(args: &RecordArgs, facts: &Facts) -> anyhow::Result<String> {
    let today = day(now_s());
    let given = |text: &Option<String>| text.clone().unwrap_or_else(|| OPEN.to_owned());
    let mut out = String::new();
    writeln!(
        out,
        "# Record of processing activities: language models on our own machines\n"
    )?;
    writeln!(
        out,
        "GDPR, article 30(1). Made on {today} from what is set and kept in {}.\n",
        facts.place
    )?;
    writeln!(out, "## (a) Controller\n")?;
    writeln!(out, "- Name and address: {}", given(&args.controller))?;
    writeln!(out, "- Contact: {}", given(&args.contact))?;
    writeln!(out, "- Data protection officer: {}\n", given(&args.dpo))?;
    writeln!(out, "## (b) Purposes\n")?;
    if args.purpose.is_empty() {
        for purpose in PURPOSES {
            writeln!(out, "- {purpose}")?;
        }
    }
    for purpose in &args.purpose {
        writeln!(out, "- {purpose}")?;
    }
    writeln!(out, "\n## (c) Whose data, and which\n")?;
    writeln!(
        out,
        "- Those who use the models: {} people, {} keys in {} projects today",
        facts.people, facts.keys, facts.projects
    )?;
    out.push_str(DATA);
    recorded(&mut out, &facts.recorded)?;
    writeln!(out, "\n## (d) Recipients\n")?;
    writeln!(
        out,
        "- None outside the company. There is no processor (article 28): the server runs on the company's machines."
    )?;
    writeln!(
        out,
        "- Inside: owners and auditors read the record of what was done; owners, admins and auditors the usage.\n"
    )?;
    writeln!(out, "## (e) Transfers to third countries\n")?;
    writeln!(out, "- {}\n", transfers(facts))?;
    writeln!(out, "## (f) Time limits\n")?;
    retention_limits(&mut out, facts)?;
    writeln!(out, "\n## (g) Security (article 32)\n")?;
    measures(&mut out, facts)?;
    Ok(out)
}

const DATA: &str = "\
- Prompts and answers, with whatever is in them: in memory while a request runs, and for as long as `/v1/responses` keeps one \
there; never in a file or a log, and in the database only as said below
- Of each request: time, key, project, model, endpoint, numbers of tokens, duration, outcome; whose a key is
- Address and name of people who have keys, and who they are at the login, sealed
- What was done to keys, people, projects, limits and models: time, who, what
";

/// What is kept of prompts and answers.
fn recorded(out: &mut String, recorded: &[(String, Recording)]) -> anyhow::Result<()> {
    for (project, recording) in recorded {
        writeln!(
            out,
            "- {project}: {}, until {}; sealed for a reader whose key the server does not have",
            what(recording),
            day(recording.until)
        )?;
    }
    if recorded.is_empty() {
        writeln!(out, "- No project has its prompts or answers recorded today")?;
    }
    Ok(())
}

fn transfers(facts: &Facts) -> &'static str {
    match facts.has("zero_egress") {
        Some(true) => {
            "None. The server was started with `--zero-egress`: the system's kernel keeps it from reaching anything but its database. \
             Proof: `rempart doctor --egress`."
        }
        Some(false) => {
            "None: the server has no part that sends anything out. (It was not started with `--zero-egress`, which would have the \
             system's kernel keep it so.)"
        }
        None => {
            "None: the server has no part that sends anything out. (Whether it was started with `--zero-egress` is not in the record.)"
        }
    }
}

fn retention_limits(out: &mut String, facts: &Facts) -> anyhow::Result<()> {
    let policy = &facts.policy;
    for (what, days) in [
        ("Requests, row by row", policy.usage),
        ("Sums by day, without keys", policy.sums),
        ("What was done (audit chain)", policy.audit),
        ("Names of people, after they left", policy.people),
    ] {
        let days = days.map_or_else(|| "not deleted".to_owned(), |days| format!("{days} days"));
        writeln!(out, "- {what}: {days}")?;
    }
    for (project, recording) in &facts.recorded {
        writeln!(out, "- Prompts and answers of {project}: {} days", recording.days)?;
    }
    if facts.recorded.is_empty() {
        writeln!(out, "- Prompts and answers: not written down (see above)")?;
    }
    for doubt in policy.doubts() {
        writeln!(out, "- Note: {doubt}")?;
    }
    Ok(())
}

fn measures(out: &mut String, facts: &Facts) -> anyhow::Result<()> {
    writeln!(
        out,
        "- Access by keys with roles, nothing allowed that is not given; of keys only their SHA-256 is kept"
    )?;
    writeln!(
        out,
        "- Addresses and names sealed with AES-256-GCM; the secret is not in the database"
    )?;
    writeln!(
        out,
        "- A chain of hashes over all that was done and used, signed checkpoints: `rempart audit verify`"
    )?;
    let version = facts.at_start("version");
    let version = version.as_ref().and_then(Value::as_str).unwrap_or("unknown");
    let Some(started) = &facts.started else {
        writeln!(
            out,
            "- No start of the server is in the record: what it was started with is not known"
        )?;
        return Ok(());
    };
    writeln!(
        out,
        "- The server, version {version}, as last started on {}:",
        day(started.at_ms / 1_000)
    )?;
    for (name, yes, no) in [
        ("tls", "TLS to clients", "no TLS of its own"),
        (
            "client_certificates",
            "clients show certificates",
            "clients need no certificates",
        ),
        (
            "zero_egress",
            "confined by the kernel",
            "not confined by the kernel",
        ),
        (
            "checkpoints",
            "signed checkpoints added to a file",
            "no checkpoints added to a file",
        ),
    ] {
        let told = match facts.has(name) {
            Some(true) => yes.to_owned(),
            Some(false) => no.to_owned(),
            None => format!("not in the record: {yes}"),
        };
        writeln!(out, "  - {told}")?;
    }
    let told = |row: &Option<AuditEvent>| {
        row.as_ref()
            .map_or_else(|| "none in the record".to_owned(), |row| day(row.at_ms / 1_000))
    };
    writeln!(out, "- Last copy of the database: {}", told(&facts.copied))?;
    writeln!(
        out,
        "- Last test that a copy can be restored: {}",
        told(&facts.tested)
    )
    .context("writing")
}
