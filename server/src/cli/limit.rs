//! `rempart limit`: how much projects, people and keys may use.

use std::str::FromStr;

use anyhow::Context as _;
use clap::{ArgGroup, Subcommand};
use rempart_governance::{LIMIT_MAX, Limits, Metric, Subject, is_person};

use super::govern::{say, with_store};
use crate::config::DatabaseArgs;

/// Limits.
#[derive(Debug, Subcommand)]
pub enum LimitCommand {
    /// Set limits of a project, a person or a key, or take them away; a running server notices within two seconds
    #[command(group = ArgGroup::new("whose").required(true))]
    Set {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Name or identifier of a project: what all of its keys use together
        #[arg(long, group = "whose")]
        project: Option<String>,
        /// Address or identifier of a person: what all of their keys use together, of whatever projects
        #[arg(long, group = "whose")]
        user: Option<String>,
        /// Identifier of a key
        #[arg(long, group = "whose")]
        key: Option<String>,
        /// `requests-per-minute`, `tokens-per-minute`, `tokens-per-day`, `tokens-per-month` or `parallel`, with a number or `none`
        #[arg(required = true, value_name = "LIMIT=NUMBER")]
        limits: Vec<Setting>,
    },
    /// List all limits
    List {
        #[command(flatten)]
        database: DatabaseArgs,
    },
}

/// A limit and its value; `None` takes it away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting(Metric, Option<i64>);

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (metric, value) = text
            .split_once('=')
            .ok_or("a limit is written as NAME=NUMBER or NAME=none")?;
        let value = match value {
            "none" => None,
            number => {
                let number: Option<i64> = number.parse().ok();
                let within = number.filter(|number| (1..=LIMIT_MAX).contains(number));
                Some(within.ok_or_else(|| format!("a limit is from 1 to {LIMIT_MAX}, or none"))?)
            }
        };
        Ok(Self(metric.parse()?, value))
    }
}

pub(super) fn limit(command: LimitCommand) -> anyhow::Result<()> {
    match command {
        LimitCommand::Set {
            database,
            project,
            user,
            key,
            limits,
        } => with_store(&database, async |store| {
            let person = match user {
                // Who is erased may still have limits, which can be taken away.
                Some(whom) if is_person(&whom) => Some(Subject::Person(whom)),
                Some(whom) => Some(Subject::Person(store.person(&whom).await?.id)),
                None => None,
            };
            let subject = project.map(Subject::Project).or(person).or(key.map(Subject::Key));
            let subject = subject.context("name a --project, a --user or a --key")?;
            let changes: Vec<(Metric, Option<i64>)> = limits
                .iter()
                .map(|Setting(metric, value)| (*metric, *value))
                .collect();
            store.set_limits(&database.actor(), &subject, &changes).await?;
            say("set")
        }),
        LimitCommand::List { database } => with_store(&database, async |store| {
            let projects = store.projects().await?;
            for (subject, limits) in store.limits().await? {
                let (kind, id) = match &subject {
                    Subject::Project(id) => ("project", id),
                    Subject::Person(id) => ("user", id),
                    Subject::Key(id) => ("key", id),
                };
                let named = projects.iter().find(|project| project.id == *id);
                say(&format!(
                    "{kind} {}: {}",
                    named.map_or(id, |project| &project.name),
                    told(&limits)
                ))?;
            }
            Ok(())
        }),
    }
}

fn told(limits: &Limits) -> String {
    let set = Metric::ALL
        .into_iter()
        .filter_map(|metric| Some((metric, limits.get(metric)?)));
    let texts: Vec<String> = set
        .map(|(metric, value)| format!("{}={value}", metric.name()))
        .collect();
    texts.join(" ")
}
