//! Who vouches for a model: OpenSSF model signatures (OMS 1.0), checked and made without a network.
//!
//! A signature is a file beside the model: `model.sig` in its folder, or `NAME.gguf.sig` for one file. It lists the SHA-256 of
//! every file, or of pieces of files. The reference implementation is the package `model-signing` of `PyPI`; what it makes with
//! keys on P-256 and P-384, and with certificates, is read here, and what is made here it reads. Not read are its signatures by
//! way of Sigstore, which needs logs that are elsewhere, and with P-521, BLAKE2 and BLAKE3.

mod bundle;
mod chain;
mod error;
mod folder;
mod keys;
mod statement;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::digest::Sha256;
use crate::file;
use crate::progress::Progress;
use crate::report::Report;
pub use bundle::Bundle;
use chain::Authorities;
pub use chain::Chain;
pub use error::Error;
pub use folder::Seal;
pub use keys::{PrivateKey, PublicKey};
pub use statement::Statement;

/// The signature of a folder, in it.
pub const FILE_NAME: &str = "model.sig";
/// What the signature of a single file has after its name.
pub const SUFFIX: &str = ".sig";
/// Most files of a model.
pub(crate) const FILES_MAX: usize = 20_000;
/// Longest path of a file in a model, in bytes.
const PATH_BYTES_MAX: usize = 4096;

/// Whose signatures count.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    keys: Vec<PublicKey>,
    authorities: Authorities,
}

/// Who has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signer {
    /// A key, by the SHA-256 of its PEM.
    Key(Sha256),
    /// Whoever the certificate names.
    Certificate { subject: String, fingerprint: Sha256 },
}

/// What is signed: a folder with all that is in it, or one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Folder(PathBuf),
    File(PathBuf),
}

/// A model and its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    pub target: Target,
    pub signature: PathBuf,
}

/// A signature that was checked, and what it is about.
#[derive(Debug)]
pub struct Checked {
    pub statement: Statement,
    pub signer: Signer,
    pub report: Report,
    /// Proves afterwards that the files were not changed since.
    pub seal: Seal,
}

impl Trust {
    /// Reads public keys, a file each, and lists of certificates that vouch for others.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn open(keys: &[impl AsRef<Path>], chains: &[impl AsRef<Path>]) -> Result<Self, Error> {
        let mut trust = Self::default();
        for path in keys {
            trust.keys.push(PublicKey::open(path.as_ref())?);
        }
        for path in chains {
            trust.authorities.add(path.as_ref())?;
        }
        Ok(trust)
    }
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(fingerprint) => write!(f, "key {fingerprint}"),
            Self::Certificate { subject, fingerprint } => {
                write!(f, "certificate {fingerprint} of {}", subject.escape_debug())
            }
        }
    }
}

impl Target {
    /// Where its signature is, unless it is elsewhere.
    pub fn signature(&self) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(FILE_NAME),
            Self::File(file) => {
                let mut name = file.clone().into_os_string();
                name.push(SUFFIX);
                name.into()
            }
        }
    }
}

impl Signed {
    /// The signature of what a loader opens: `file`'s own, or that of the folder that it lies in.
    ///
    /// # Errors
    /// [`Error::Unsigned`] and [`Error::FolderUnsigned`] say where signatures were looked for.
    pub fn find(path: &Path, folder: &Path) -> Result<Self, Error> {
        let inside = Target::Folder(folder.to_owned());
        let mut targets = vec![inside.clone()];
        if path != folder {
            targets.insert(0, Target::File(path.to_owned()));
        }
        for target in targets {
            let signature = target.signature();
            if signature.is_file() {
                return Ok(Self { target, signature });
            }
        }
        let inside = inside.signature();
        if path == folder {
            let folder = folder.to_owned();
            return Err(Error::FolderUnsigned { folder, inside });
        }
        Err(Error::Unsigned {
            file: path.to_owned(),
            beside: Target::File(path.to_owned()).signature(),
            inside,
        })
    }

    /// Checks who has signed, and then every file.
    ///
    /// # Errors
    /// Why the signature proves nothing. Files that differ are told in the report.
    pub fn check(&self, trust: &Trust, progress: &dyn Progress) -> Result<Checked, Error> {
        let verified = Bundle::open(&self.signature)?.verify(trust);
        let (statement, signer) = verified.map_err(|reason| Error::Untrusted {
            path: self.signature.clone(),
            reason,
        })?;
        let (report, seal) = folder::compare(self, &statement, progress)?;
        Ok(Checked {
            statement,
            signer,
            report,
            seal,
        })
    }

    /// Signs every file of the model, and writes the signature, whole or not at all. Links are refused. Left out are the signature
    /// itself, the manifest, and what git keeps.
    ///
    /// # Errors
    /// What keeps it from being signed.
    pub fn sign(
        &self,
        key: &PrivateKey,
        chain: Option<&Chain>,
        progress: &dyn Progress,
    ) -> Result<Statement, Error> {
        if matches!(&self.target, Target::File(file) if same_file(file, &self.signature)) {
            let path = self.signature.clone();
            return Err(Error::OverModel { path });
        }
        // A key, a file of the model or a device has the name of a signature only by mistake.
        if fs::symlink_metadata(&self.signature).is_ok() && Bundle::open(&self.signature).is_err() {
            let path = self.signature.clone();
            return Err(Error::OverOther { path });
        }
        let statement = folder::describe(self, progress)?;
        let text = bundle::sign(&statement, key, chain)?;
        file::write(&self.signature, &text, None).map_err(|source| Error::Io {
            path: self.signature.clone(),
            source,
        })?;
        Ok(statement)
    }
}

impl Checked {
    /// That nothing differs.
    ///
    /// # Errors
    /// [`Error::Differs`].
    pub fn whole(self, signature: &Path) -> Result<Self, Error> {
        if self.report.differences.is_empty() {
            return Ok(self);
        }
        Err(Error::Differs {
            path: signature.to_owned(),
            report: self.report,
        })
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let read = file::read(path, limit).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })?;
    read.ok_or_else(|| Error::TooLarge {
        path: path.to_owned(),
        limit,
    })
}
