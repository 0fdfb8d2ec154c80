//! Signatures of models: those of the reference implementation are read, our own verify, and nothing that is altered passes.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a failure here is a failed test"
)]

mod alterations;
mod loading;

use std::fs;
use std::path::{Path, PathBuf};

use rempart_hub::digest::Sha256;
use rempart_hub::manifest::{self, Manifest};
use rempart_hub::progress::Silent;
use rempart_hub::report::{How, Report};
use rempart_hub::signature::{Bundle, Checked, Error, PrivateKey, Signed, Signer, Statement, Target, Trust};
use tempfile::TempDir;

/// Signed by `scripts/fixtures/signatures.py`: the same files.
pub(crate) fn model() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("a")).unwrap();
    for (path, content) in [
        ("README.md", "read me"),
        ("a.b", "x"),
        ("a/b", "y"),
        ("config.json", "{}"),
    ] {
        fs::write(dir.path().join(path), content).unwrap();
    }
    let weights: Vec<u8> = (0..40).flat_map(|_| 0..=255).collect();
    fs::write(dir.path().join("weights.gguf"), weights).unwrap();
    dir
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/signatures")
        .join(name)
}

pub(crate) fn trusting(keys: &[&str]) -> Trust {
    let keys: Vec<PathBuf> = keys.iter().map(|key| fixture(key)).collect();
    Trust::open(&keys, &[] as &[PathBuf]).unwrap()
}

fn company() -> Trust {
    Trust::open(&[] as &[PathBuf], &[fixture("root.pem")]).unwrap()
}

/// The model with a signature in it.
pub(crate) fn signed(dir: &Path, signature: &str) -> Signed {
    let target = Target::Folder(dir.to_owned());
    fs::copy(fixture(signature), target.signature()).unwrap();
    Signed::find(dir, dir).unwrap()
}

/// What the text of a signature says, if it can be trusted.
pub(crate) fn verify_text(text: &[u8], trust: &Trust) -> Result<Statement, String> {
    let work = tempfile::tempdir().unwrap();
    let path = work.path().join("signature");
    fs::write(&path, text).unwrap();
    let bundle = Bundle::open(&path).map_err(|error| error.to_string())?;
    bundle.verify(trust).map(|(statement, _)| statement)
}

fn check(signature: &str, trust: &Trust) -> Result<Checked, Error> {
    let dir = model();
    signed(dir.path(), signature).check(trust, &Silent)
}

fn found(report: &Report) -> Vec<(&str, How)> {
    let differences = report.differences.iter();
    differences.map(|one| (one.path.as_str(), one.how)).collect()
}

#[test]
fn what_the_reference_implementation_signs_verifies() {
    for (signature, key) in [
        ("secp256r1.sig", "secp256r1.pub"),
        ("secp384r1.sig", "secp384r1.pub"),
        ("shards.sig", "secp256r1.pub"),
        ("without-README.md.sig", "secp256r1.pub"),
    ] {
        let checked = check(signature, &trusting(&["secp384r1.pub", "secp256r1.pub"])).unwrap();
        assert_eq!(found(&checked.report), [], "{signature}");
        let expected = if signature.starts_with("without") { 4 } else { 5 };
        assert_eq!(checked.report.files, expected, "{signature}");
        let Signer::Key(fingerprint) = checked.signer else {
            panic!("{signature} was signed with a key")
        };
        let text = fs::read(fixture(key)).unwrap();
        assert_eq!(fingerprint, Sha256::of(&text), "of the PEM, as OpenSSL writes it");
    }
}

#[test]
fn a_file_can_be_signed_alone() {
    let dir = model();
    let file = dir.path().join("weights.gguf");
    fs::copy(fixture("file.sig"), dir.path().join("weights.gguf.sig")).unwrap();
    let signed = Signed::find(&file, dir.path()).unwrap();
    assert_eq!(signed.target, Target::File(file.clone()));
    let trust = trusting(&["secp256r1.pub"]);
    let checked = signed.check(&trust, &Silent).unwrap();
    assert_eq!((checked.report.files, checked.report.bytes), (1, 10_240));
    fs::write(&file, "other").unwrap();
    let checked = signed.check(&trust, &Silent).unwrap();
    assert_eq!(checked.report.differences.len(), 1);
    // That of a file says nothing of a folder, nor the other way round.
    let as_folder = Signed {
        target: Target::Folder(dir.path().to_owned()),
        ..signed.clone()
    };
    let error = as_folder.check(&trust, &Silent).unwrap_err().to_string();
    assert!(error.contains("one file"), "{error}");
    fs::copy(fixture("secp256r1.sig"), &signed.signature).unwrap();
    let error = signed.check(&trust, &Silent).unwrap_err().to_string();
    assert!(error.contains("of a folder"), "{error}");
}

#[test]
fn a_certificate_counts_if_it_is_for_signing_and_vouched_for() {
    let checked = check("certificate-own.sig", &company()).unwrap();
    assert_eq!(found(&checked.report), []);
    let Signer::Certificate { subject, .. } = checked.signer else {
        panic!("it was signed with a certificate")
    };
    assert_eq!(subject, "CN=own");
    // The reference implementation lets it pass: it is that of a web server.
    let error = check("certificate-server.sig", &company())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no certificate that is trusted vouches"),
        "{error}"
    );
    let error = check("certificate-own.sig", &trusting(&["secp256r1.pub"]))
        .unwrap_err()
        .to_string();
    assert!(error.contains("only keys are"), "{error}");
    let error = check("secp256r1.sig", &company()).unwrap_err().to_string();
    assert!(error.contains("only certificates are"), "{error}");
}

#[test]
fn a_stranger_is_told_apart() {
    let trust = trusting(&["secp384r1.pub"]);
    let error = check("secp256r1.sig", &trust).unwrap_err().to_string();
    assert!(error.contains("another key"), "{error}");
    let key = fs::read(fixture("secp256r1.pub")).unwrap();
    assert!(error.contains(&Sha256::of(&key).to_string()), "{error}");
    let error = check("blake3.sig", &trusting(&["secp256r1.pub"]))
        .unwrap_err()
        .to_string();
    assert!(error.contains("blake3"), "{error}");
    let files = [fixture("secp521r1.pub")];
    let error = Trust::open(&files, &[] as &[PathBuf]).unwrap_err().to_string();
    assert!(error.contains("P-256 or P-384"), "{error}");
}

#[test]
fn every_kind_of_difference_is_told() {
    let dir = model();
    let signed = signed(dir.path(), "secp256r1.sig");
    let at = |path: &str| dir.path().join(path);
    fs::write(at("config.json"), "[]").unwrap();
    fs::remove_file(at("README.md")).unwrap();
    fs::write(at("chat_template.jinja"), "").unwrap();
    fs::rename(at("a.b"), at("elsewhere")).unwrap();
    fs::create_dir(at(".git")).unwrap();
    fs::write(at(".git/HEAD"), "nobody signs it").unwrap();
    fs::write(at(manifest::FILE_NAME), "nobody loads it").unwrap();
    std::os::unix::fs::symlink(at("elsewhere"), at("a.b")).unwrap();
    let checked = signed.check(&trusting(&["secp256r1.pub"]), &Silent).unwrap();
    let expected = [
        ("README.md", How::Missing),
        ("a.b", How::Link),
        ("chat_template.jinja", How::Unknown),
        (
            "config.json",
            How::Content {
                expected: Sha256::of(b"{}"),
                sha256: Sha256::of(b"[]"),
            },
        ),
        ("elsewhere", How::Unknown),
    ];
    assert_eq!(found(&checked.report), expected);
    assert_eq!(checked.report.files, 2);
    let error = checked.whole(&signed.signature).unwrap_err().to_string();
    assert!(
        error.contains("`README.md` is missing; and 4 other differences"),
        "{error}"
    );
}

#[test]
fn pieces_must_be_the_whole_file() {
    let dir = model();
    let signed = signed(dir.path(), "shards.sig");
    let trust = trusting(&["secp256r1.pub"]);
    let weights = dir.path().join("weights.gguf");
    let mut bytes = fs::read(&weights).unwrap();
    bytes[5000] ^= 1;
    fs::write(&weights, &bytes).unwrap();
    let report = signed.check(&trust, &Silent).unwrap().report;
    assert_eq!(found(&report), [("weights.gguf", How::Piece { start: 4096 })]);
    bytes[5000] ^= 1;
    for wrong in [&[bytes.as_slice(), b"more"].concat(), &bytes[..8192]] {
        fs::write(&weights, wrong).unwrap();
        let report = signed.check(&trust, &Silent).unwrap().report;
        assert_eq!(found(&report), [("weights.gguf", How::Holes)]);
    }
    // Without a byte there is no piece.
    fs::write(&weights, bytes).unwrap();
    fs::write(dir.path().join("chat_template.jinja"), "").unwrap();
    let report = signed.check(&trust, &Silent).unwrap().report;
    assert_eq!(found(&report), [("chat_template.jinja", How::Unknown)]);
}

#[test]
fn what_a_server_loads_is_not_left_out() {
    let report = check("without-config.json.sig", &trusting(&["secp256r1.pub"]))
        .unwrap()
        .report;
    assert_eq!(found(&report), [("config.json", How::LeftOut)]);
}

fn sign_with(kind: &str, dir: &Path, work: &Path) -> (Signed, Sha256) {
    let pair = match kind {
        "P-256" => rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        "P-384" => rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        _ => rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519),
    }
    .unwrap();
    fs::write(work.join("private"), pair.serialize_pem()).unwrap();
    fs::write(work.join("public"), pair.public_key_pem()).unwrap();
    let target = Target::Folder(dir.to_owned());
    let signature = target.signature();
    let signed = Signed { target, signature };
    let key = PrivateKey::open(&work.join("private")).unwrap();
    assert_eq!(key.is_of_openssf(), kind != "Ed25519");
    let root = signed.sign(&key, None, &Silent).unwrap().root;
    (signed, root)
}

#[test]
fn our_own_signatures_verify() {
    for kind in ["P-256", "P-384", "Ed25519"] {
        let (dir, work) = (model(), tempfile::tempdir().unwrap());
        let manifest = Manifest::describe(dir.path(), &Silent).unwrap();
        manifest.save(dir.path()).unwrap();
        let (signed, root) = sign_with(kind, dir.path(), work.path());
        assert_eq!(
            root,
            manifest.root(),
            "a manifest and a signature name a model alike"
        );
        let trust = Trust::open(&[work.path().join("public")], &[] as &[PathBuf]).unwrap();
        let checked = signed.check(&trust, &Silent).unwrap();
        assert_eq!(found(&checked.report), [], "{kind}");
        assert_eq!(checked.report.files, 5, "{kind}");
        // Signed again: what was there is replaced, and no part of what is signed.
        sign_with(kind, dir.path(), work.path());
    }
    let reference = check("secp256r1.sig", &trusting(&["secp256r1.pub"])).unwrap();
    let dir = model();
    let (_, root) = sign_with("P-256", dir.path(), tempfile::tempdir().unwrap().path());
    assert_eq!(root, reference.statement.root);
}

#[test]
fn keys_that_are_none_are_refused_by_name() {
    let work = tempfile::tempdir().unwrap();
    let at = work.path().join("key");
    let own = fs::read_to_string(fixture("secp256r1.pub")).unwrap();
    let twice = own.clone() + &own;
    for (text, why) in [
        ("", "no public key"),
        (
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
            "damaged",
        ),
        (
            "-----BEGIN PUBLIC KEY-----\n????\n-----END PUBLIC KEY-----\n",
            "damaged PEM",
        ),
        (twice.as_str(), "more than one key"),
        (&"x".repeat(70_000), "more than 65536 bytes"),
    ] {
        fs::write(&at, text).unwrap();
        let error = Trust::open(&[&at], &[] as &[PathBuf]).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert!(error.contains(&at.display().to_string()), "{error}");
        assert!(PrivateKey::open(&at).is_err());
    }
}

#[test]
fn a_signature_does_not_take_the_models_place() {
    let dir = model();
    let file = dir.path().join("weights.gguf");
    let signed = Signed {
        target: Target::File(file.clone()),
        signature: file.clone(),
    };
    let work = tempfile::tempdir().unwrap();
    sign_with("P-256", dir.path(), work.path());
    let key = PrivateKey::open(&work.path().join("private")).unwrap();
    assert!(matches!(
        signed.sign(&key, None, &Silent),
        Err(Error::OverModel { .. })
    ));
    assert_eq!(fs::metadata(&file).unwrap().len(), 10_240);
}
