//! From the cache into the store: a complete folder beside the old one, then one rename.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::cache::{create_parent, lock_file};
use super::error::Error;
use crate::manifest::{self, Manifest};

/// A model's place in the store, held against other pulls of the same name until it is dropped.
pub(super) struct Place {
    dir: PathBuf,
    staging: PathBuf,
    retired: PathBuf,
    _lock: File,
}

impl Place {
    /// Reserves `<store>/<name>`. What an interrupted pull of that name left behind is removed.
    pub(super) fn reserve(store: &Path, name: &str, on_wait: impl FnOnce()) -> Result<Self, Error> {
        let lock = lock_file(&store.join(format!(".{name}.lock")), on_wait)?;
        let hidden = |what: &str| store.join(format!(".{name}.{what}"));
        let place = Self {
            dir: store.join(name),
            staging: hidden("new"),
            retired: hidden("old"),
            _lock: lock,
        };
        remove_dir(&place.staging)?;
        if place.retired.exists() && !place.dir.exists() {
            // The last pull was stopped between its two renames: the old model is still the valid one.
            rename(&place.retired, &place.dir)?;
        }
        remove_dir(&place.retired)?;
        Ok(place)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Refuses to replace what no pull has put there.
    pub(super) fn check_replaceable(&self, force: bool) -> Result<(), Error> {
        let occupied = || Error::Occupied {
            path: self.dir.clone(),
        };
        match fs::symlink_metadata(&self.dir) {
            Err(_) => Ok(()),
            Ok(metadata) if !metadata.is_dir() => Err(occupied()),
            Ok(_) if force || self.dir.join(manifest::FILE_NAME).is_file() => Ok(()),
            Ok(_) => Err(occupied()),
        }
    }

    /// Puts the files of `manifest` in place; `source` tells where the checked content of a path lies. The content is
    /// shared with the cache (a hard link) on the same file system and copied otherwise.
    pub(super) fn install(&self, manifest: &Manifest, source: impl Fn(&str) -> PathBuf) -> Result<(), Error> {
        create_dir(&self.staging)?;
        for file in &manifest.files {
            // Through links of the cache to the blob itself: the store holds files, not links.
            let from = source(&file.path);
            let from = from.canonicalize().map_err(|source| Error::Io {
                path: from.clone(),
                source,
            })?;
            let to = self.staging.join(&file.path);
            create_parent(&to)?;
            fs::hard_link(&from, &to)
                .or_else(|_| fs::copy(&from, &to).map(drop))
                .map_err(|source| Error::Io { path: to, source })?;
        }
        manifest.save(&self.staging)?;
        if self.dir.exists() {
            rename(&self.dir, &self.retired)?;
        }
        rename(&self.staging, &self.dir)?;
        remove_dir(&self.retired)
    }
}

fn create_dir(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })
}

fn remove_dir(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Io {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(|source| Error::Io {
        path: to.to_owned(),
        source,
    })
}
