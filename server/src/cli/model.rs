//! `rempart model`: which models are in the store, what proves them, and signing them.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use indicatif::HumanBytes;
use rempart_hub::manifest::Manifest;
use rempart_hub::progress::Terminal;
use rempart_hub::report::Report;
use rempart_hub::signature::{Chain, PrivateKey, Signed, Target, Trust};
use rempart_hub::store::{self, Stored};

use crate::config::StoreArgs;

/// Models.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// List the models of the store: their SHA-256, files, size, and what proves them
    List {
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Check every file of a model: by a signature with --key or --certificate-chain, otherwise by the manifest of its pull
    Verify {
        #[command(flatten)]
        store: StoreArgs,
        /// A public key whose signatures count, in PEM; give it again for further keys
        #[arg(long, value_name = "FILE")]
        key: Vec<PathBuf>,
        /// Certificates that vouch for those of signatures, in PEM; give it again for further files
        #[arg(long, value_name = "FILE")]
        certificate_chain: Vec<PathBuf>,
        /// Where the signature is [default: NAME.gguf.sig beside the file, or model.sig in the folder]
        #[arg(long, value_name = "FILE")]
        signature: Option<PathBuf>,
        /// A model of the store, a folder, or a GGUF file
        #[arg(value_name = "MODEL")]
        model: String,
    },
    /// Sign every file of a model, in the format of OpenSSF model signing
    Sign {
        #[command(flatten)]
        store: StoreArgs,
        /// The private key, in PEM and without a passphrase: ECDSA on P-256 or P-384, or Ed25519, which only Rempart verifies
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The key's certificate, in PEM, which then names the signer
        #[arg(long, value_name = "FILE")]
        certificate: Option<PathBuf>,
        /// Certificates above that one, in PEM; give it again for further files
        #[arg(long, value_name = "FILE", requires = "certificate")]
        certificate_chain: Vec<PathBuf>,
        /// Where the signature goes [default: NAME.gguf.sig beside the file, or model.sig in the folder]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// A model of the store, a folder, or a GGUF file
        #[arg(value_name = "MODEL")]
        model: String,
    },
}

/// Does what was asked of models.
pub(super) fn model(command: ModelCommand) -> anyhow::Result<()> {
    match command {
        ModelCommand::List { store } => list(&store.path()),
        ModelCommand::Verify {
            store,
            key,
            certificate_chain,
            signature,
            model,
        } => {
            let found = Found::open(&store.path(), &model)?;
            if key.is_empty() && certificate_chain.is_empty() {
                return verify_manifest(&found, signature.as_deref());
            }
            verify_signature(&found, signature, &Trust::open(&key, &certificate_chain)?)
        }
        ModelCommand::Sign {
            store,
            key,
            certificate,
            certificate_chain,
            output,
            model,
        } => {
            let key = PrivateKey::open(&key)?;
            let chain = certificate.map(|own| Chain::open(&own, &certificate_chain, key.public()));
            sign(
                &Found::open(&store.path(), &model)?,
                output,
                &key,
                chain.transpose()?.as_ref(),
            )
        }
    }
}

/// What a name or path leads to.
struct Found {
    /// What a server would open: the folder, or the one file in it.
    path: PathBuf,
    folder: PathBuf,
    /// Whether the file itself was named.
    is_file: bool,
}

impl Found {
    /// Any folder will do, also one that no server would open.
    fn open(store: &Path, model: &str) -> anyhow::Result<Self> {
        let (path, folder) = match store::resolve(store, model) {
            Ok(found) => (found.path, found.dir),
            Err(store::Error::NoModel { path } | store::Error::Several { path, .. }) if path.is_dir() => {
                (path.clone(), path)
            }
            Err(error) => return Err(error.into()),
        };
        let is_file = path != folder && Path::new(model).is_file();
        Ok(Self {
            path,
            folder,
            is_file,
        })
    }

    fn target(&self) -> Target {
        if self.is_file {
            Target::File(self.path.clone())
        } else {
            Target::Folder(self.folder.clone())
        }
    }
}

fn list(store: &Path) -> anyhow::Result<()> {
    let models = store::list(store)?;
    let mut out = std::io::stdout().lock();
    if models.is_empty() {
        writeln!(out, "no models in {}", store.display())?;
    }
    for model in models {
        let Stored {
            name,
            files,
            bytes,
            manifest,
            signed,
        } = model;
        let sha256 = manifest
            .as_ref()
            .map_or_else(|| "-".to_owned(), ToString::to_string);
        let proof = match (manifest.is_some(), signed) {
            (true, true) => "manifest, signature",
            (true, false) => "manifest",
            (false, true) => "signature",
            (false, false) => "nothing",
        };
        let size = HumanBytes(bytes).to_string();
        writeln!(out, "{name:40} {sha256:64} {files:5} files {size:>12}  {proof}")?;
    }
    Ok(())
}

fn verify_manifest(found: &Found, signature: Option<&Path>) -> anyhow::Result<()> {
    if signature.is_some() {
        bail!(
            "--signature is checked with --key or --certificate-chain: without them nobody is trusted to have signed"
        );
    }
    let folder = found.folder.display();
    let Some(manifest) = Manifest::load(&found.folder)? else {
        match Signed::find(&found.path, &found.folder) {
            Ok(signed) => bail!(
                "{folder} has no manifest; its signature {} is checked with --key or --certificate-chain",
                signed.signature.display()
            ),
            Err(_) => bail!(
                "nothing proves {folder}: it has neither a manifest, which `rempart pull` writes, nor a signature"
            ),
        }
    };
    let report = manifest.compare(&found.folder, &Terminal::new())?;
    tell(&report, "the manifest")?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "SHA-256 {}, from {}",
        manifest.root(),
        manifest.source.escape_debug()
    )?;
    Ok(())
}

fn verify_signature(found: &Found, signature: Option<PathBuf>, trust: &Trust) -> anyhow::Result<()> {
    let signed = match signature {
        // What was named as a folder is one, whatever has been put into it.
        None if !found.is_file => Signed::find(&found.folder, &found.folder)?,
        None => Signed::find(&found.path, &found.folder)?,
        Some(signature) => Signed {
            target: found.target(),
            signature,
        },
    };
    let checked = signed.check(trust, &Terminal::new())?;
    tell(&checked.report, &signed.signature.display().to_string())?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "SHA-256 {}, signed by {}",
        checked.statement.root, checked.signer
    )?;
    Ok(())
}

/// Tells every difference; any is an error.
fn tell(report: &Report, list: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for difference in &report.differences {
        writeln!(out, "{:9} {difference}", difference.word())?;
    }
    let (same, bytes) = (report.files, HumanBytes(report.bytes));
    let noun = if same == 1 { "file is" } else { "files are" };
    writeln!(out, "{same} {noun} as in {list} ({bytes})")?;
    match report.differences.len() {
        0 => Ok(()),
        1 => bail!("one file differs, is missing or is unknown"),
        many => bail!("{many} files differ, are missing or are unknown"),
    }
}

fn sign(
    found: &Found,
    output: Option<PathBuf>,
    key: &PrivateKey,
    chain: Option<&Chain>,
) -> anyhow::Result<()> {
    let target = found.target();
    let signature = output.unwrap_or_else(|| target.signature());
    let signed = Signed { target, signature };
    let statement = signed.sign(key, chain, &Terminal::new())?;
    let signature = signed.signature.display();
    if !key.is_of_openssf() {
        tracing::warn!(
            "a signature with Ed25519 is verified by Rempart alone: the package model-signing knows ECDSA only"
        );
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "SHA-256 {}, signed by key {}",
        statement.root,
        key.public().fingerprint()
    )
    .and_then(|()| writeln!(out, "the signature is in {signature}"))
    .context("writing to standard output")
}
