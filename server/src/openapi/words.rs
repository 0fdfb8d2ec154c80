//! What docs/api.md says of parameters. The document takes its words and examples from that page, so that they are written
//! once; a test sends all of them to a server.

use serde_json::Value;

const PAGE: &str = include_str!("../../../docs/api.md");

/// What the page says of one endpoint.
#[derive(Clone, Copy)]
pub(super) struct Section(&'static str);

impl Section {
    /// The section of an endpoint; an empty one where the page has none.
    pub(super) fn of(path: &str) -> Self {
        let mut sections = PAGE.split("\n## POST ");
        let found = sections.find_map(|section| section.strip_prefix(path)?.strip_prefix('\n'));
        Self(found.unwrap_or_default())
    }

    /// The example and the explanation in a parameter's row.
    pub(super) fn row(self, name: &str) -> Option<(Value, &'static str)> {
        let mut lines = self.0.lines();
        let row =
            lines.find_map(|line| line.strip_prefix("| `")?.strip_prefix(name)?.strip_prefix("` | "))?;
        let mut cells = row.trim_end_matches(" |").splitn(3, " | ");
        let (example, _refused, what) = (cells.next()?, cells.next()?, cells.next()?);
        Some((serde_json::from_str(example.trim_matches('`')).ok()?, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read() {
        let section = Section::of("/v1/embeddings");
        let (example, what) = section.row("dimensions").unwrap();
        assert_eq!(example, 2);
        assert!(what.starts_with("up to") && what.ends_with("again"), "{what}");
        assert!(section.row("dimension").is_none());
        assert!(Section::of("/v1/nothing").row("model").is_none());
    }
}
