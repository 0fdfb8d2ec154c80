//! The members of the workspace: who may depend on whom, who may open a connection, which features exist.

use super::Finding;
use super::manifest::{Dependency, Entry, Kind, Manifest};
use super::tree::{File, Tree};

/// A member and the members that it may depend on.
struct Member {
    name: &'static str,
    folder: &'static str,
    dependencies: &'static [&'static str],
    dev_dependencies: &'static [&'static str],
}

/// The arrows of ARCHITECTURE.md.
const MEMBERS: &[Member] = &[
    Member {
        name: "rempart-kernels",
        folder: "kernels",
        dependencies: &[],
        dev_dependencies: &["rempart-simt"],
    },
    Member {
        name: "rempart-simt",
        folder: "kernels/simt",
        dependencies: &[],
        dev_dependencies: &[],
    },
    Member {
        name: "rempart-models",
        folder: "models",
        dependencies: &["rempart-kernels"],
        dev_dependencies: &[],
    },
    Member {
        name: "rempart-engine",
        folder: "server/engine",
        dependencies: &[],
        dev_dependencies: &[],
    },
    Member {
        name: "rempart-text",
        folder: "server/text",
        dependencies: &[],
        dev_dependencies: &[],
    },
    Member {
        name: "rempart-governance",
        folder: "server/governance",
        dependencies: &[],
        dev_dependencies: &[],
    },
    Member {
        name: "rempart-confinement",
        folder: "server/confinement",
        dependencies: &[],
        dev_dependencies: &[],
    },
    Member {
        name: "rempart-hub",
        folder: "server/hub",
        dependencies: &[],
        dev_dependencies: &[],
    },
    Member {
        name: "rempart-client",
        folder: "server/client",
        dependencies: &[],
        dev_dependencies: &[],
    },
    Member {
        name: "rempart-load",
        folder: "server/load",
        dependencies: &["rempart-client"],
        dev_dependencies: &[],
    },
    Member {
        name: "rempart-operations",
        folder: "server/operations",
        dependencies: &["rempart-client"],
        dev_dependencies: &[],
    },
    Member {
        name: "rempart-terminal",
        folder: "server/terminal",
        dependencies: &["rempart-client"],
        dev_dependencies: &[],
    },
    Member {
        name: "rempart-traces",
        folder: "server/traces",
        dependencies: &[],
        dev_dependencies: &[],
    },
    Member {
        name: "rempart",
        folder: "server",
        dependencies: &[
            "rempart-confinement",
            "rempart-engine",
            "rempart-governance",
            "rempart-hub",
            "rempart-kernels",
            "rempart-load",
            "rempart-models",
            "rempart-operations",
            "rempart-terminal",
            "rempart-text",
            "rempart-traces",
        ],
        dev_dependencies: &[],
    },
    Member {
        name: "rempart-fuzz",
        folder: "server/fuzz",
        dependencies: &["rempart", "rempart-hub", "rempart-text"],
        dev_dependencies: &[],
    },
    Member {
        name: "rempart-bench",
        folder: "benches",
        dependencies: &[],
        dev_dependencies: &["rempart-engine", "rempart-governance", "rempart-kernels"],
    },
    Member {
        name: "xtask",
        folder: "scripts/xtask",
        dependencies: &["rempart-engine"],
        dev_dependencies: &[],
    },
];

/// Packages that can open a connection to somewhere else, and the one member that may name them.
const HTTP_CLIENTS: &[&str] = &["hf-hub", "reqwest", "ureq", "isahc", "curl", "attohttpc"];
const HTTP_CLIENT_MEMBER: &str = "rempart-hub";
/// hyper is a client where this feature is on: for commands that a person starts, and for tests, which ask the server that they
/// start. The server itself has no arrow to this crate, and so reaches it by those commands alone.
const HYPER_CLIENT: &str = "\"client\"";
const HYPER_CLIENT_MEMBER: &str = "rempart-client";

const HERE: &str = "scripts/xtask/src/tidy/crates.rs";
const DRAWING: &str = "ARCHITECTURE.md";

/// The features, and the members that may have each.
const FEATURES: &[(&str, &[&str])] = &[
    ("cuda", &["rempart-kernels", "rempart-models", "rempart"]),
    ("nccl", &["rempart-kernels", "rempart-models"]),
];

pub(super) fn check(tree: &Tree, findings: &mut Vec<Finding>) {
    for file in tree.files.iter().filter(|file| file.name() == "Cargo.toml") {
        let manifest = Manifest::parse(file.text());
        let Some(name) = manifest.package_name().map(str::to_owned) else {
            continue;
        };
        inherited(file, &manifest, findings);
        features(file, &manifest, &name, findings);
        http_clients(file, &manifest, &name, findings);
        hyper_client(file, &manifest, &name, findings);
        if let Some(member) = MEMBERS.iter().find(|member| member.name == name) {
            arrows(file, &manifest, member, findings);
        } else {
            let message =
                format!("crate `{name}` has no arrows yet: add it to MEMBERS in {HERE} and to {DRAWING}");
            findings.push(Finding::new(file, 1, "arrows", message));
        }
    }
    root(tree, findings);
}

fn root(tree: &Tree, findings: &mut Vec<Finding>) {
    let Some(file) = tree.file("Cargo.toml") else {
        return;
    };
    let manifest = Manifest::parse(file.text());
    if manifest.value("workspace.package", "publish") != Some("false") {
        findings.push(Finding::new(
            file,
            1,
            "publish",
            "set `publish = false` under [workspace.package]",
        ));
    }
    let Some(drawing) = tree.file(DRAWING) else {
        let message = format!("{DRAWING} is missing: it draws the arrows");
        return findings.push(Finding::new(file, 1, "arrows", message));
    };
    for member in MEMBERS {
        // At the beginning of a line: a folder can lie in another one.
        let folder = format!("{}/", member.folder);
        let mut words = drawing
            .text()
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        if !words.any(|word| word == folder) {
            let message = format!(
                "does not say what `{}/` (`{}`) is for",
                member.folder, member.name
            );
            findings.push(Finding::new(drawing, 1, "arrows", message));
        }
    }
}

fn inherited(file: &File, manifest: &Manifest, findings: &mut Vec<Finding>) {
    if manifest.value("lints", "workspace") != Some("true") {
        findings.push(Finding::new(
            file,
            1,
            "lints",
            "add `[lints]` with `workspace = true`",
        ));
    }
    let unpublished =
        manifest.inherits("package", "publish") || manifest.value("package", "publish") == Some("false");
    if !unpublished {
        findings.push(Finding::new(file, 1, "publish", "add `publish.workspace = true`"));
    }
}

fn features(file: &File, manifest: &Manifest, name: &str, findings: &mut Vec<Finding>) {
    for entry in manifest
        .entries
        .iter()
        .filter(|entry| entry.section == "features")
    {
        let known = FEATURES.iter().find(|(feature, _)| *feature == entry.key);
        let Some((_, members)) = known else {
            let message = format!(
                "feature `{}`: the workspace has `cuda`, and `nccl` on top of it (docs/adr/0004, 0023)",
                entry.key
            );
            findings.push(Finding::new(file, entry.line, "features", message));
            continue;
        };
        if !members.contains(&name) {
            let message = format!("`{name}` has no business with a device: drop the feature");
            findings.push(Finding::new(file, entry.line, "features", message));
        }
    }
}

fn http_clients(file: &File, manifest: &Manifest, name: &str, findings: &mut Vec<Finding>) {
    for dependency in manifest.dependencies() {
        if HTTP_CLIENTS.contains(&dependency.package.as_str()) && name != HTTP_CLIENT_MEMBER {
            let message = format!(
                "`{}` is an HTTP client: only `{HTTP_CLIENT_MEMBER}` may fetch anything (docs/adr/0006)",
                dependency.package
            );
            findings.push(Finding::new(file, dependency.line, "egress", message));
        }
    }
}

fn hyper_client(file: &File, manifest: &Manifest, name: &str, findings: &mut Vec<Finding>) {
    let hyper = |entry: &&Entry| entry.section == "dependencies" && entry.key.starts_with("hyper");
    for entry in manifest.entries.iter().filter(hyper) {
        if entry.value.contains(HYPER_CLIENT) && name != HYPER_CLIENT_MEMBER {
            let message =
                format!("hyper's client: only `{HYPER_CLIENT_MEMBER}` may have it, outside of tests");
            findings.push(Finding::new(file, entry.line, "egress", message));
        }
    }
}

fn arrows(file: &File, manifest: &Manifest, member: &Member, findings: &mut Vec<Finding>) {
    let expected = format!("{}/Cargo.toml", member.folder);
    if file.path != expected {
        findings.push(Finding::new(
            file,
            1,
            "arrows",
            format!("`{}` belongs in {}/", member.name, member.folder),
        ));
    }
    for dependency in manifest.dependencies() {
        if MEMBERS.iter().any(|other| other.name == dependency.package) && !allowed(member, &dependency) {
            let message = format!(
                "`{}` may not depend on `{}`: each crate is understood without those it does not point to ({DRAWING})",
                member.name, dependency.package
            );
            findings.push(Finding::new(file, dependency.line, "arrows", message));
        }
    }
}

fn allowed(member: &Member, dependency: &Dependency) -> bool {
    let name = dependency.package.as_str();
    member.dependencies.contains(&name)
        || (dependency.kind == Kind::Development && member.dev_dependencies.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::super::tests::found;
    use super::*;

    fn manifest(name: &str, rest: &str) -> String {
        format!("[package]\nname = \"{name}\"\npublish.workspace = true\n[lints]\nworkspace = true\n{rest}")
    }

    #[test]
    fn arrows_against_the_drawing_are_found() {
        let good = manifest(
            "rempart-models",
            "[dependencies]\nrempart-kernels.workspace = true\n",
        );
        assert!(found(check, &[("models/Cargo.toml", &good)]).is_empty());
        let bad = manifest(
            "rempart-engine",
            "[dependencies]\nrempart-kernels = { path = \"../../kernels\" }\n",
        );
        assert_eq!(
            found(check, &[("server/engine/Cargo.toml", &bad)]),
            ["server/engine/Cargo.toml:7: arrows"]
        );
        let renamed = manifest(
            "rempart-text",
            "[dev-dependencies]\nhub = { package = \"rempart-hub\" }\n",
        );
        assert_eq!(
            found(check, &[("server/text/Cargo.toml", &renamed)]),
            ["server/text/Cargo.toml:7: arrows"]
        );
    }

    #[test]
    fn benches_may_look_at_kernels_in_tests_only() {
        let good = manifest(
            "rempart-bench",
            "[dev-dependencies]\nrempart-kernels.workspace = true\n",
        );
        assert!(found(check, &[("benches/Cargo.toml", &good)]).is_empty());
        let bad = manifest(
            "rempart-bench",
            "[dependencies]\nrempart-kernels.workspace = true\n",
        );
        assert_eq!(
            found(check, &[("benches/Cargo.toml", &bad)]),
            ["benches/Cargo.toml:7: arrows"]
        );
    }

    #[test]
    fn unknown_and_moved_crates_are_found() {
        assert_eq!(
            found(check, &[("new/Cargo.toml", &manifest("new", ""))]),
            ["new/Cargo.toml:1: arrows"]
        );
        assert_eq!(
            found(check, &[("old/Cargo.toml", &manifest("xtask", ""))]),
            ["old/Cargo.toml:1: arrows"]
        );
    }

    #[test]
    fn http_clients_belong_to_the_hub() {
        let text = "[dependencies]\nhf-hub.workspace = true\n";
        assert!(
            found(
                check,
                &[("server/hub/Cargo.toml", &manifest("rempart-hub", text))]
            )
            .is_empty()
        );
        assert_eq!(
            found(check, &[("server/Cargo.toml", &manifest("rempart", text))]),
            ["server/Cargo.toml:7: egress"]
        );
    }

    #[test]
    fn hypers_client_belongs_to_one_crate_which_the_server_does_not_know() {
        let text = "[dependencies]\nhyper = { workspace = true, features = [\"client\", \"http1\"] }\n";
        let client = ("server/client/Cargo.toml", &*manifest("rempart-client", text));
        assert!(found(check, &[client]).is_empty());
        for (name, folder) in [("rempart", "server"), ("rempart-load", "server/load")] {
            let path = format!("{folder}/Cargo.toml");
            assert_eq!(
                found(check, &[(&path, &manifest(name, text))]),
                [format!("{path}:7: egress")]
            );
        }
        let tests = manifest("rempart", &text.replace("[dep", "[dev-dep"));
        assert!(found(check, &[("server/Cargo.toml", &tests)]).is_empty());
        let text = "[dependencies]\nrempart-client.workspace = true\n";
        for (name, folder) in [
            ("rempart-load", "server/load"),
            ("rempart-operations", "server/operations"),
            ("rempart-terminal", "server/terminal"),
        ] {
            let path = format!("{folder}/Cargo.toml");
            assert!(found(check, &[(&path, &manifest(name, text))]).is_empty());
        }
        for (name, folder) in [("rempart", "server"), ("rempart-hub", "server/hub")] {
            let path = format!("{folder}/Cargo.toml");
            assert_eq!(
                found(check, &[(&path, &manifest(name, text))]),
                [format!("{path}:7: arrows")]
            );
        }
    }

    #[test]
    fn features_are_of_the_crates_that_know_devices() {
        let text = "[features]\ncuda = []\n";
        assert!(
            found(
                check,
                &[("kernels/Cargo.toml", &manifest("rempart-kernels", text))]
            )
            .is_empty()
        );
        assert_eq!(
            found(
                check,
                &[("server/text/Cargo.toml", &manifest("rempart-text", text))]
            ),
            ["server/text/Cargo.toml:7: features"]
        );
        let other = manifest("rempart", "[features]\nmetal = []\n");
        assert_eq!(
            found(check, &[("server/Cargo.toml", &other)]),
            ["server/Cargo.toml:7: features"]
        );
        let ranks = manifest("rempart-models", "[features]\nnccl = []\n");
        assert!(found(check, &[("models/Cargo.toml", &ranks)]).is_empty());
        let ranks = manifest("rempart", "[features]\nnccl = []\n");
        assert_eq!(
            found(check, &[("server/Cargo.toml", &ranks)]),
            ["server/Cargo.toml:7: features"]
        );
    }

    #[test]
    fn the_drawing_names_every_member() {
        let root = "[workspace]\n[workspace.package]\npublish = false\n";
        assert_eq!(found(check, &[("Cargo.toml", root)]), ["Cargo.toml:1: arrows"]);
        let page = MEMBERS[1..].iter().fold(String::new(), |page, member| {
            format!("{page}{}/\n", member.folder)
        });
        let said = found(check, &[("Cargo.toml", root), ("ARCHITECTURE.md", &page)]);
        assert_eq!(said, ["ARCHITECTURE.md:1: arrows"]);
    }

    #[test]
    fn lints_and_publish_are_required() {
        let text = "[package]\nname = \"xtask\"\n";
        let said = found(check, &[("scripts/xtask/Cargo.toml", text)]);
        assert_eq!(
            said,
            [
                "scripts/xtask/Cargo.toml:1: lints",
                "scripts/xtask/Cargo.toml:1: publish"
            ]
        );
        let root = "[workspace]\n[workspace.package]\nversion = \"1\"\n";
        let page = MEMBERS.iter().fold(String::new(), |page, member| {
            format!("{page}{}/\n", member.folder)
        });
        let said = found(check, &[("Cargo.toml", root), ("ARCHITECTURE.md", &page)]);
        assert_eq!(said, ["Cargo.toml:1: publish"]);
    }
}
