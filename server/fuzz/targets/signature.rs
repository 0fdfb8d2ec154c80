//! The first byte says what the rest is: a file of a signature, or the list of files in one, as its signer has written it. Whatever it
//! is, it is read or refused in a few words, and only what the keys of the tests have signed is believed.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use rempart_hub::digest::Sha256;
use rempart_hub::signature::{Bundle, Statement, Trust};
use serde_json::Value;

/// What is refused goes into logs and answers.
const MESSAGE_MAX: usize = 500;

fuzz_target!(|data: &[u8]| {
    let Some((kind, text)) = data.split_first() else {
        return;
    };
    match kind {
        b'b' => bundle(text),
        b's' => {
            statement(text);
            if let Some(consistent) = consistent(text) {
                statement(&consistent);
            }
        }
        _ => {}
    }
});

/// The keys and the authority that have signed the seeds.
fn trust() -> &'static Trust {
    static TRUST: OnceLock<Trust> = OnceLock::new();
    TRUST.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hub/tests/fixtures/signatures");
        let all = |names: &[&str]| {
            names
                .iter()
                .map(|name| folder.join(name))
                .collect::<Vec<PathBuf>>()
        };
        Trust::open(&all(&["secp256r1.pub", "secp384r1.pub"]), &all(&["root.pem"]))
            .expect("they are in the repository")
    })
}

fn bundle(text: &[u8]) {
    let refused = match Bundle::parse(text) {
        Ok(bundle) => {
            let first = bundle.verify(trust());
            assert_eq!(first, bundle.verify(trust()), "the same each time");
            first.err()
        }
        Err(reason) => Some(reason),
    };
    if let Some(reason) = refused {
        check(&reason);
    }
}

fn statement(text: &[u8]) {
    if let Err(reason) = Statement::parse(text) {
        check(&reason);
    }
}

fn check(reason: &str) {
    assert!(reason.len() <= MESSAGE_MAX, "{} bytes", reason.len());
    assert!(!reason.chars().any(char::is_control), "{reason:?}");
}

/// The same with the digest of the whole that belongs to its parts, which no change of bytes hits.
fn consistent(text: &[u8]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(text).ok()?;
    let resources = value["predicate"].get("resources")?.as_array()?;
    let mut digests = Vec::new();
    for resource in resources {
        let digest: Sha256 = resource.get("digest")?.as_str()?.parse().ok()?;
        digests.extend_from_slice(digest.as_bytes());
    }
    let subject = value.get_mut("subject")?.get_mut(0)?.get_mut("digest")?;
    *subject.get_mut("sha256")? = Sha256::of(&digests).to_string().into();
    serde_json::to_vec(&value).ok()
}
