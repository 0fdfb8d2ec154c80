//! Whose models are let in.

use std::path::PathBuf;

use clap::Args;

/// Options of `rempart serve` on signatures of models, as typed.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct TrustArgs {
    /// Load only models that this key has signed, or another that is given, and no file of theirs that was changed since: a public
    /// key in PEM (ECDSA on P-256 or P-384, Ed25519); give it again for further keys, or part them by commas (no path may have one)
    #[arg(long, env = "REMPART_MODEL_KEY", value_name = "FILE", value_delimiter = ',')]
    pub model_key: Vec<PathBuf>,
    /// Likewise, what was signed with a certificate that the authorities in this file vouch for
    #[arg(
        long,
        env = "REMPART_MODEL_CERTIFICATE_CHAIN",
        value_name = "FILE",
        value_delimiter = ','
    )]
    pub model_certificate_chain: Vec<PathBuf>,
}

/// Files that say whose signatures count. Without any, models need none.
#[derive(Debug, Clone, Default)]
pub struct TrustSettings {
    pub keys: Vec<PathBuf>,
    pub chains: Vec<PathBuf>,
}

impl TrustArgs {
    pub(super) fn settings(self) -> TrustSettings {
        TrustSettings {
            keys: self.model_key,
            chains: self.model_certificate_chain,
        }
    }
}
