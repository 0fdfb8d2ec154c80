//! The commands of the binary.

mod audit;
mod backup;
mod bench;
mod chat;
mod config;
mod content;
mod doctor;
mod environment;
mod file;
mod govern;
mod limit;
mod model;
mod oidc;
mod people;
mod plan;
mod processing;
mod pull;
mod reload;
mod retention;
mod serve;
mod shell;
mod support;
mod top;
mod traces;
mod usage;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{LogArgs, PullArgs, ServeArgs};
use crate::grammar::check;
use crate::served_model;
use crate::telemetry;
use audit::AuditCommand;
use backup::{BackupArgs, RestoreArgs};
use bench::BenchArgs;
use chat::ChatArgs;
use config::ConfigCommand;
use content::ContentCommand;
use doctor::{DoctorArgs, TrialArgs};
use govern::{KeyCommand, ProjectCommand};
use limit::LimitCommand;
use model::ModelCommand;
use oidc::OidcCommand;
use people::{GdprCommand, UserCommand};
use plan::PlanArgs;
use retention::RetentionCommand;
use shell::{CompletionsArgs, ManArgs};
use support::SupportBundleArgs;
use top::TopArgs;
use traces::TracesCommand;
use usage::UsageCommand;

/// Serves open-weight language models on your own machines, over an OpenAI-compatible API.
#[derive(Debug, Parser)]
#[command(name = "rempart", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub log: LogArgs,
    /// File with options in TOML, which the environment and what is typed go before; `rempart config reference` prints one
    #[arg(long, env = "REMPART_CONFIG", value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load a model and answer requests until a signal ends it
    Serve(Box<ServeArgs>),
    /// Fetch a model, or go on with an interrupted fetch; every byte is checked
    Pull(Box<PullArgs>),
    /// What a model needs of a device, and how fast it will be there
    Plan(Box<PlanArgs>),
    /// Put load on a server and measure what its clients see, or measure a model alone
    Bench(Box<BenchArgs>),
    /// Watch a running server: requests, queue, tokens a second, latencies, by model and by project
    Top(Box<TopArgs>),
    /// Talk to a model of a running server
    Chat(Box<ChatArgs>),
    /// List, verify and sign models
    #[command(subcommand)]
    Model(ModelCommand),
    /// Fetch the public keys of the company's login
    #[command(subcommand)]
    Oidc(OidcCommand),
    /// Make, list and end keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// Make, list and end projects
    #[command(subcommand)]
    Project(ProjectCommand),
    /// Add people, and have them leave
    #[command(subcommand)]
    User(UserCommand),
    /// Tell a person all that is kept of them, erase who they are, or print the record of processing
    #[command(subcommand)]
    Gdpr(GdprCommand),
    /// Limit what projects, people and keys may use
    #[command(subcommand)]
    Limit(LimitCommand),
    /// Read the record of what was done, and prove that it is whole
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Record what projects ask and are answered, sealed for a reader, and find it
    #[command(subcommand)]
    Content(ContentCommand),
    /// How long what is kept is kept, and what is deleted when
    #[command(subcommand)]
    Retention(RetentionCommand),
    /// Copy the database into a file, while it is used
    Backup(BackupArgs),
    /// Make a database of such a file, of the same kind or the other
    Restore(RestoreArgs),
    /// Tell what was used, by whom
    #[command(subcommand)]
    Usage(UsageCommand),
    /// Look at what a server is configured with
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Look at this machine as a server would, and prove on it what this installation promises
    Doctor(DoctorArgs),
    /// Hand on what a server writes to its file of traces
    #[command(subcommand)]
    Traces(TracesCommand),
    /// Put what who is to help has to know of a server into a file, without anything confidential
    SupportBundle(Box<SupportBundleArgs>),
    /// Print what a shell completes the command line by
    Completions(CompletionsArgs),
    /// Write the manual pages
    Man(ManArgs),
    /// Try a format, in the child of a server
    #[command(hide = true)]
    CheckFormat,
    /// Compute a part of a model, in the child of a server
    #[command(hide = true)]
    Rank,
    /// Try to get out, in the child of a doctor
    #[command(hide = true)]
    TryEgress(TrialArgs),
}

/// Runs the command that was typed so.
///
/// # Errors
/// Where it could not do what was asked.
pub fn run(cli: Cli, typed: Vec<OsString>) -> anyhow::Result<ExitCode> {
    telemetry::init(&cli.log)?;
    let done = match cli.command {
        // These tell more than whether it worked.
        Command::Bench(args) => return bench::bench(&args),
        Command::Chat(args) => return chat::chat(&args),
        Command::Top(args) => top::top(&args),
        Command::CheckFormat if check::run() => Ok(()),
        Command::CheckFormat => anyhow::bail!("the format can't be followed"),
        Command::Rank => served_model::rank(),
        Command::TryEgress(args) => doctor::try_egress(&args),
        Command::Doctor(args) => doctor::run(&args, cli.config),
        Command::Traces(command) => traces::traces(&command),
        Command::SupportBundle(args) => support::bundle(&args, cli.config),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
        Command::Serve(args) => serve::run(*args, typed),
        Command::Config(command) => config::config(&command, cli.config),
        Command::Pull(args) => pull::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Model(command) => model::model(command),
        Command::Oidc(command) => oidc::oidc(command),
        Command::Key(command) => govern::key(command),
        Command::Project(command) => govern::project(command),
        Command::Limit(command) => limit::limit(command),
        Command::User(command) => people::user(command),
        Command::Gdpr(command) => people::gdpr(command),
        Command::Audit(command) => audit::audit(command),
        Command::Content(command) => content::content(command),
        Command::Retention(command) => retention::retention(command),
        Command::Backup(args) => backup::backup(&args),
        Command::Restore(args) => backup::restore(&args),
        Command::Usage(command) => usage::usage(command),
    };
    done.map(|()| ExitCode::SUCCESS)
}
