//! Links of the Markdown pages: files exist, headings exist, the function a link names is in the file, and the index
//! of docs/ lists every page of docs/.

use super::Finding;
use super::source::words;
use super::tree::{File, Tree};

const DOCS: &str = "docs/";
const DOCS_INDEX: &str = "docs/README.md";

struct Link<'a> {
    text: &'a str,
    target: &'a str,
    line: usize,
}

pub(super) fn check(tree: &Tree, findings: &mut Vec<Finding>) {
    for file in tree.markdown() {
        for link in links(file.text()) {
            if let Err(message) = resolve(tree, file, &link) {
                findings.push(Finding::new(file, link.line, "link", message));
            }
        }
    }
    index(tree, findings);
}

/// `[text](target)` outside code blocks and outside inline code.
fn links(text: &str) -> Vec<Link<'_>> {
    let mut found = Vec::new();
    let mut in_block = false;
    for (index, line) in text.lines().enumerate() {
        let fence = line.trim_start();
        if fence.starts_with("```") || fence.starts_with("~~~") {
            in_block = !in_block;
        } else if !in_block {
            line_links(line, index + 1, &mut found);
        }
    }
    found
}

fn line_links<'a>(line: &'a str, number: usize, found: &mut Vec<Link<'a>>) {
    for (middle, _) in line.match_indices("](") {
        let Some(open) = line[..middle].rfind('[') else {
            continue;
        };
        let Some(length) = line[middle + 2..].find(')') else {
            continue;
        };
        // An odd number of backticks before the bracket: the link itself is quoted as code.
        if line[..open].matches('`').count() % 2 == 1 {
            continue;
        }
        let target = &line[middle + 2..middle + 2 + length];
        let target = target.split_whitespace().next().unwrap_or("");
        found.push(Link {
            text: &line[open + 1..middle],
            target,
            line: number,
        });
    }
}

fn resolve(tree: &Tree, file: &File, link: &Link<'_>) -> Result<(), String> {
    if link.target.contains("://") || link.target.starts_with("mailto:") {
        return Ok(());
    }
    let (path, anchor) = link.target.split_once('#').unwrap_or((link.target, ""));
    let Some(path) = (if path.is_empty() {
        Some(file.path.clone())
    } else {
        join(&file.path, path)
    }) else {
        return Err(format!("`{}` leaves the repository", link.target));
    };
    if !tree.has(&path) {
        return Err(format!(
            "`{path}` does not exist: mend the link or commit the file"
        ));
    }
    let Some(target) = tree.file(&path) else {
        return Ok(());
    };
    if !anchor.is_empty()
        && target.has_extension("md")
        && !headings(target.text()).iter().any(|slug| slug == anchor)
    {
        return Err(format!("`{path}` has no heading `#{anchor}`"));
    }
    if target.has_extension("rs")
        && let Some(name) = named_item(link.text)
        && words(target.text(), name).next().is_none()
    {
        return Err(format!(
            "`{path}` does not contain `{name}`: it was renamed or moved"
        ));
    }
    Ok(())
}

/// The last name of a link text in backticks: `Engine::step` names `step`, `app(state) -> Router` names `app`.
fn named_item(text: &str) -> Option<&str> {
    let code = text.trim().strip_prefix('`')?.strip_suffix('`')?;
    let path = code.split(['(', '<', ' ']).next()?;
    let name = path.rsplit("::").next()?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    is_name.then_some(name)
}

/// `target` as seen from the folder of `from`; None above the root.
fn join(from: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            _ => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Anchors as GitHub makes them of headings: lower case, blanks to hyphens, punctuation dropped.
fn headings(text: &str) -> Vec<String> {
    let mut in_block = false;
    let mut found: Vec<String> = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        }
        let title = line.trim_start_matches('#');
        if in_block || title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let slug: String = title
            .trim()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect::<String>()
            .to_lowercase();
        let repeats = found.iter().filter(|other| **other == slug).count();
        found.push(if repeats == 0 {
            slug
        } else {
            format!("{slug}-{repeats}")
        });
    }
    found
}

fn index(tree: &Tree, findings: &mut Vec<Finding>) {
    let Some(file) = tree.file(DOCS_INDEX) else { return };
    let listed: Vec<String> = links(file.text())
        .iter()
        .filter_map(|link| join(&file.path, link.target))
        .collect();
    for page in tree
        .markdown()
        .filter(|page| page.path.starts_with(DOCS) && page.path != DOCS_INDEX)
    {
        if !listed.contains(&page.path) {
            let message = format!(
                "the index does not list `{}`: a page nobody finds is not documentation",
                page.path
            );
            findings.push(Finding::new(file, 1, "docs index", message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::found;
    use super::*;

    #[test]
    fn links_to_missing_files_and_headings_are_found() {
        let pages = |text: &'static str| {
            [
                ("docs/a.md", text),
                ("b.md", "# The B, page\n## More\n## More\n"),
                ("src/c.rs", ""),
            ]
        };
        for good in [
            "[b](../b.md)",
            "[b](../b.md#the-b-page)",
            "[more](../b.md#more-1)",
            "[src](../src/)",
            "[x](https://x.y/z)",
        ] {
            assert!(found(check, &pages(good)).is_empty(), "{good}");
        }
        for bad in [
            "[b](b.md)",
            "[b](../b.md#other)",
            "a [c](../src/d.rs) b",
            "[up](../../b.md)",
            "[self](#none)",
        ] {
            assert_eq!(found(check, &pages(bad)), ["docs/a.md:1: link"], "{bad}");
        }
    }

    #[test]
    fn quoted_links_are_no_links() {
        assert!(
            found(
                check,
                &[("a.md", "```\n[x](none.md)\n```\nand `[y](none.md)` too\n")]
            )
            .is_empty()
        );
    }

    #[test]
    fn a_link_that_names_a_function_needs_the_function() {
        let page = |text: &'static str| {
            [
                ("a.md", text),
                ("b.rs", "impl Engine { pub fn step(&mut self) {} }\n"),
            ]
        };
        assert!(found(check, &page("[`Engine::step`](b.rs)")).is_empty());
        assert!(found(check, &page("[`step(now) -> Report`](b.rs)")).is_empty());
        assert!(found(check, &page("[the engine](b.rs)")).is_empty());
        assert_eq!(found(check, &page("[`Engine::steps`](b.rs)")), ["a.md:1: link"]);
    }

    #[test]
    fn every_page_of_docs_is_in_the_index() {
        let files = [
            ("docs/README.md", "[a](a.md)"),
            ("docs/a.md", ""),
            ("docs/adr/0001.md", ""),
        ];
        assert_eq!(found(check, &files), ["docs/README.md:1: docs index"]);
    }
}
