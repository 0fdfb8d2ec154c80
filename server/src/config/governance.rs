//! Where keys come from.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use rempart_governance::Database;

use super::{Error, OidcArgs, OidcSettings};
use crate::prices::{NamedPrice, Prices};

/// Options of who may come in.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Governance")]
pub struct GovernanceArgs {
    /// Database of keys: the path of an SQLite file, made at first use, or `postgres://USER@HOST/NAME`; with it, every request
    /// needs a key [default: there is none]
    #[arg(long, env = "REMPART_DATABASE", hide_env_values = true, value_name = "PLACE")]
    pub database: Option<String>,
    /// File of the secret that seals the names of people and signs checkpoints, made at first use [default: that of the
    /// database with `.secret` behind its name; none with a server]
    #[arg(long, env = "REMPART_SECRET", value_name = "FILE")]
    pub secret: Option<PathBuf>,
    /// File to which signed checkpoints of the audit chain are added [default: none]
    #[arg(long, env = "REMPART_AUDIT_CHECKPOINTS", value_name = "FILE")]
    pub audit_checkpoints: Option<PathBuf>,
    /// Seconds between two of them
    #[arg(long, env = "REMPART_AUDIT_CHECKPOINT_INTERVAL_S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub audit_checkpoint_interval_s: u64,
    /// Seconds that keys are known for after they could last be read; then all requests get a 503
    #[arg(long, env = "REMPART_DATABASE_STALE_MAX_S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(2..=86_400))]
    pub database_stale_max_s: u64,
    /// Requests that run, or whose row of usage is still to be written; further ones get a 503
    #[arg(long, env = "REMPART_USAGE_REQUESTS_MAX", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub usage_requests_max: u32,
    /// Count requests and tokens by project and model in /metrics, too, which whoever may read metrics then sees
    #[arg(long, env = "REMPART_PROJECT_METRICS")]
    pub project_metrics: bool,
    /// What a million tokens of a model cost, as MODEL=INPUT,OUTPUT or MODEL=INPUT,OUTPUT,CACHED; give it again for further
    /// models, or part them by blanks in the variable [default: nothing]
    #[arg(
        long,
        env = "REMPART_PRICE",
        value_delimiter = ' ',
        value_name = "MODEL=PRICES"
    )]
    pub price: Vec<NamedPrice>,
    /// The currency of prices, as ISO 4217 names it
    #[arg(long, env = "REMPART_CURRENCY", default_value = "eur", value_parser = currency)]
    pub currency: String,
    #[command(flatten)]
    pub oidc: OidcArgs,
}

/// Reads the name of a currency.
///
/// # Errors
/// Says what one looks like.
pub fn currency(text: &str) -> Result<String, String> {
    if text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err("a currency has three letters, such as eur".to_owned())
}

#[derive(Debug, Clone)]
pub struct GovernanceSettings {
    pub database: Option<Database>,
    pub secret: Option<PathBuf>,
    /// Where checkpoints are kept, and how often one is made.
    pub checkpoints: Option<(PathBuf, Duration)>,
    pub stale_max: Duration,
    pub usage_requests_max: usize,
    pub project_metrics: bool,
    pub prices: Prices,
    pub currency: String,
    /// Whose tokens are taken where keys are.
    pub oidc: Option<OidcSettings>,
}

impl GovernanceArgs {
    pub(super) fn settings(self) -> Result<GovernanceSettings, Error> {
        let oidc = self.oidc.check(self.database.is_some())?;
        if self.project_metrics && self.database.is_none() {
            return Err(Error::ProjectsWithoutDatabase);
        }
        Ok(GovernanceSettings {
            database: self.database.map(|place| place_of(&place)).transpose()?,
            secret: self.secret,
            checkpoints: self
                .audit_checkpoints
                .map(|file| (file, Duration::from_secs(self.audit_checkpoint_interval_s))),
            stale_max: Duration::from_secs(self.database_stale_max_s),
            usage_requests_max: self.usage_requests_max as usize,
            project_metrics: self.project_metrics,
            prices: Prices::new(self.price).map_err(|model| Error::TwoPrices { model })?,
            currency: self.currency,
            oidc,
        })
    }
}

/// The database of a command that reads or changes it.
#[derive(Debug, Clone, Args)]
pub struct DatabaseArgs {
    /// Database: the path of an SQLite file, or `postgres://USER@HOST/NAME`
    #[arg(long, env = "REMPART_DATABASE", hide_env_values = true, value_name = "PLACE")]
    pub database: String,
    /// File of its secret, which names of people are read with [default: the database's with `.secret` behind its name]
    #[arg(long, env = "REMPART_SECRET", value_name = "FILE")]
    pub secret: Option<PathBuf>,
    /// Who does this, for the audit chain, which holds the user's number in the system beside it
    #[arg(long = "as", env = "USER", value_name = "NAME", default_value = "unknown")]
    pub operator: String,
}

impl DatabaseArgs {
    /// The database.
    ///
    /// # Errors
    /// What is wrong with its place. (It is read here and not where options are, which tell what they can't read: it may have a
    /// password.)
    pub fn place(&self) -> Result<Database, Error> {
        place_of(&self.database)
    }

    /// Who runs the command, as the audit chain names them: by the user's number, which nobody can choose, and the name that
    /// was given.
    pub fn actor(&self) -> String {
        // A process's own entry belongs to its user.
        let user =
            std::fs::metadata("/proc/self").map_or_else(|_| "?".to_owned(), |own| own.uid().to_string());
        format!("cli:{user}:{}", self.operator)
    }
}

/// Reads the place of a database.
///
/// # Errors
/// What is wrong with it, and nothing of it.
pub fn place_of(text: &str) -> Result<Database, Error> {
    text.parse().map_err(|reason| Error::Database { reason })
}
