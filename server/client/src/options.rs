//! The options of every command that asks a server, as they are typed.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use crate::limits::{Patience, seconds};
use crate::target::{Secret, Target, Trust};

/// A server: where it is, who asks, and whom it must prove to be.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// Where the server is, with the version's path
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080/v1")]
    base_url: String,
    #[command(flatten)]
    access: AccessArgs,
}

/// Whom a server must prove to be.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
struct TrustArgs {
    /// Authorities that the server's certificate must come from, in PEM, instead of those that this machine trusts
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca_file: Option<PathBuf>,
    /// Take any certificate: whoever is on the way can read the key
    #[arg(long)]
    insecure: bool,
}

/// What is sent with each request, and whom the server must prove to be: of any server, and so without OpenAI's key.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
pub struct HeaderArgs {
    /// Sent with each request; may be repeated
    // Taken apart later: clap repeats what it can't parse, and this may be a key.
    #[arg(long = "header", value_name = "NAME=VALUE")]
    headers: Vec<Secret>,
    #[command(flatten)]
    trust: TrustArgs,
}

/// Who asks, and whom the server must prove to be.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
pub struct AccessArgs {
    /// Sent as a bearer token; better given by the environment, where other users don't see it
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true)]
    api_key: Option<Secret>,
    #[command(flatten)]
    sent: HeaderArgs,
}

/// How long a request may take.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Server")]
#[expect(clippy::struct_field_names, reason = "options are named after their fields")]
pub struct PatienceArgs {
    /// For a connection and its TLS handshake
    #[arg(long, value_name = "S", default_value = "10")]
    connect_timeout_s: f64,
    /// For the head of an answer, and then between two parts of it
    #[arg(long, value_name = "S", default_value = "120")]
    idle_timeout_s: f64,
    /// For a whole request
    #[arg(long, value_name = "S", default_value = "600")]
    timeout_s: f64,
}

impl ServerArgs {
    /// # Errors
    /// Names the option that is wrong.
    pub fn target(&self) -> anyhow::Result<Target> {
        self.access.target("--base-url", &self.base_url)
    }

    /// The key and the values of headers, for who keeps them out of what is written.
    pub fn secrets(&self) -> Vec<String> {
        let AccessArgs { api_key, sent } = &self.access;
        let values = sent
            .headers
            .iter()
            .filter_map(|Secret(text)| Some(text.split_once('=')?.1.trim()));
        let key = api_key.iter().map(|Secret(key)| key.as_str());
        key.chain(values).map(str::to_owned).collect()
    }

    /// Another place of the same server, which gets the same key.
    ///
    /// # Errors
    /// Names the option that is wrong.
    pub fn target_at(&self, option: &str, url: &str) -> anyhow::Result<Target> {
        self.access.target(option, url)
    }
}

impl TrustArgs {
    fn trust(&self) -> Trust {
        match (&self.ca_file, self.insecure) {
            (_, true) => Trust::Anybody,
            (Some(path), _) => Trust::File(path.clone()),
            (None, false) => Trust::Machine,
        }
    }
}

impl HeaderArgs {
    /// The server at a URL that another option gave, which gets further headers, too: those that are typed go before them.
    ///
    /// # Errors
    /// Names the option that is wrong.
    pub fn target(&self, option: &str, url: &str, further: Vec<(String, String)>) -> anyhow::Result<Target> {
        self.with(option, url, None, further)
    }

    fn with(
        &self,
        option: &str,
        url: &str,
        key: Option<&Secret>,
        mut headers: Vec<(String, String)>,
    ) -> anyhow::Result<Target> {
        for Secret(text) in &self.headers {
            let (name, value) = text.split_once('=').context("--header: needs NAME=VALUE")?;
            headers.push((name.trim().to_owned(), value.trim().to_owned()));
        }
        Target::new(option, url, key, &headers, &self.trust.trust())
    }
}

impl AccessArgs {
    /// The server at a URL that another option gave.
    ///
    /// # Errors
    /// Names the option that is wrong.
    pub fn target(&self, option: &str, url: &str) -> anyhow::Result<Target> {
        let key = self.api_key.as_ref().filter(|key| !key.0.is_empty());
        self.sent.with(option, url, key, Vec::new())
    }
}

impl PatienceArgs {
    /// # Errors
    /// Names the option that is wrong.
    pub fn patience(&self) -> anyhow::Result<Patience> {
        Ok(Patience {
            connect: seconds("--connect-timeout-s", self.connect_timeout_s)?,
            idle: seconds("--idle-timeout-s", self.idle_timeout_s)?,
            request: seconds("--timeout-s", self.timeout_s)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Typed {
        #[command(flatten)]
        access: AccessArgs,
        #[command(flatten)]
        patience: PatienceArgs,
    }

    #[test]
    fn keys_are_in_no_debug_output_and_in_no_error() {
        let typed = |header: &str| {
            Typed::try_parse_from(["x", "--api-key", "sk-hidden", "--header", header]).unwrap()
        };
        let good = typed("X-Token=tok-hidden");
        assert!(!format!("{good:?}").contains("hidden"), "{good:?}");
        let target = good.access.target("--base-url", "http://localhost/v1").unwrap();
        assert!(!format!("{target:?}").contains("hidden"), "{target:?}");
        for bad in [
            "tok-hidden",
            "no name=tok-hidden",
            "X=tok-\nhidden",
            "Authorization: Bearer hidden=",
        ] {
            let said = typed(bad)
                .access
                .target("--base-url", "http://localhost")
                .unwrap_err();
            assert!(!format!("{said:?}").contains("hidden"), "{said:?}");
        }
    }

    #[test]
    fn times_that_are_none_are_named() {
        for bad in ["0", "-1", "nan", "inf", "1e9"] {
            let option = format!("--idle-timeout-s={bad}");
            let typed = Typed::try_parse_from(["x", &option]).unwrap();
            let said = typed.patience.patience().unwrap_err().to_string();
            assert!(said.contains("--idle-timeout-s"), "{said}");
        }
    }
}
