//! Names lead into the store and nowhere else.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a failure here is a failed test"
)]

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use rempart_hub::reference::HubReference;
use rempart_hub::store::{Error, NAME_BYTES_MAX, check_name, folder_name, resolve};

fn put(store: &Path, path: &str) {
    let path = store.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "x").unwrap();
}

#[test]
fn names_references_and_paths_resolve() {
    let store = tempfile::tempdir().unwrap();
    let root = store.path().canonicalize().unwrap();
    put(&root, "smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf");
    put(&root, "org--model/config.json");
    put(&root, "org--gguf--sub--x-Q8_0/sub/x-Q8_0.gguf");

    let found = resolve(&root, "SmolLM2-135M-Instruct").unwrap();
    assert_eq!(found.name, "smollm2-135m-instruct");
    assert_eq!(
        found.path,
        root.join("smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf")
    );
    assert_eq!(found.dir, root.join("smollm2-135m-instruct"));

    for name in ["org--model", "hf:org/model", "hf:org/model@v2"] {
        let found = resolve(&root, name).unwrap();
        assert_eq!(
            (found.path, found.dir),
            (root.join("org--model"), root.join("org--model"))
        );
    }
    let nested = resolve(&root, "hf:org/gguf:sub/x-Q8_0.gguf").unwrap();
    assert_eq!(nested.dir, root.join("org--gguf--sub--x-Q8_0"));
    assert_eq!(nested.path, nested.dir.join("sub/x-Q8_0.gguf"));

    let by_path = resolve(&root, nested.path.to_str().unwrap()).unwrap();
    assert_eq!(
        (by_path.name.as_str(), by_path.dir),
        ("x-Q8_0", nested.dir.join("sub"))
    );
    let by_folder = resolve(Path::new("/nowhere"), root.join("org--model/").to_str().unwrap()).unwrap();
    assert_eq!(by_folder.name, "org--model");
}

#[test]
fn what_is_absent_says_how_to_get_it() {
    let store = tempfile::tempdir().unwrap();
    let message = resolve(store.path(), "qwen3-0.6b").unwrap_err().to_string();
    assert!(message.contains("rempart pull qwen3-0.6b"), "{message}");
    let message = resolve(store.path(), "hf:a/b:c.gguf").unwrap_err().to_string();
    assert!(message.contains("rempart pull hf:a/b:c.gguf"), "{message}");
    assert!(resolve(store.path(), "./nothing-here").is_err());
}

#[test]
fn a_folder_with_several_ggufs_lists_them() {
    let store = tempfile::tempdir().unwrap();
    put(store.path(), "two/b.gguf");
    put(store.path(), "two/a.gguf");
    let error = resolve(store.path(), "two").unwrap_err();
    assert!(
        matches!(&error, Error::Several { .. }) && error.to_string().contains("a.gguf, "),
        "{error}"
    );
    put(store.path(), "none/readme.txt");
    assert!(matches!(
        resolve(store.path(), "none").unwrap_err(),
        Error::NoModel { .. }
    ));
}

#[cfg(unix)]
#[test]
fn links_out_of_the_store_are_refused() {
    use std::os::unix::fs::symlink;
    let outside = tempfile::tempdir().unwrap();
    put(outside.path(), "model.gguf");
    let store = tempfile::tempdir().unwrap();
    symlink(outside.path(), store.path().join("linked-folder")).unwrap();
    fs::create_dir(store.path().join("linked-file")).unwrap();
    symlink(
        outside.path().join("model.gguf"),
        store.path().join("linked-file/model.gguf"),
    )
    .unwrap();
    symlink(".", store.path().join("itself")).unwrap();
    for name in ["linked-folder", "linked-file", "itself"] {
        assert!(
            matches!(resolve(store.path(), name).unwrap_err(), Error::Escape { .. }),
            "{name}"
        );
    }
    // A link to a sibling is a second name for it.
    put(store.path(), "real/model.gguf");
    symlink("real", store.path().join("alias")).unwrap();
    assert_eq!(resolve(store.path(), "alias").unwrap().name, "alias");
}

#[test]
fn long_references_get_short_distinct_folders() {
    let reference =
        |file: &str| HubReference::parse(&format!("{}/{}:{file}", "o".repeat(96), "n".repeat(96))).unwrap();
    let (a, b) = (
        folder_name(&reference("a.gguf")),
        folder_name(&reference("b.gguf")),
    );
    assert!(a.len() <= NAME_BYTES_MAX && a != b, "{a} {b}");
    check_name(&a).unwrap();
}

proptest! {
    #[test]
    fn no_name_leaves_the_store(name in "\\PC{0,30}|[a-z./\\\\:\\x00]{0,12}|[A-Za-z0-9._-]{1,140}") {
        let outer = tempfile::tempdir().unwrap();
        put(outer.path(), "outside.gguf");
        let store = outer.path().join("store");
        put(&store, "model/model.gguf");
        if check_name(&name).is_ok() {
            let joined = store.join(&name);
            prop_assert_eq!(joined.parent().unwrap(), store.as_path());
            prop_assert!(name.len() <= NAME_BYTES_MAX && !name.starts_with('.'));
            if name != "model" {
                prop_assert!(resolve(&store, &name).is_err());
            }
        }
    }
}
