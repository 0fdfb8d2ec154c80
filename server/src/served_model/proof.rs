//! A model's files, found and proven: by a signature where the operator asks for one, otherwise by the manifest of its pull.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rempart_hub::manifest::Manifest;
use rempart_hub::progress::Terminal;
use rempart_hub::signature::{Seal, Signed, Trust};
use rempart_hub::store::{self, ModelPath};

use crate::config::{ModelSettings, TrustSettings};
use crate::registry::Proof;

/// A model on disk, and what is known of its files.
pub(super) struct Proven {
    pub(super) model: ModelPath,
    pub(super) proof: Proof,
    /// That the files are still those that were checked.
    seal: Option<Seal>,
}

impl Proven {
    /// Finds a model, and checks its files.
    pub(super) fn find(
        settings: &ModelSettings,
        trust: Option<&Trust>,
        source: &str,
    ) -> anyhow::Result<Self> {
        let mut model = store::resolve(&settings.store, source)?;
        let Some(trust) = trust else {
            let proof = by_manifest(&model)?;
            let seal = None;
            return Ok(Self { model, proof, seal });
        };
        (model.path, model.dir) = inside(&model.path, &model.dir)?;
        let signed = Signed::find(&model.path, &model.dir)
            .context("--model-key and --model-certificate-chain let in signed models only")?;
        let checked = signed.check(trust, &Terminal::new())?.whole(&signed.signature)?;
        let proof = Proof {
            sha256: Some(checked.statement.root),
            signer: Some(checked.signer.to_string()),
        };
        tracing::info!(
            model = %model.name, sha256 = %checked.statement.root, signer = %checked.signer, files = checked.report.files,
            "the model is what was signed"
        );
        let seal = Some(checked.seal);
        Ok(Self { model, proof, seal })
    }

    /// Proves, once the model is in memory, that its files were not changed while it was read.
    pub(super) fn check_unchanged(&self) -> anyhow::Result<()> {
        let Some(seal) = &self.seal else {
            return Ok(());
        };
        Ok(seal.check()?)
    }
}

/// A model's file and its folder, where links on the way to the folder are followed once, and none from there on: what is checked is
/// all below the folder, and a link instead of a file is told there.
fn inside(path: &Path, dir: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let real = |path: &Path| path.canonicalize().with_context(|| path.display().to_string());
    let folder = real(dir)?;
    let own = if let Ok(own) = path.strip_prefix(dir) {
        own.to_owned()
    } else {
        let file = real(path)?;
        let own = file.strip_prefix(&folder).map(Path::to_owned);
        own.with_context(|| format!("{} is a link out of {}", path.display(), folder.display()))?
    };
    let file = if own.as_os_str().is_empty() {
        folder.clone()
    } else {
        folder.join(own)
    };
    Ok((file, folder))
}

/// Whose signatures count; `None` where the operator asks for none.
pub(super) fn trust(settings: &TrustSettings) -> anyhow::Result<Option<Trust>> {
    let TrustSettings { keys, chains } = settings;
    if keys.is_empty() && chains.is_empty() {
        return Ok(None);
    }
    let trust = Trust::open(keys, chains);
    let trust = trust.context("--model-key and --model-certificate-chain say whose signatures count")?;
    Ok(Some(trust))
}

fn by_manifest(model: &ModelPath) -> anyhow::Result<Proof> {
    let Some(manifest) = Manifest::load(&model.dir)? else {
        tracing::warn!(folder = %model.dir.display(), "no manifest: nothing proves that these files are unaltered");
        return Ok(Proof::default());
    };
    manifest.verify(&model.dir, &Terminal::new())?;
    Ok(Proof {
        sha256: Some(manifest.root()),
        signer: None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn below_its_folder_no_link_is_followed() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        let (folder, other) = (place.join("model"), place.join("other.gguf"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(&other, "GGUF").unwrap();
        symlink(&other, folder.join("x.gguf")).unwrap();
        symlink(&folder, place.join("link")).unwrap();
        for named in [&folder, &place.join("link")] {
            let found = inside(&named.join("x.gguf"), named).unwrap();
            assert_eq!(
                found,
                (folder.join("x.gguf"), folder.clone()),
                "and not the other"
            );
            assert_eq!(inside(named, named).unwrap(), (folder.clone(), folder.clone()));
        }
        let error = inside(&other, &folder).unwrap_err();
        assert!(error.to_string().contains("a link out of"), "{error}");
    }
}
