//! What may stand in Rust code where: `unsafe`, `cfg(feature)`, the HTTP client, ignored tests.

use super::Finding;
use super::source::{Source, line_of, words};
use super::tree::{File, Tree};

/// Outside kernels/, one place needs `unsafe`: mapping a weight file into memory, and giving that memory back.
const MMAP: &str = "models/src/weights/mapping.rs";
const MMAP_UNSAFE: usize = 2;
/// The features, and where each may be named.
const FEATURE_PLACES: &[(&str, &[&str])] = &[
    ("cuda", &["kernels/", "server/src/runner.rs"]),
    ("nccl", &["kernels/src/", "models/src/parallel/"]),
];
const HUB: &str = "server/hub/";
const HUB_CLIENT: &str = "server/hub/src/pull/";
/// Only commands that a person or a timer starts may fetch, and no code that serves: a command's module is used by `cli` alone.
const FETCHING: [&str; 2] = ["server/src/cli/pull.rs", "server/src/cli/oidc.rs"];
/// hyper's client is in one crate, of which others make what commands start.
const CLIENT: &str = "server/client/";
const LOAD: &str = "server/load/";
const LOADING: &str = "server/src/cli/bench/";
const TERMINAL: &str = "server/terminal/";
const AT_A_TERMINAL: [&str; 2] = ["server/src/cli/top.rs", "server/src/cli/chat.rs"];
const OPERATIONS: &str = "server/operations/";
const OPERATING: [&str; 2] = ["server/src/cli/support.rs", "server/src/cli/traces.rs"];
/// Tests are clients of the server that they start.
const SERVER_TESTS: &str = "server/tests/";

pub(super) fn check(tree: &Tree, findings: &mut Vec<Finding>) {
    for file in tree.rust() {
        let source = Source::new(file.text());
        unsafe_code(file, &source, findings);
        features(file, &source, findings);
        http_client(file, &source, findings);
        pull(file, &source, findings);
        clients(file, &source, findings);
        ignored_tests(file, &source, findings);
    }
}

fn unsafe_code(file: &File, source: &Source, findings: &mut Vec<Finding>) {
    if file.path.starts_with("kernels/") {
        return;
    }
    let allowed = if file.path == MMAP { MMAP_UNSAFE } else { 0 };
    for at in words(&source.code, "unsafe").skip(allowed) {
        let message =
            format!("`unsafe` belongs in kernels/ (and for the memory map in {MMAP}): move it or do without");
        findings.push(Finding::new(file, line_of(&source.code, at), "unsafe", message));
    }
}

fn features(file: &File, source: &Source, findings: &mut Vec<Finding>) {
    let text = &source.code_and_strings;
    for at in words(text, "feature") {
        let rest = text[at + "feature".len()..].trim_start();
        // `target_feature(enable = …)` is another word; what is left is `feature = "name"` of a cfg.
        let Some(value) = rest
            .strip_prefix('=')
            .map(str::trim_start)
            .filter(|value| value.starts_with('"'))
        else {
            continue;
        };
        let name = value.trim_start_matches('"').split('"').next().unwrap_or("");
        let mut places = FEATURE_PLACES
            .iter()
            .filter(|(feature, _)| *feature == name)
            .flat_map(|(_, places)| *places);
        if !places.any(|place| file.path.starts_with(place)) {
            let message = format!(
                "cfg(feature = \"{name}\"): `cuda` is named in kernels/ and server/src/runner.rs alone, `nccl` in kernels/src/ and \
                 models/src/parallel/ (docs/adr/0004, 0023)"
            );
            findings.push(Finding::new(file, line_of(text, at), "features", message));
        }
    }
}

fn http_client(file: &File, source: &Source, findings: &mut Vec<Finding>) {
    if file.path.starts_with(HUB_CLIENT) {
        return;
    }
    for package in ["hf_hub", "reqwest", "ureq"] {
        for at in words(&source.code, package) {
            let message =
                format!("`{package}` can reach the network: only {HUB_CLIENT} may name it (docs/adr/0006)");
            findings.push(Finding::new(file, line_of(&source.code, at), "egress", message));
        }
    }
}

fn pull(file: &File, source: &Source, findings: &mut Vec<Finding>) {
    if file.path.starts_with(HUB) || FETCHING.contains(&file.path.as_str()) {
        return;
    }
    for at in words(&source.code, "rempart_hub") {
        let path = use_path(&source.code[at..]);
        let reaches_client =
            words(path, "pull").next().is_some() || path.contains('*') || words(path, "as").next().is_some();
        if reaches_client {
            let message = format!(
                "`rempart_hub::pull` is the only way out to the network: only {} may use it",
                FETCHING.join(" and ")
            );
            findings.push(Finding::new(file, line_of(&source.code, at), "egress", message));
        }
    }
}

fn clients(file: &File, source: &Source, findings: &mut Vec<Finding>) {
    let mut find = |word: &str, places: &[&str]| {
        if places.iter().any(|place| file.path.starts_with(place)) {
            return;
        }
        for at in words(&source.code, word) {
            let message = format!(
                "`{word}` opens connections: only {} may name it",
                places.join(" and ")
            );
            findings.push(Finding::new(file, line_of(&source.code, at), "egress", message));
        }
    };
    find("rempart_load", &[LOAD, LOADING]);
    find(
        "rempart_terminal",
        &[TERMINAL, AT_A_TERMINAL[0], AT_A_TERMINAL[1]],
    );
    find("rempart_operations", &[OPERATIONS, OPERATING[0], OPERATING[1]]);
    find("rempart_client", &[CLIENT, LOAD, OPERATIONS, TERMINAL]);
    find("hyper::client", &[CLIENT, SERVER_TESTS]);
    find("hyper_util::client", &[CLIENT, SERVER_TESTS]);
}

/// The path that starts here, a group in braces included: `rempart_hub::{a, b::c}`, or `rempart_hub as x`.
fn use_path(code: &str) -> &str {
    let mut depth = 0_usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ';' | '(' | ')' | '<' | '}' | '!' => return &code[..at],
            '\n' | ',' | '.' | '=' if depth == 0 => return &code[..at],
            _ => {}
        }
    }
    code
}

fn ignored_tests(file: &File, source: &Source, findings: &mut Vec<Finding>) {
    for (index, line) in source.code.lines().enumerate() {
        let attribute = line.trim_start().replace(' ', "");
        if attribute.starts_with("#[ignore")
            || attribute.contains(",ignore") && attribute.starts_with("#[cfg_attr")
        {
            let message = "a test that does not run proves nothing: make it run or delete it";
            findings.push(Finding::new(file, index + 1, "ignored test", message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::found;
    use super::*;

    #[test]
    fn unsafe_stays_in_kernels_and_in_one_memory_map() {
        let text = "fn f() {\n    unsafe { g() }\n}\n";
        assert!(found(check, &[("kernels/src/a.rs", text)]).is_empty());
        assert!(found(check, &[(MMAP, text)]).is_empty());
        assert!(found(check, &[(MMAP, &text.repeat(2))]).is_empty());
        assert_eq!(
            found(check, &[(MMAP, &text.repeat(3))]),
            [format!("{MMAP}:8: unsafe")]
        );
        assert_eq!(
            found(check, &[("server/src/a.rs", text)]),
            ["server/src/a.rs:2: unsafe"]
        );
        assert!(
            found(
                check,
                &[("server/src/a.rs", "// unsafe\n#![forbid(unsafe_code)]\n")]
            )
            .is_empty()
        );
    }

    #[test]
    fn features_are_named_where_cards_are_known() {
        let text = "#[cfg(feature = \"cuda\")]\nmod cuda;\n";
        assert!(
            found(
                check,
                &[("kernels/src/lib.rs", text), ("server/src/runner.rs", text)]
            )
            .is_empty()
        );
        assert_eq!(
            found(check, &[("models/src/lib.rs", text)]),
            ["models/src/lib.rs:1: features"]
        );
        let cards = "#[cfg(feature = \"nccl\")]\nmod nccl;\n";
        let places = ["kernels/src/lib.rs", "models/src/parallel/mod.rs"];
        assert!(found(check, &places.map(|place| (place, cards))).is_empty());
        assert_eq!(
            found(check, &[("server/src/runner.rs", cards)]),
            ["server/src/runner.rs:1: features"]
        );
        let other = "#[cfg(all(unix, feature = \"metal\"))]\nmod metal;\n";
        assert_eq!(
            found(check, &[("kernels/src/lib.rs", other)]),
            ["kernels/src/lib.rs:1: features"]
        );
        assert!(
            found(
                check,
                &[("models/src/a.rs", "#[target_feature(enable = \"avx2\")]")]
            )
            .is_empty()
        );
    }

    #[test]
    fn the_http_client_stays_in_the_hub() {
        let text = "use hf_hub::api;\n";
        assert!(found(check, &[("server/hub/src/pull/mod.rs", text)]).is_empty());
        assert_eq!(
            found(check, &[("server/hub/src/manifest.rs", text)]),
            ["server/hub/src/manifest.rs:1: egress"]
        );
        assert_eq!(
            found(check, &[("server/src/a.rs", "let a = reqwest::get(b);")]),
            ["server/src/a.rs:1: egress"]
        );
        assert_eq!(
            found(check, &[("server/hub/src/pulling.rs", text)]),
            ["server/hub/src/pulling.rs:1: egress"]
        );
    }

    #[test]
    fn only_the_commands_that_fetch_reach_the_client() {
        for text in [
            "use rempart_hub::pull;",
            "use rempart_hub::{manifest, pull::Options};",
            "use rempart_hub::{\n    manifest,\n    pull,\n};",
            "use rempart_hub::*;",
            "use rempart_hub as hub;",
            "fn f() { rempart_hub::pull::run(); }",
        ] {
            for command in FETCHING {
                assert!(found(check, &[(command, text)]).is_empty(), "{text}");
            }
            for serving in [
                "server/src/http/mod.rs",
                "server/src/oidc/mod.rs",
                "server/src/cli/serve.rs",
            ] {
                assert_eq!(
                    found(check, &[(serving, text)]),
                    [format!("{serving}:1: egress")],
                    "{text}"
                );
            }
        }
        let text = "use rempart_hub::manifest::Manifest;\nfn pull() { rempart_hub::catalogue::find(pull) }\n";
        assert!(found(check, &[("server/src/cli/serve.rs", text)]).is_empty());
    }

    #[test]
    fn clients_are_reached_by_their_commands_alone() {
        let serving = [
            "server/src/http/mod.rs",
            "server/src/cli/mod.rs",
            "server/src/cli/serve.rs",
            "server/hub/src/lib.rs",
        ];
        let bench = ["server/load/examples/bench.rs", "server/src/cli/bench/mod.rs"];
        let terminal = [
            "server/terminal/src/lib.rs",
            "server/src/cli/top.rs",
            "server/src/cli/chat.rs",
        ];
        let operations = [
            "server/operations/src/lib.rs",
            "server/src/cli/support.rs",
            "server/src/cli/traces.rs",
        ];
        let client = [
            "server/client/src/client.rs",
            "server/load/src/client.rs",
            "server/operations/src/bundle/asked.rs",
            "server/terminal/src/models.rs",
        ];
        for (text, places) in [
            ("use rempart_load::LoadArgs;\n", &bench[..]),
            ("fn f() { rempart_terminal::top(&args) }\n", &terminal),
            ("use rempart_operations::Bundle;\n", &operations),
            ("use rempart_client::Client;\n", &client),
        ] {
            for place in places {
                assert!(found(check, &[(place, text)]).is_empty(), "{place}: {text}");
            }
            for place in serving {
                assert_eq!(
                    found(check, &[(place, text)]),
                    [format!("{place}:1: egress")],
                    "{text}"
                );
            }
        }
        let text = "use hyper::client::conn::http1;\n";
        let places = ["server/client/src/connection.rs", "server/tests/server/tls.rs"];
        assert!(found(check, &places.map(|place| (place, text))).is_empty());
        for place in ["server/src/http/accept.rs", "server/load/src/connection.rs"] {
            assert_eq!(found(check, &[(place, text)]), [format!("{place}:1: egress")]);
        }
    }

    #[test]
    fn ignored_tests_are_found() {
        let text = format!("#[test]\n#[{} = \"slow\"]\nfn a() {{}}\n", "ignore");
        assert_eq!(found(check, &[("a.rs", &text)]), ["a.rs:2: ignored test"]);
        assert!(found(check, &[("a.rs", "#[expect(a)]\nfn ignore() {}\n")]).is_empty());
    }
}
