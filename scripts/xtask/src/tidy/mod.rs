//! `cargo xtask tidy`: the rules of the house that no compiler and no lint checks. It is a test of this crate as well.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

mod cpp;
mod crates;
mod exceptions;
mod links;
mod manifest;
mod rust;
mod size;
mod source;
mod text;
mod tree;

use tree::{File, Tree};

/// One breach of a rule: where, which, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    path: String,
    line: usize,
    rule: &'static str,
    message: String,
}

impl Finding {
    fn new(file: &File, line: usize, rule: &'static str, message: impl Into<String>) -> Self {
        Self {
            path: file.path.clone(),
            line,
            rule,
            message: message.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path, self.line, self.rule, self.message)
    }
}

pub(crate) fn run(root: &Path) -> Result<ExitCode> {
    let tree = Tree::read(root)?;
    let findings = check(&tree);
    for finding in &findings {
        crate::say_error(&finding.to_string());
    }
    if findings.is_empty() {
        crate::say(&format!("tidy: {} files, nothing to mend", tree.files.len()));
        return Ok(ExitCode::SUCCESS);
    }
    crate::say_error(&format!("tidy: {} finding(s)", findings.len()));
    Ok(ExitCode::FAILURE)
}

/// Every rule over the whole tree, sorted by place, without the named exceptions.
fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    size::check(tree, &mut findings);
    crates::check(tree, &mut findings);
    rust::check(tree, &mut findings);
    text::check(tree, &mut findings);
    links::check(tree, &mut findings);
    let mut findings = exceptions::apply(tree, findings);
    findings.sort();
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `check` says about these files, the message about missing files left out.
    pub(super) fn found(rule: fn(&Tree, &mut Vec<Finding>), files: &[(&str, &str)]) -> Vec<String> {
        let mut findings = Vec::new();
        rule(&Tree::of(files), &mut findings);
        findings.sort();
        findings
            .iter()
            .map(|finding| format!("{}:{}: {}", finding.path, finding.line, finding.rule))
            .collect()
    }

    #[test]
    fn the_repository_is_tidy() {
        let tree = Tree::read(&crate::workspace_root().unwrap()).unwrap();
        let findings: Vec<String> = check(&tree).iter().map(ToString::to_string).collect();
        assert!(
            findings.is_empty(),
            "run `cargo xtask tidy`:\n{}",
            findings.join("\n")
        );
    }

    /// The same from a folder on disk: tracked, new and ignored files, and one that was deleted.
    #[test]
    fn a_folder_is_read_as_git_sees_it() {
        let root = std::env::temp_dir().join(format!("rempart-tidy-{}", std::process::id()));
        std::fs::create_dir_all(root.join("kernels/src")).unwrap();
        let write = |path: &str, text: &str| std::fs::write(root.join(path), text).unwrap();
        let git = |arguments: &[&str]| {
            let status = std::process::Command::new("git")
                .args(arguments)
                .current_dir(&root)
                .status()
                .unwrap();
            assert!(status.success());
        };
        git(&["init", "--quiet"]);
        write(".gitignore", "/target\n");
        write("gone.rs", "");
        git(&["add", "."]);
        std::fs::remove_file(root.join("gone.rs")).unwrap();
        write("target", "ignored");
        write("kernels/src/lib.rs", &format!("// {}{}\n", "TO", "DO: later"));
        let tree = Tree::read(&root);
        std::fs::remove_dir_all(&root).unwrap();
        let tree = tree.unwrap();
        let paths: Vec<&str> = tree.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, [".gitignore", "kernels/src/lib.rs"]);
        let said: Vec<String> = check(&tree).iter().map(ToString::to_string).collect();
        assert!(
            said.iter()
                .any(|line| line.starts_with("kernels/src/lib.rs:1: unfinished: ")),
            "{said:?}"
        );
    }
}
