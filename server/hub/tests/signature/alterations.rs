//! No altered byte passes: neither of the signature nor of the model.

use std::fs;

use proptest::prelude::*;
use rempart_hub::progress::Silent;

use super::{model, signed, trusting};

/// Each byte of a signature, altered in several ways: it is refused, or means the same as before.
#[test]
fn no_altered_byte_of_a_signature_changes_what_is_signed() {
    let dir = model();
    let signed = signed(dir.path(), "secp256r1.sig");
    let trust = trusting(&["secp256r1.pub"]);
    let text = fs::read(&signed.signature).unwrap();
    let whole = signed.check(&trust, &Silent).unwrap().statement;
    let (mut refused, mut harmless) = (0, Vec::new());
    for at in 0..text.len() {
        for flip in [1_u8, 2, 0x20, 0x80] {
            let mut altered = text.clone();
            altered[at] ^= flip;
            match super::verify_text(&altered, &trust) {
                Ok(statement) => {
                    assert_eq!(statement, whole, "byte {at}");
                    harmless.push(at);
                }
                Err(_) => refused += 1,
            }
        }
    }
    let envelope = String::from_utf8(text.clone()).unwrap();
    let begin = envelope.find("\"payload\":\"").unwrap() + 11;
    let end = begin + envelope[begin..].find('"').unwrap();
    assert!(
        harmless.iter().all(|at| !(begin..end).contains(at)),
        "the payload is signed"
    );
    assert!(refused > text.len() * 3, "{refused} of {}", text.len() * 4);
}

#[test]
fn a_cut_signature_is_refused() {
    let dir = model();
    let signed = signed(dir.path(), "certificate-own.sig");
    let text = fs::read(&signed.signature).unwrap();
    let trust = super::company();
    for length in 0..text.len() - 1 {
        assert!(super::verify_text(&text[..length], &trust).is_err(), "{length}");
    }
}

/// Each byte of a chain of certificates, too.
#[test]
fn no_altered_byte_of_a_chain_changes_what_is_signed() {
    let text = fs::read(super::fixture("certificate-own.sig")).unwrap();
    let trust = super::company();
    let whole = super::verify_text(&text, &trust).unwrap();
    for at in 0..text.len() {
        let mut altered = text.clone();
        altered[at] ^= 1;
        if let Ok(statement) = super::verify_text(&altered, &trust) {
            assert_eq!(statement, whole, "byte {at}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_text_makes_reading_panic(text in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(super::verify_text(&text, &trusting(&["secp256r1.pub"])).is_err());
    }
}

proptest! {
    // Each waits until the files have settled.
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn no_altered_file_passes(file in 0_usize..5, at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let dir = model();
        let path = ["README.md", "a.b", "a/b", "config.json", "weights.gguf"][file];
        let mut bytes = fs::read(dir.path().join(path)).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        fs::write(dir.path().join(path), bytes).unwrap();
        for signature in ["secp256r1.sig", "shards.sig"] {
            let checked = signed(dir.path(), signature).check(&trusting(&["secp256r1.pub"]), &Silent).unwrap();
            let different: Vec<_> = checked.report.differences.iter().map(|one| one.path.as_str()).collect();
            prop_assert_eq!(different, [path]);
        }
    }
}
