//! Tokens and refused access: who gets the token, and what the messages say.

use std::fs;
use std::process::Command;

use rempart_hub::progress::Silent;
use rempart_hub::pull::{Error, Token, pull};

use crate::standin::{Fault, Hub};
use crate::{MODEL_BYTES, Site};

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
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_gguf_arrives_verified_with_its_manifest"])
        .envs([
            ("HF_TOKEN", "hf_from_environment"),
            ("HF_ENDPOINT", "http://127.0.0.1:1"),
        ])
        .env("HF_HOME", home.path())
        .env("HTTP_PROXY", "http://127.0.0.1:1")
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && report.contains("1 passed"), "{report}");
}
