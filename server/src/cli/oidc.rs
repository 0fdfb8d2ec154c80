//! `rempart oidc`: the public keys of a login, fetched for the file that a server reads.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use rempart_hub::file;
use rempart_hub::pull::login::{LoginRequest, fetch};

use crate::oidc::{FILE_BYTES_MAX, KeySet};

/// What is published is no secret.
const MODE: u32 = 0o644;

/// The company's login.
#[derive(Debug, Subcommand)]
pub enum OidcCommand {
    /// Fetch its public keys, check them as a server does, and put them in the place of those in a file
    Fetch {
        /// The login, as its tokens and its discovery document name it
        #[arg(long, env = "REMPART_OIDC_ISSUER", value_name = "URL")]
        oidc_issuer: String,
        /// Authorities, in PEM, that alone may vouch for the login's certificate [default: those of the system]
        #[arg(long, env = "REMPART_OIDC_CA", value_name = "FILE")]
        ca: Option<PathBuf>,
        /// The file that `serve --oidc-keys` reads
        #[arg(short, long, env = "REMPART_OIDC_KEYS", value_name = "FILE")]
        output: PathBuf,
    },
}

/// Does what was asked.
pub(super) fn oidc(command: OidcCommand) -> anyhow::Result<()> {
    let OidcCommand::Fetch {
        oidc_issuer,
        ca,
        output,
    } = command;
    let published = fetch(LoginRequest {
        issuer: &oidc_issuer,
        ca: ca.as_deref(),
        key_set_bytes_max: FILE_BYTES_MAX,
    })?;
    // What a server would not take is not put where it reads.
    let keys = KeySet::parse(&published.bytes).with_context(|| published.address.clone())?;
    replace(&output, &published.bytes)?;
    let mut out = std::io::stdout().lock();
    for key in keys.told() {
        writeln!(out, "{key}")?;
    }
    let (usable, ignored) = (keys.usable(), keys.ignored);
    writeln!(
        out,
        "{usable} of {} keys of {} verify tokens; they are in {}",
        usable + ignored,
        published.address,
        output.display()
    )?;
    Ok(())
}

fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let place = || format!("--output {}", path.display());
    // A rename would put a file in the place of a device or of a link.
    let is_file = fs::symlink_metadata(path).is_ok_and(|there| there.is_file());
    ensure!(
        is_file || fs::symlink_metadata(path).is_err(),
        "{}: it is there, and no regular file",
        place()
    );
    file::write(path, bytes, Some(MODE)).with_context(place)
}
