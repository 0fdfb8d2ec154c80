//! References: every part is checked, and nothing that parses can leave a folder.

use std::path::{Component, Path, PathBuf};

use proptest::prelude::*;
use rempart_hub::reference::{Error, HubReference, Reference};
use rempart_hub::store;

#[test]
fn all_forms_parse() {
    let parse = |text: &str| match Reference::parse(text).unwrap() {
        Reference::Hub(hub) => hub,
        other => panic!("{text} parsed as {other:?}"),
    };
    let plain = parse("hf:Qwen/Qwen3-0.6B");
    assert_eq!(
        (plain.repository().as_str(), plain.revision(), plain.file()),
        ("Qwen/Qwen3-0.6B", "main", None)
    );
    let full = parse("hf:a/b.c_d-e@refs/pr/7:sub/x-Q4_K_M.gguf");
    assert_eq!(
        (full.revision(), full.file()),
        ("refs/pr/7", Some("sub/x-Q4_K_M.gguf"))
    );
    assert_eq!(full.to_string(), "hf:a/b.c_d-e@refs/pr/7:sub/x-Q4_K_M.gguf");

    for path in ["./model", "/models/x", "a/b", "model.gguf", "..", "C:\\models"] {
        assert_eq!(
            Reference::parse(path).unwrap(),
            Reference::Path(PathBuf::from(path))
        );
    }
    let Reference::Catalogue(entry) = Reference::parse("SmolLM2-135M-Instruct").unwrap() else {
        panic!()
    };
    assert_eq!(entry.name, "smollm2-135m-instruct");
}

#[test]
fn hostile_references_are_refused() {
    let long = "a".repeat(97);
    for text in [
        "hf:",
        "hf:org",
        "hf:org/",
        "hf:/name",
        "hf:../..",
        "hf:org/..",
        "hf:org/name/more",
        "hf:org/name@",
        "hf:org/name@../x",
        "hf:org/name@a b",
        "hf:org/name:",
        "hf:org/name:/etc/passwd",
        "hf:org/name:../x.gguf",
        "hf:org/name:a/../x.gguf",
        "hf:org/name:a//x.gguf",
        "hf:org/name:a\\x.gguf",
        "hf:org/name:x.gguf:y",
        "hf:org/name?x=1",
        "hf:org/na%2fme",
        "hf:örg/name",
        "hf:org/n\u{202e}ame",
        "hf:user:password@host/name",
        &format!("hf:org/{long}"),
        &format!("hf:{long}/name"),
        &format!("hf:org/name:{}", "a/".repeat(9)),
    ] {
        assert!(Reference::parse(text).is_err(), "{text}");
    }
    for control in ["hf:org/name\0", "a\nb", "\u{7f}", "./x\0"] {
        assert_eq!(Reference::parse(control), Err(Error::Control), "{control:?}");
    }
    assert_eq!(Reference::parse(""), Err(Error::Empty));
}

#[test]
fn an_unknown_name_lists_the_known_ones() {
    let message = Reference::parse("gpt-9").unwrap_err().to_string();
    assert!(
        message.contains("gpt-9") && message.contains("smollm2-135m-instruct") && message.contains("hf:"),
        "{message}"
    );
}

proptest! {
    #[test]
    fn parsing_never_panics_and_what_parses_is_safe(text in "\\PC{0,40}|hf:[a-z./@:\\\\\\x00-]{0,24}") {
        if let Ok(Reference::Hub(hub)) = Reference::parse(&text) {
            assert_stays_inside(&hub.repository());
            assert_stays_inside(hub.revision());
            hub.file().into_iter().for_each(assert_stays_inside);
            let folder = store::folder_name(&hub);
            store::check_name(&folder).unwrap();
            prop_assert_eq!(HubReference::parse(hub.to_string().strip_prefix("hf:").unwrap()).unwrap(), hub);
        }
    }

    #[test]
    fn valid_references_round_trip(
        org in "[A-Za-z0-9_-][A-Za-z0-9._-]{0,95}",
        name in "[A-Za-z0-9_-][A-Za-z0-9._-]{0,95}",
        revision in proptest::option::of("[a-f0-9]{40}|v[0-9]\\.[0-9]"),
        file in proptest::option::of("([A-Za-z0-9_-]{1,20}/){0,3}[A-Za-z0-9_-]{1,80}\\.gguf"),
    ) {
        let mut text = format!("{org}/{name}");
        text.extend(revision.iter().map(|r| format!("@{r}")));
        text.extend(file.iter().map(|f| format!(":{f}")));
        let hub = HubReference::parse(&text).unwrap();
        prop_assert_eq!(hub.to_string(), format!("hf:{text}"));
        store::check_name(&store::folder_name(&hub)).unwrap();
    }
}

fn assert_stays_inside(relative: &str) {
    assert!(!relative.is_empty());
    assert!(
        Path::new(relative)
            .components()
            .all(|c| matches!(c, Component::Normal(_))),
        "{relative}"
    );
}
