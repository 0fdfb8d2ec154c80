//! `rempart key` and `rempart project`: what operators do to the database, running server or not.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Subcommand;
use rempart_governance::{DAY_S, NewKeyRequest, Role, Secret, ServiceAccount, Store, WEIGHT_MAX, now_s};

use crate::certificate::ClientCertificate;
use crate::config::DatabaseArgs;

/// Keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key, and print it: it is shown this once; or have a client's certificate be one
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
        /// Whose it is: the address or identifier of a person in the project, or the identifier of a service account of it
        /// [default: nobody's]
        #[arg(long)]
        user: Option<String>,
        /// Have requests over connections with this certificate of a client, in PEM, be this key's: it has no text
        #[arg(long, value_name = "FILE")]
        certificate: Option<PathBuf>,
        /// What to call it
        name: String,
    },
    /// List the keys of living projects
    List {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Only those of this role; give it again for further ones
        #[arg(long)]
        role: Vec<Role>,
    },
    /// End a key; a running server notices within two seconds
    Revoke {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Its identifier: the eight characters after `sk-rempart-`
        id: String,
    },
    /// Have somebody's tokens of the login open a project again, after their key was revoked
    Restore {
        #[command(flatten)]
        database: DatabaseArgs,
        /// The key's identifier
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

pub(super) fn key(command: KeyCommand) -> anyhow::Result<()> {
    match command {
        KeyCommand::Create {
            database,
            project,
            role,
            days,
            user,
            certificate,
            name,
        } => with_store(&database, async |store| {
            let owner = match &user {
                Some(whom) if ServiceAccount::is_one(whom) => Some(whom.clone()),
                Some(whom) => Some(store.person(whom).await?.id),
                None => None,
            };
            let wanted = NewKeyRequest {
                project: &project,
                role,
                name: &name,
                expires: days.map(|days| now_s() + days * DAY_S),
                owner: owner.as_deref(),
            };
            let actor = database.actor();
            if let Some(file) = &certificate {
                let certificate = ClientCertificate::read("--certificate", file)?;
                let made = store.create_certificate_key(&actor, &wanted, &certificate.key);
                return say(&format!("{} is the key of this certificate", made.await?.0));
            }
            let key = store.create_key(&actor, &wanted).await?;
            let said = say(key.reveal());
            if said.is_err() {
                // Nobody has seen it, and nobody will.
                store.revoke_key(&actor, &key.id.0).await?;
            }
            said.context("the key could not be shown, and is revoked")
        }),
        KeyCommand::List { database, role } => with_store(&database, async |store| {
            say("id        role     project           state    opened by    owner                  name")?;
            for key in store.keys().await? {
                if !role.is_empty() && !role.contains(&key.role) {
                    continue;
                }
                let state = match (key.revoked, key.expires) {
                    (Some(_), _) => "revoked",
                    (None, Some(expires)) if expires <= now_s() => "expired",
                    _ => "good",
                };
                let (id, role, project) = (&key.id.0, key.role.name(), &key.project_name);
                let kind = key.kind.name();
                let owner = key.owner.as_deref().unwrap_or("-");
                say(&format!(
                    "{id:8}  {role:7}  {project:16}  {state:7}  {kind:11}  {owner:21}  {}",
                    key.name
                ))?;
            }
            Ok(())
        }),
        KeyCommand::Revoke { database, id } => with_store(&database, async |store| {
            store.revoke_key(&database.actor(), &id).await?;
            say(&format!("{id} is revoked"))
        }),
        KeyCommand::Restore { database, id } => with_store(&database, async |store| {
            store.restore_token_key(&database.actor(), &id).await?;
            say(&format!("{id} is good again"))
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

/// Does something with a database that there is, and its secret, where it has one.
pub(super) fn with_store<F>(database: &DatabaseArgs, work: F) -> anyhow::Result<()>
where
    F: AsyncFnOnce(&Store) -> anyhow::Result<()>,
{
    with(database, false, work)
}

/// The same, with a secret that is made where there is none.
pub(super) fn with_secret<F>(database: &DatabaseArgs, work: F) -> anyhow::Result<()>
where
    F: AsyncFnOnce(&Store) -> anyhow::Result<()>,
{
    with(database, true, work)
}

fn with<F>(database: &DatabaseArgs, make_secret: bool, work: F) -> anyhow::Result<()>
where
    F: AsyncFnOnce(&Store) -> anyhow::Result<()>,
{
    blocking(async {
        let named = database.place()?;
        let mut store = Store::open_existing(&named).await?;
        if let Some(place) = Secret::place(&named, database.secret.as_deref()) {
            let told = database.secret.is_some();
            let failed = || format!("the secret {}", place.display());
            if make_secret {
                let opened = store.with_secret_of(&database.actor(), &place).await;
                store = opened.with_context(failed)?;
            } else if told || place.exists() {
                let secret = Secret::open(&place).with_context(failed)?;
                store = store.with_known_secret(secret).await?;
            }
        }
        let done = work(&store).await;
        store.close().await;
        done
    })
}

/// Runs what a command does to its end.
pub(super) fn blocking(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting tokio")?;
    runtime.block_on(work)
}

pub(super) fn say(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{line}")?)
}
