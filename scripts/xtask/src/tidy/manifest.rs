//! The little of a Cargo.toml that the rules need: sections, keys and values, each with its line.

/// One `key = value` of a Cargo.toml. Values that run over several lines keep their first line only.
pub(crate) struct Entry {
    /// As in the brackets: `dependencies`, `lints`, `target.'cfg(unix)'.dependencies`.
    pub(crate) section: String,
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) line: usize,
}

/// Where a dependency is declared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Normal,
    Development,
    Build,
}

pub(crate) struct Dependency {
    /// The package's name, not the name it is given here.
    pub(crate) package: String,
    pub(crate) kind: Kind,
    pub(crate) line: usize,
}

pub(crate) struct Manifest {
    pub(crate) entries: Vec<Entry>,
}

impl Manifest {
    pub(crate) fn parse(text: &str) -> Self {
        let mut section = String::new();
        let mut entries = Vec::new();
        let mut open_brackets = 0_usize;
        for (index, line) in text.lines().enumerate() {
            let line = line.split(" #").next().unwrap_or(line).trim();
            let inside_array = open_brackets > 0;
            let is_header = !inside_array && line.starts_with('[') && line.ends_with(']');
            if is_header {
                line.trim_matches(['[', ']']).clone_into(&mut section);
                continue;
            }
            if !inside_array
                && let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#'))
            {
                let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
                entries.push(Entry {
                    section: section.clone(),
                    key,
                    value,
                    line: index + 1,
                });
            }
            if !line.starts_with('#') {
                let opened = line.matches('[').count();
                open_brackets = (open_brackets + opened).saturating_sub(line.matches(']').count());
            }
        }
        Self { entries }
    }

    pub(crate) fn value(&self, section: &str, key: &str) -> Option<&str> {
        let found = self
            .entries
            .iter()
            .find(|entry| entry.section == section && entry.key == key);
        found.map(|entry| entry.value.trim_matches('"'))
    }

    pub(crate) fn package_name(&self) -> Option<&str> {
        self.value("package", "name")
    }

    /// Whether the key is `true` here or taken over from the workspace.
    pub(crate) fn inherits(&self, section: &str, key: &str) -> bool {
        self.value(section, &format!("{key}.workspace")) == Some("true")
            || self
                .value(section, key)
                .is_some_and(|value| value.replace(' ', "") == "{workspace=true}")
    }

    /// Every dependency in any table, target tables included.
    pub(crate) fn dependencies(&self) -> Vec<Dependency> {
        let mut found: Vec<Dependency> = Vec::new();
        for entry in &self.entries {
            let Some((kind, named_by_section)) = dependency_section(&entry.section) else {
                continue;
            };
            let name = named_by_section
                .unwrap_or_else(|| entry.key.split('.').next().unwrap_or(&entry.key).to_owned());
            let package = renamed_package(entry).unwrap_or(name);
            // `[dependencies.x]` has one entry for each of its keys.
            if !found
                .iter()
                .any(|other| other.package == package && other.kind == kind)
            {
                found.push(Dependency {
                    package,
                    kind,
                    line: entry.line,
                });
            }
        }
        found
    }
}

/// The kind of a dependency table, and the dependency's name if the table is that of a single one.
fn dependency_section(section: &str) -> Option<(Kind, Option<String>)> {
    let kinds = [
        ("dev-dependencies", Kind::Development),
        ("build-dependencies", Kind::Build),
        ("dependencies", Kind::Normal),
    ];
    let table = section.rsplit_once("'.").map_or(section, |(_, table)| table);
    for (name, kind) in kinds {
        if table == name {
            return Some((kind, None));
        }
        if let Some(single) = table.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')) {
            return Some((kind, Some(single.to_owned())));
        }
    }
    None
}

fn renamed_package(entry: &Entry) -> Option<String> {
    if entry.key == "package" {
        return Some(entry.value.trim_matches('"').to_owned());
    }
    let (_, after) = entry.value.split_once("package")?;
    let value = after.trim_start().strip_prefix('=')?;
    value.split('"').nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
[package]
name = "one" # a name
publish.workspace = true

[features]
cuda = [
  "two/cuda",
]

[dependencies]
anyhow.workspace = true
two = { path = "../two", features = ["x"] }
three = { package = "rempart-three", version = "1" }

[dependencies.four]
version = "1"
default-features = false

[target.'cfg(unix)'.dev-dependencies]
libc = "0.2"
"#;

    #[test]
    fn values_and_inheritance() {
        let manifest = Manifest::parse(TEXT);
        assert_eq!(manifest.package_name(), Some("one"));
        assert!(manifest.inherits("package", "publish"));
        assert!(!manifest.inherits("package", "version"));
        assert!(manifest.value("features", "cuda").is_some());
    }

    #[test]
    fn dependencies_of_every_table() {
        let found = Manifest::parse(TEXT).dependencies();
        let names: Vec<_> = found
            .iter()
            .map(|dependency| dependency.package.as_str())
            .collect();
        assert_eq!(names, ["anyhow", "two", "rempart-three", "four", "libc"]);
        assert!(found[4].kind == Kind::Development);
        assert_eq!(found[1].line, 13);
    }
}
