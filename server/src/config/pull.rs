//! Options of `rempart pull`, and where models are kept.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use clap::builder::BoolishValueParser;

/// Where models are kept.
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// Folder that `rempart pull` writes to [default: .local/share/rempart/models in the home folder]
    #[arg(long, env = "REMPART_MODELS_DIR", help_heading = "Model")]
    pub models_dir: Option<PathBuf>,
}

impl StoreArgs {
    /// The folder; an account without a home keeps its models below the current one.
    pub fn path(self) -> PathBuf {
        let home = || {
            std::env::home_dir()
                .unwrap_or_default()
                .join(".local/share/rempart/models")
        };
        self.models_dir.unwrap_or_else(home)
    }
}

/// Options of `rempart pull`, as typed.
#[derive(Debug, Clone, Args)]
pub struct PullArgs {
    // Not a doc comment: rustdoc would take the brackets for links, --help would show what escapes them.
    #[arg(
        env = "REMPART_PULL_MODEL",
        help = "A name of the catalogue, or hf:organisation/name[@revision][:file]"
    )]
    pub model: Option<String>,
    /// List the catalogue instead
    #[arg(long, env = "REMPART_PULL_LIST", value_parser = BoolishValueParser::new())]
    pub list: bool,
    #[command(flatten)]
    pub store: StoreArgs,
    /// Name of the model's folder [default: the catalogue's name, or organisation--name]
    #[arg(long, env = "REMPART_PULL_NAME")]
    pub name: Option<String>,
    /// Fetch again what is already there, and replace a folder that no pull has made
    #[arg(long, env = "REMPART_PULL_FORCE", value_parser = BoolishValueParser::new())]
    pub force: bool,
    /// Use what earlier downloads left in the cache, and no network
    #[arg(long, env = "HF_HUB_OFFLINE", value_parser = BoolishValueParser::new(), help_heading = "Hub")]
    pub offline: bool,
    /// Address of the hub [default: <https://huggingface.co>]
    #[arg(long, env = "HF_ENDPOINT", help_heading = "Hub")]
    pub endpoint: Option<String>,
    /// Access token of the hub; better given as environment variable, which other users cannot list
    #[arg(long, env = "HF_TOKEN", hide_env_values = true, help_heading = "Hub")]
    pub token: Option<Secret>,
    /// Folder of downloads, shared with other tools [default: hub in --hub-home]
    #[arg(long, env = "HF_HUB_CACHE", help_heading = "Hub")]
    pub hub_cache: Option<PathBuf>,
    /// Folder of the hub's tools [default: .cache/huggingface in the home folder]
    #[arg(long, env = "HF_HOME", help_heading = "Hub")]
    pub hub_home: Option<PathBuf>,
}

impl PullArgs {
    /// The folder of downloads.
    pub fn cache_path(&self) -> PathBuf {
        let home = || {
            std::env::home_dir()
                .unwrap_or_default()
                .join(".cache/huggingface")
        };
        let hub = || self.hub_home.clone().unwrap_or_else(home).join("hub");
        self.hub_cache.clone().unwrap_or_else(hub)
    }
}

/// Text that is never shown.
#[derive(Clone)]
pub struct Secret(pub String);

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}
