//! Tokens of a login: which are taken, by keys of which sets.

use proptest::prelude::*;
use rempart::oidc::{
    BadToken, Expected, FILE_BYTES_MAX, KEYS_MAX, KeySet, KeysError, SAME_ID_MAX, TOKEN_BYTES_MAX, verify,
};
use rempart_governance::now_s;
use serde_json::{Value, json};

use super::support::issuer::{AUDIENCE, ISSUER, Signer, base64, good_claims, set};

const LEEWAY_S: i64 = 60;

fn expected() -> Expected {
    Expected {
        issuer: ISSUER.to_owned(),
        audience: AUDIENCE.to_owned(),
        address_claim: "email".to_owned(),
        leeway_s: LEEWAY_S as u64,
    }
}

fn verdict(token: &str, keys: &KeySet) -> Result<String, BadToken> {
    verify(token, keys, &expected(), now_s()).map(|verified| verified.address)
}

/// A key, what it signs by, and its identifier.
type Own = (Signer, &'static [&'static str], &'static str);

/// One key of each kind, and a set of all.
fn all_keys() -> ([Own; 4], KeySet) {
    let keys: [Own; 4] = [
        (
            Signer::rsa(),
            &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"],
            "rsa",
        ),
        (Signer::p256(), &["ES256"], "p256"),
        (Signer::p384(), &["ES384"], "p384"),
        (Signer::ed(), &["EdDSA"], "ed"),
    ];
    let jwks: Vec<Value> = keys.iter().map(|(key, _, id)| key.jwk(id)).collect();
    let set = KeySet::parse(&set(&jwks)).unwrap();
    (keys, set)
}

#[test]
fn every_algorithm_of_the_list_verifies_with_its_own_key_alone() {
    let (keys, set) = all_keys();
    assert_eq!((set.usable(), set.ignored), (4, 0));
    for (key, own, id) in &keys {
        for (_, algorithms, other) in &keys {
            for algorithm in *algorithms {
                let found = verdict(&key.token(algorithm, other, json!({})), &set);
                if own.contains(algorithm) {
                    assert_eq!(found.as_deref(), Ok("anna@example.org"), "{algorithm}");
                } else {
                    assert_eq!(found, Err(BadToken::Signature), "{algorithm} of {id}");
                }
                let crossed = verdict(&key.token(algorithm, id, json!({})), &set);
                let wanted = if own.contains(algorithm) {
                    Ok("anna@example.org".to_owned())
                } else {
                    Err(BadToken::Key)
                };
                assert_eq!(crossed, wanted, "{algorithm} of the key {id}");
            }
        }
    }
    // A token that names no key is of the only one there is.
    let unnamed = keys[1]
        .0
        .sign(r#"{"alg":"ES256"}"#, &good_claims(json!({})).to_string());
    assert_eq!(verdict(&unnamed, &set), Err(BadToken::Key));
    let alone = KeySet::parse(&self::set(&[keys[1].0.jwk("p256")])).unwrap();
    assert!(verdict(&unnamed, &alone).is_ok());
}

#[test]
fn claims_are_those_of_this_server_now() {
    let key = Signer::ed();
    let keys = KeySet::parse(&set(&[key.jwk("k")])).unwrap();
    let now = now_s();
    let with = |claims: Value| verdict(&key.token("EdDSA", "k", claims), &keys);
    for good in [
        json!({"aud": ["another", AUDIENCE]}),
        json!({"email_verified": "true"}),
        json!({"nbf": null, "iat": null}),
        json!({"exp": now - LEEWAY_S + 5}),
        json!({"exp": now as f64 + 30.5}),
        json!({"sub": "s".repeat(255)}),
        json!({"nbf": now + LEEWAY_S - 5, "iat": now + LEEWAY_S - 5}),
    ] {
        assert!(with(good.clone()).is_ok(), "{good}");
    }
    let bad = [
        (json!({"exp": now - LEEWAY_S - 5}), BadToken::Expired),
        (json!({"exp": null}), BadToken::Expired),
        (json!({"exp": "tomorrow"}), BadToken::Expired),
        (json!({"exp": (now + 300).to_string()}), BadToken::Expired),
        (json!({"exp": -1}), BadToken::Expired),
        (json!({"exp": 0}), BadToken::Expired),
        (json!({"exp": 1e300}), BadToken::Expired),
        (json!({"nbf": now + LEEWAY_S + 5}), BadToken::Early),
        (json!({"nbf": "never"}), BadToken::Malformed),
        (json!({"iat": now + LEEWAY_S + 5}), BadToken::Early),
        (json!({"iat": "never"}), BadToken::Malformed),
        (json!({"iss": null}), BadToken::Issuer),
        (json!({"iss": format!("{ISSUER}/")}), BadToken::Issuer),
        (json!({"iss": [ISSUER]}), BadToken::Issuer),
        (json!({"iss": ["another", ISSUER]}), BadToken::Issuer),
        (json!({"iss": 7}), BadToken::Issuer),
        (json!({"aud": null}), BadToken::Audience),
        (json!({"aud": "another"}), BadToken::Audience),
        (json!({"aud": []}), BadToken::Audience),
        (json!({"aud": ["another"]}), BadToken::Audience),
        (json!({"aud": [[AUDIENCE]]}), BadToken::Audience),
        (json!({"aud": {AUDIENCE: true}}), BadToken::Audience),
        (json!({"email": null}), BadToken::Address),
        (json!({"email": ["anna@example.org"]}), BadToken::Address),
        (json!({"email_verified": false}), BadToken::Address),
        (json!({"email_verified": "false"}), BadToken::Address),
        (json!({"email_verified": 1}), BadToken::Address),
        (json!({"email_verified": null}), BadToken::Address),
        (json!({"sub": null}), BadToken::Subject),
        (json!({"sub": ""}), BadToken::Subject),
        (json!({"sub": 7}), BadToken::Subject),
        (json!({"sub": "s".repeat(256)}), BadToken::Subject),
    ];
    for (claims, why) in bad {
        assert_eq!(with(claims.clone()), Err(why), "{claims}");
    }
}

fn refused(set: &KeySet, bad: Vec<(String, BadToken)>) {
    for (token, why) in bad {
        assert_eq!(verdict(&token, set), Err(why), "{token}");
    }
}

#[test]
fn what_is_not_signed_or_not_whole_is_refused() {
    use BadToken::{Malformed, Signature};
    let (keys, set) = all_keys();
    let whole = keys[1].0.token("ES256", "p256", json!({}));
    let parts: Vec<&str> = whole.split('.').collect();
    let (head, claims, signature) = (parts[0], parts[1], parts[2]);
    let swapped = base64(good_claims(json!({"email": "boss@example.org"})).to_string());
    let none = base64(r#"{"alg":"none"}"#);
    let other_none = base64(r#"{"alg":"None","kid":"p256"}"#);
    let no_text = base64([0xff, 0xfe]);
    let bad = vec![
        (format!("{none}.{claims}."), Malformed),
        (format!("{other_none}.{claims}."), Malformed),
        (format!("{head}.{claims}"), Malformed),
        (format!("{head}.{claims}."), Signature),
        (format!("{head}.{swapped}.{signature}"), Signature),
        (format!("{head}.{claims}.{}", &signature[..40]), Signature),
        (format!("{whole}.x"), Malformed),
        (format!("{whole}="), Malformed),
        (format!(" {whole}"), Malformed),
        (format!("{head}.{claims}.é"), Malformed),
        (format!("{head}.{no_text}.{signature}"), Signature),
        (format!("{no_text}.{claims}.{signature}"), Malformed),
        ("..".to_owned(), Malformed),
        ("....".to_owned(), Malformed),
    ];
    refused(&set, bad);
    assert!(verdict(&whole, &set).is_ok());
}

#[test]
fn keys_that_a_token_brings_are_never_used() {
    use BadToken::{Algorithm, Key, Malformed, Signature};
    let (keys, set) = all_keys();
    let (rsa, p256) = (&keys[0].0, &keys[1].0);
    let good = good_claims(json!({})).to_string();
    let stranger = Signer::p256();
    let evil = "https://evil.example/keys";
    let own = [
        (json!({"alg": "ES256", "kid": "another"}), Key),
        (json!({"alg": "ES256", "kid": ["p256"]}), Malformed),
        (
            json!({"alg": "ES256", "kid": "p256", "crit": ["exp"], "exp": 1}),
            Malformed,
        ),
        (json!({"alg": "ES256", "kid": "p256", "crit": []}), Malformed),
        (
            json!({"alg": "ES256", "kid": "p256", "typ": "logout+jwt"}),
            Malformed,
        ),
        (json!({"alg": ["ES256"], "kid": "p256"}), Malformed),
        (json!({"kid": "p256"}), Malformed),
    ];
    let brought = [
        (
            json!({"alg": "ES256", "kid": "mine", "jwk": stranger.jwk("mine")}),
            Key,
        ),
        (json!({"alg": "ES256", "kid": "mine", "jku": evil}), Key),
        (
            json!({"alg": "ES256", "kid": "p256", "jwk": stranger.jwk("p256")}),
            Signature,
        ),
        (
            json!({"alg": "ES256", "kid": "p256", "x5u": evil, "x5c": ["MIIC"]}),
            Signature,
        ),
    ];
    let signed = |key: &Signer, (header, why): (Value, BadToken)| (key.sign(&header.to_string(), &good), why);
    let mut bad: Vec<_> = own.into_iter().map(|one| signed(p256, one)).collect();
    bad.extend(brought.into_iter().map(|one| signed(&stranger, one)));
    // The public key as the secret of an HMAC, as which everybody has it.
    for (algorithm, hash) in [
        ("HS256", ring::hmac::HMAC_SHA256),
        ("HS512", ring::hmac::HMAC_SHA512),
    ] {
        for public in [rsa.public(), rsa.jwk("rsa")["n"].as_str().unwrap().into()] {
            let header = base64(json!({"alg": algorithm, "kid": "rsa"}).to_string());
            let message = format!("{header}.{}", base64(&good));
            let tag = ring::hmac::sign(&ring::hmac::Key::new(hash, &public), message.as_bytes());
            bad.push((format!("{message}.{}", base64(tag)), Algorithm));
        }
    }
    refused(&set, bad);
}

#[test]
fn what_the_login_itself_has_signed_badly_is_refused() {
    let (keys, set) = all_keys();
    let p256 = &keys[1].0;
    let good = good_claims(json!({})).to_string();
    let sign = |claims: &str| p256.sign(r#"{"alg":"ES256","kid":"p256"}"#, claims);
    let mut bad: Vec<String> = [
        // Of a claim that is there twice nobody knows which was meant.
        good.replacen('{', r#"{"email":"boss@example.org","#, 1),
        good.replacen('{', r#"{"exp":99999999999,"#, 1),
        "{".repeat(2_000),
        "[".repeat(2_000),
        "null".to_owned(),
        format!("[{good}]"),
        format!("{good}{good}"),
    ]
    .iter()
    .map(|claims| sign(claims))
    .collect();
    let many: Value = (0..300).map(|at| (format!("c{at}"), json!(at))).collect();
    bad.push(p256.token("ES256", "p256", many));
    bad.push(p256.token("ES256", "p256", json!({"groups": "x".repeat(TOKEN_BYTES_MAX)})));
    refused(
        &set,
        bad.into_iter()
            .map(|token| (token, BadToken::Malformed))
            .collect(),
    );
    let large = p256.token(
        "ES256",
        "p256",
        json!({"groups": "x".repeat(TOKEN_BYTES_MAX / 2)}),
    );
    assert!(verdict(&large, &set).is_ok());
}

#[test]
fn a_token_with_any_character_changed_is_none() {
    let (keys, set) = all_keys();
    for (key, algorithms, id) in &keys {
        let token = key.token(algorithms[0], id, json!({}));
        for at in 0..token.len() {
            let other = if token.as_bytes()[at] == b'A' { "B" } else { "A" };
            let changed = [&token[..at], other, &token[at + 1..]].concat();
            assert!(verdict(&changed, &set).is_err(), "{at}");
        }
    }
}

proptest! {
    #[test]
    fn any_text_is_refused(text in r"[ -~]{0,40}(\.[A-Za-z0-9_-]{0,60}){0,4}") {
        let (_, set) = all_keys();
        prop_assert!(verdict(&text, &set).is_err());
    }

    #[test]
    fn any_set_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,40}") {
        let _none = KeySet::parse(&bytes);
        let odd = json!({"keys": [{"kty": "RSA", "n": text, "e": text}, {"kty": text, "kid": text}, text]});
        prop_assert!(KeySet::parse(odd.to_string().as_bytes()).is_err());
    }
}

#[test]
fn of_a_set_only_keys_that_verify_are_used() {
    let (keys, _) = all_keys();
    let jwk = |at: usize| keys[at].0.jwk("k");
    let with = |at: usize, name: &str, value: Value| {
        let mut key = jwk(at);
        key[name] = value;
        key
    };
    let small = base64([&[0xff_u8][..], &[7; 127]].concat());
    let padded = base64([&[0_u8; 200][..], &[0xff; 127]].concat());
    let useless = [
        with(0, "use", json!("enc")),
        with(1, "use", json!("enc")),
        with(1, "key_ops", json!(["encrypt"])),
        with(0, "alg", json!("RSA-OAEP")),
        with(0, "alg", json!("ES256")),
        with(0, "alg", json!("HS256")),
        with(0, "alg", json!("none")),
        with(0, "n", json!(small)),
        with(0, "n", json!(padded)),
        with(0, "n", json!("")),
        with(0, "n", json!(base64(vec![0xff; 1025]))),
        with(0, "n", json!("=")),
        with(0, "kty", json!("EC")),
        with(1, "kty", json!("RSA")),
        with(1, "crv", json!("P-384")),
        with(1, "crv", json!("P-521")),
        with(1, "crv", json!("secp256k1")),
        with(2, "crv", json!("P-256")),
        with(1, "x", json!(base64([1; 31]))),
        with(1, "y", Value::Null),
        with(3, "crv", json!("X25519")),
        with(3, "x", json!(base64([1; 33]))),
        json!({"kty": "oct", "kid": "k"}),
        json!(null),
        json!([]),
        json!({}),
    ];
    for key in useless {
        let refused = KeySet::parse(&set(std::slice::from_ref(&key)));
        assert!(matches!(refused, Err(KeysError::NoneUsable)), "{key}");
        let beside = KeySet::parse(&set(&[key, jwk(3)])).unwrap();
        assert_eq!((beside.usable(), beside.ignored), (1, 1));
    }
    // A point that is on no curve is in the set, and verifies nothing.
    let off = KeySet::parse(&set(&[with(1, "y", json!(base64([1; 32])))])).unwrap();
    let token = keys[1].0.token("ES256", "k", json!({}));
    assert_eq!(verdict(&token, &off), Err(BadToken::Signature));
    // With an algorithm of its own a key verifies by no other.
    let narrow = KeySet::parse(&set(&[with(0, "alg", json!("PS256"))])).unwrap();
    assert!(verdict(&keys[0].0.token("PS256", "k", json!({})), &narrow).is_ok());
    let other = keys[0].0.token("RS256", "k", json!({}));
    assert_eq!(verdict(&other, &narrow), Err(BadToken::Key));
}

#[test]
fn of_keys_with_one_name_each_that_fits_is_tried() {
    let (keys, _) = all_keys();
    let others = [Signer::p256(), Signer::p256()];
    let jwk = |key: &Signer| key.jwk("k");
    let mut all: Vec<Value> = others.iter().map(jwk).collect();
    all.push(keys[1].0.jwk("k"));
    all.push(keys[3].0.jwk("k"));
    let set_of = |all: &[Value]| KeySet::parse(&set(all));
    let same = set_of(&all).unwrap();
    for key in others.iter().chain([&keys[1].0]) {
        assert!(verdict(&key.token("ES256", "k", json!({})), &same).is_ok());
    }
    // The first that fits is not the only one, a stranger's fits none, and what is signed well may say something bad.
    assert!(verdict(&keys[3].0.token("EdDSA", "k", json!({})), &same).is_ok());
    let stranger = Signer::p256().token("ES256", "k", json!({}));
    assert_eq!(verdict(&stranger, &same), Err(BadToken::Signature));
    let late = keys[1].0.token("ES256", "k", json!({"exp": 1}));
    assert_eq!(verdict(&late, &same), Err(BadToken::Expired));
    assert_eq!(
        verdict(&keys[0].0.token("RS256", "k", json!({})), &same),
        Err(BadToken::Key)
    );
    // Each costs a signature.
    assert_eq!(all.len(), SAME_ID_MAX);
    all.push(Signer::p256().jwk("k"));
    assert!(matches!(set_of(&all), Err(KeysError::SameId)));
}

#[test]
fn a_set_is_a_set_within_limits() {
    let key = Signer::ed().jwk("k");
    let some = |count: usize| {
        let named = |at| {
            let mut key = key.clone();
            key["kid"] = json!(format!("k{at}"));
            key
        };
        set(&(0..count).map(named).collect::<Vec<Value>>())
    };
    assert!(KeySet::parse(&some(KEYS_MAX)).is_ok());
    for count in [KEYS_MAX + 1, 2_000] {
        assert!(matches!(KeySet::parse(&some(count)), Err(KeysError::TooMany)));
    }
    let long = vec![b' '; usize::try_from(FILE_BYTES_MAX).unwrap() + 1];
    assert!(matches!(KeySet::parse(&long), Err(KeysError::TooLarge)));
    for garbage in [
        &b""[..],
        b"{",
        b"[]",
        br#"{"keys":{}}"#,
        br#"{"keys":[],"keys":[]}"#,
        br#"{"kid":"x"}"#,
        &b"[".repeat(10_000),
        &[0xff; 100],
    ] {
        assert!(matches!(KeySet::parse(garbage), Err(KeysError::NoSet)));
    }
    assert!(matches!(KeySet::parse(&set(&[])), Err(KeysError::NoneUsable)));
    for secret in [json!({"kty": "oct", "k": "AAAA"}), {
        let mut private = key.clone();
        private["d"] = json!("AAAA");
        private
    }] {
        let refused = KeySet::parse(&set(&[key.clone(), secret]));
        assert!(matches!(refused, Err(KeysError::Private(2))));
    }
}
