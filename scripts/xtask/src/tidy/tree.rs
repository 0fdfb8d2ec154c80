//! The files that the rules look at: everything git tracks or would track, read once.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// One file of the repository.
pub(crate) struct File {
    /// Relative to the root, with `/` between folders.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    /// None: not UTF-8, so no text to check.
    pub(crate) text: Option<String>,
}

impl File {
    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    pub(crate) fn has_extension(&self, extension: &str) -> bool {
        self.name()
            .rsplit_once('.')
            .is_some_and(|(stem, last)| !stem.is_empty() && last == extension)
    }

    pub(crate) fn text(&self) -> &str {
        self.text.as_deref().unwrap_or("")
    }

    /// Data that tests read: long lines, odd paths and foreign text are what it is for.
    pub(crate) fn is_fixture(&self) -> bool {
        self.path
            .split('/')
            .any(|part| part == "fixtures" || part == "snapshots")
    }

    pub(crate) fn is_rust(&self) -> bool {
        self.has_extension("rs") && !self.is_fixture()
    }

    /// C++, that of CUDA included.
    pub(crate) fn is_cpp(&self) -> bool {
        ["cu", "cuh", "cpp", "h"]
            .iter()
            .any(|extension| self.has_extension(extension))
            && !self.is_fixture()
    }

    /// Python and shell, by extension or by the first line.
    pub(crate) fn is_script(&self) -> bool {
        let shebang = self.text().starts_with("#!") && !self.has_extension("rs");
        (shebang || self.has_extension("py") || self.has_extension("sh")) && !self.is_fixture()
    }

    pub(crate) fn is_python(&self) -> bool {
        let shebang = self
            .text()
            .lines()
            .next()
            .is_some_and(|line| line.starts_with("#!") && line.contains("python"));
        (shebang || self.has_extension("py")) && !self.is_fixture()
    }
}

/// The repository as the rules see it, sorted by path.
pub(crate) struct Tree {
    pub(crate) files: Vec<File>,
}

impl Tree {
    /// Reads the files git tracks and those it would track if they were added.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let output = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .context("git is needed to list the files of the repository")?;
        let message = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "git ls-files failed in {}: {}",
            root.display(),
            message.trim()
        );
        let listed = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
        let mut paths: Vec<&str> = listed.split('\0').filter(|path| !path.is_empty()).collect();
        paths.sort_unstable();
        paths.dedup();
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            // A file that was deleted and not yet committed is listed but is not there.
            if root.join(path).is_file() {
                let bytes =
                    std::fs::read(root.join(path)).with_context(|| format!("{path} cannot be read"))?;
                files.push(File {
                    path: path.to_owned(),
                    bytes: bytes.len() as u64,
                    text: String::from_utf8(bytes).ok(),
                });
            }
        }
        Ok(Self { files })
    }

    pub(crate) fn file(&self, path: &str) -> Option<&File> {
        self.files
            .binary_search_by(|file| file.path.as_str().cmp(path))
            .ok()
            .map(|index| &self.files[index])
    }

    /// Whether `path` is a file or a folder that holds one; the empty path is the root.
    pub(crate) fn has(&self, path: &str) -> bool {
        let folder = format!("{}/", path.trim_end_matches('/'));
        path.is_empty()
            || self.file(path).is_some()
            || self.files.iter().any(|file| file.path.starts_with(&folder))
    }

    pub(crate) fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.is_rust())
    }

    pub(crate) fn markdown(&self) -> impl Iterator<Item = &File> {
        self.files
            .iter()
            .filter(|file| file.has_extension("md") && !file.is_fixture())
    }

    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let mut files: Vec<File> = files
            .iter()
            .map(|(path, text)| File {
                path: (*path).to_owned(),
                bytes: text.len() as u64,
                text: Some((*text).to_owned()),
            })
            .collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Self { files }
    }
}
