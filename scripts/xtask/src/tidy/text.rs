//! Words that have no place in a finished tree: notes to self and paths of one machine. And the changelog's head.

use super::Finding;
use super::tree::{File, Tree};

/// Written in two halves, so that this file passes its own rule.
const UNFINISHED: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
const MACHINE_PATHS: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/t", "mp/"),
    concat!(".li", "brary"),
];

pub(super) fn check(tree: &Tree, findings: &mut Vec<Finding>) {
    for file in tree.files.iter().filter(|file| is_ours(file)) {
        for (index, line) in file.text().lines().enumerate() {
            unfinished(file, line, index + 1, findings);
            machine_path(file, line, index + 1, findings);
        }
    }
    changelog(tree, findings);
}

/// Written by hand in this repository; lock files and what scripts generated are not.
fn is_ours(file: &File) -> bool {
    !file.is_fixture() && file.name() != "Cargo.lock" && file.name() != "LICENSE"
}

fn unfinished(file: &File, line: &str, number: usize, findings: &mut Vec<Finding>) {
    if let Some(word) = UNFINISHED
        .iter()
        .find(|word| super::source::words(line, word).next().is_some())
    {
        let message = format!("`{word}`: finish it, or say what is missing where a reader decides by it");
        findings.push(Finding::new(file, number, "unfinished", message));
    }
}

fn machine_path(file: &File, line: &str, number: usize, findings: &mut Vec<Finding>) {
    if let Some(path) = MACHINE_PATHS.iter().find(|path| line.contains(**path)) {
        let message =
            format!("`{path}` exists on one machine: take a temporary folder or a path from the caller");
        findings.push(Finding::new(file, number, "machine path", message));
    }
}

fn changelog(tree: &Tree, findings: &mut Vec<Finding>) {
    let Some(file) = tree.file("CHANGELOG.md") else {
        if let Some(root) = tree.file("Cargo.toml") {
            let message = "CHANGELOG.md is missing: it tells users what changed";
            findings.push(Finding::new(root, 1, "changelog", message));
        }
        return;
    };
    if !file.text().lines().any(|line| line.trim() == "## [Unreleased]") {
        findings.push(Finding::new(
            file,
            1,
            "changelog",
            "needs a section `## [Unreleased]` for the next release",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::found;
    use super::*;

    #[test]
    fn notes_to_self_are_found_as_words() {
        let text = format!("a\n# {} later\n", UNFINISHED[0]);
        assert_eq!(found(check, &[("a.py", &text)]), ["a.py:2: unfinished"]);
        assert!(found(check, &[("a.rs", &format!("let {}_LIST = 1;", UNFINISHED[0]))]).is_empty());
    }

    #[test]
    fn machine_paths_are_found() {
        for path in MACHINE_PATHS {
            let text = format!("cd {path}main\n");
            assert_eq!(
                found(check, &[("scripts/test", &text)]),
                ["scripts/test:1: machine path"]
            );
            assert!(found(check, &[("a/tests/fixtures/b.txt", &text)]).is_empty());
        }
    }

    #[test]
    fn the_changelog_has_room_for_the_next_release() {
        assert_eq!(found(check, &[("Cargo.toml", "")]), ["Cargo.toml:1: changelog"]);
        assert_eq!(
            found(check, &[("CHANGELOG.md", "## [0.1.0]\n")]),
            ["CHANGELOG.md:1: changelog"]
        );
        assert!(found(check, &[("CHANGELOG.md", "# Changelog\n\n## [Unreleased]\n")]).is_empty());
    }
}
