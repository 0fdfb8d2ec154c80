//! Manifests: what is written verifies, every kind of difference is found and named, and no text makes loading panic.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a failure here is a failed test"
)]

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use proptest::prelude::*;
use rempart_hub::digest::Sha256;
use rempart_hub::manifest::{Error, FILE_NAME, Manifest};
use rempart_hub::progress::{Event, Silent};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

fn model() -> (TempDir, Manifest) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    fs::write(dir.path().join("model.safetensors"), vec![7; 3 << 20]).unwrap();
    fs::write(dir.path().join("sub/extra.json"), "[1]").unwrap();
    fs::write(dir.path().join("empty.txt"), "").unwrap();
    fs::write(dir.path().join(".hidden file!"), "never loaded").unwrap();
    let manifest = Manifest::describe(dir.path(), &Silent).unwrap();
    manifest.save(dir.path()).unwrap();
    (dir, manifest)
}

fn verify(dir: &Path) -> Result<(), Error> {
    Manifest::load(dir)?
        .expect("there is a manifest")
        .verify(dir, &Silent)
}

#[test]
fn a_described_folder_verifies() {
    let (dir, manifest) = model();
    let paths: Vec<&str> = manifest.files.iter().map(|f| f.path.as_str()).collect();
    assert_eq!(
        paths,
        ["config.json", "empty.txt", "model.safetensors", "sub/extra.json"]
    );
    assert_eq!(manifest.files[0].sha256, Sha256::of(b"{}"));
    assert_eq!(Manifest::load(dir.path()).unwrap(), Some(manifest));
    verify(dir.path()).unwrap();
    let left: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 6, "no temporary file stays: {left:?}");
}

#[test]
fn a_folder_without_manifest_is_absent_not_invalid() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("model.gguf"), "GGUF").unwrap();
    assert!(Manifest::load(dir.path()).unwrap().is_none());
}

#[test]
fn one_flipped_bit_is_found() {
    let (dir, manifest) = model();
    let path = dir.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    bytes[2_000_000] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = verify(dir.path()).unwrap_err();
    assert!(matches!(&error, Error::Digest { file, .. } if file == "model.safetensors"));
    let message = error.to_string();
    let expected = manifest.files[2].sha256.to_string();
    let found = Sha256::of(&bytes).to_string();
    for part in [
        expected.as_str(),
        &found,
        "model.safetensors",
        "rempart pull",
        "--force",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_truncated_file_is_found_by_its_size() {
    let (dir, _) = model();
    fs::write(dir.path().join("model.safetensors"), vec![7; 100]).unwrap();
    let error = verify(dir.path()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Size {
                expected: 3_145_728,
                found: 100,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn missing_extra_and_renamed_files_are_found() {
    let (dir, _) = model();
    fs::rename(dir.path().join("config.json"), dir.path().join("config2.json")).unwrap();
    assert!(matches!(verify(dir.path()).unwrap_err(), Error::Missing { file, .. } if file == "config.json"));
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert!(matches!(verify(dir.path()).unwrap_err(), Error::Extra { file, .. } if file == "config2.json"));
    fs::remove_file(dir.path().join("config2.json")).unwrap();
    verify(dir.path()).unwrap();
    fs::write(dir.path().join("chat_template.jinja"), "{{ evil }}").unwrap();
    assert!(
        matches!(verify(dir.path()).unwrap_err(), Error::Extra { file, .. } if file == "chat_template.jinja")
    );
}

#[test]
fn a_name_that_no_manifest_may_list_is_refused() {
    let (dir, _) = model();
    fs::write(dir.path().join("a b.json"), "").unwrap();
    assert!(matches!(verify(dir.path()).unwrap_err(), Error::Name { file, .. } if file == "a b.json"));
}

#[cfg(unix)]
#[test]
fn links_count_by_content_and_linked_folders_are_refused() {
    let (dir, _) = model();
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("blob");
    fs::rename(dir.path().join("config.json"), &target).unwrap();
    std::os::unix::fs::symlink(&target, dir.path().join("config.json")).unwrap();
    verify(dir.path()).unwrap();
    fs::write(&target, "[]").unwrap();
    assert!(matches!(verify(dir.path()).unwrap_err(), Error::Digest { .. }));
    fs::write(&target, "{}").unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("folder")).unwrap();
    assert!(matches!(verify(dir.path()).unwrap_err(), Error::Name { .. }));
}

#[test]
fn manifests_that_cannot_be_trusted_are_invalid() {
    let sha = Sha256::of(b"").to_string();
    let with_files = |files: &str| format!(r#"{{"version":1,"source":"x","revision":"","files":[{files}]}}"#);
    let entry = |path: &str| format!(r#"{{"path":"{path}","bytes":0,"sha256":"{sha}"}}"#);
    let cases = [
        String::new(),
        "null".to_owned(),
        "{}".to_owned(),
        "[".repeat(100_000),
        r#"{"version":"1"}"#.to_owned(),
        r#"{"version":1}"#.to_owned(),
        with_files(""),
        with_files(&entry("../x")),
        with_files(&entry("/etc/passwd")),
        with_files(&entry("a//b")),
        with_files(&entry(".hidden")),
        with_files(&entry("a\\u0000")),
        with_files(&entry(FILE_NAME)),
        with_files(&format!("{},{}", entry("a"), entry("a"))),
        with_files(&format!("{},{}", entry("b"), entry("a"))),
        with_files(&entry("a").replace(&sha, "00")),
        with_files(&entry("a").replace(":0,", ":-1,")),
        with_files(&entry("a").replace(":0,", ":1e99,")),
        format!("{}{}", with_files(&entry("a")), " ".repeat(5 << 20)),
    ];
    let dir = tempfile::tempdir().unwrap();
    for text in cases {
        fs::write(dir.path().join(FILE_NAME), &text).unwrap();
        let error = Manifest::load(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
    }
    fs::write(dir.path().join(FILE_NAME), r#"{"version":2}"#).unwrap();
    assert!(matches!(
        Manifest::load(dir.path()).unwrap_err(),
        Error::Version { found: 2, .. }
    ));
}

#[test]
fn a_pipe_in_the_place_of_a_manifest_is_not_waited_for() {
    let (dir, manifest) = model();
    let place = dir.path().join(FILE_NAME);
    let _none = fs::remove_file(&place);
    mknodat(CWD, &place, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let refused = Manifest::load(dir.path()).unwrap_err().to_string();
    assert!(refused.ends_with("it is no regular file"), "{refused}");
    // A new manifest takes its place, and a long text is quoted in brief.
    manifest.save(dir.path()).unwrap();
    assert_eq!(Manifest::load(dir.path()).unwrap(), Some(manifest));
    fs::write(
        &place,
        format!(r#"{{"version": 1, "files": "{}"}}"#, "x\\n".repeat(100_000)),
    )
    .unwrap();
    let refused = Manifest::load(dir.path()).unwrap_err().to_string();
    assert!(
        refused.len() < 1_000 && !refused.contains('\n'),
        "{}",
        refused.len()
    );
}

#[test]
fn progress_reaches_the_size_of_every_file() {
    let (dir, manifest) = model();
    let seen = Mutex::new(Vec::new());
    let record = |event: Event<'_>| {
        if let Event::Advanced { file, done } = event {
            seen.lock().unwrap().push((file.to_owned(), done));
        }
    };
    manifest.verify(dir.path(), &record).unwrap();
    let seen = seen.into_inner().unwrap();
    for file in manifest.files.iter().filter(|file| file.bytes > 0) {
        assert!(seen.contains(&(file.path.clone(), file.bytes)), "{}", file.path);
    }
}

proptest! {
    #[test]
    fn loading_never_panics(text in "\\PC{0,200}|[\\[\\]{}\",:a-z0-9]{0,200}") {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE_NAME), text).unwrap();
        prop_assert!(Manifest::load(dir.path()).is_err());
    }

    #[test]
    fn any_folder_of_plain_files_verifies(contents in proptest::collection::btree_map("[a-z]{1,6}", proptest::collection::vec(any::<u8>(), 0..2000), 1..6)) {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in &contents {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        Manifest::describe(dir.path(), &Silent).unwrap().save(dir.path()).unwrap();
        prop_assert!(verify(dir.path()).is_ok());
    }
}
