//! Tokens of the company's own login.

use std::path::PathBuf;

use clap::Args;

use super::Error;
use crate::oidc::Expected;

/// Options of tokens, which people show where others show a key.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Login")]
pub struct OidcArgs {
    /// The login whose tokens are taken where keys are (OIDC), as its tokens and its discovery document name it
    /// [default: there is none]
    #[arg(long, env = "REMPART_OIDC_ISSUER", value_name = "URL")]
    pub oidc_issuer: Option<String>,
    /// What its tokens for this server have as their audience
    #[arg(long, env = "REMPART_OIDC_AUDIENCE", value_name = "NAME")]
    pub oidc_audience: Option<String>,
    /// Its public keys, a JSON Web Key Set; read again when it changes
    #[arg(long, env = "REMPART_OIDC_KEYS", value_name = "FILE")]
    pub oidc_keys: Option<PathBuf>,
    /// The claim that has a person's address
    #[arg(
        long,
        env = "REMPART_OIDC_ADDRESS_CLAIM",
        value_name = "NAME",
        default_value = "email"
    )]
    pub oidc_address_claim: String,
    /// Seconds that its clock may be ahead of or behind this machine's
    #[arg(long, env = "REMPART_OIDC_LEEWAY_S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=600))]
    pub oidc_leeway_s: u64,
}

#[derive(Debug, Clone)]
pub struct OidcSettings {
    pub keys: PathBuf,
    pub expected: Expected,
}

impl OidcArgs {
    pub(super) fn check(self, keys: bool) -> Result<Option<OidcSettings>, Error> {
        let (issuer, audience, file) = match (self.oidc_issuer, self.oidc_audience, self.oidc_keys) {
            (None, None, None) => return Ok(None),
            (Some(issuer), Some(audience), Some(file)) => (issuer, audience, file),
            _ => return Err(Error::PartOfOidc),
        };
        if !keys {
            return Err(Error::OidcWithoutDatabase);
        }
        for (option, value) in [
            ("--oidc-audience", &audience),
            ("--oidc-address-claim", &self.oidc_address_claim),
        ] {
            if value.is_empty() || value.trim() != value {
                return Err(Error::OidcName { option });
            }
        }
        if !is_url(&issuer) {
            return Err(Error::OidcIssuer { issuer });
        }
        Ok(Some(OidcSettings {
            keys: file,
            expected: Expected {
                issuer,
                audience,
                address_claim: self.oidc_address_claim,
                leeway_s: self.oidc_leeway_s,
            },
        }))
    }
}

/// Whether it looks like one: it is compared, and nothing is asked there.
fn is_url(text: &str) -> bool {
    let host = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    host.is_some_and(|host| !host.is_empty()) && !text.chars().any(char::is_whitespace)
}
