//! Requests over connections with a client's certificate, of which a key is.

use axum::http::{HeaderValue, Method};
use rcgen::{KeyPair, PublicKeyData as _};
use rempart::certificate::ClientCertificate;
use rempart_governance::{KeyHash, NewKeyRequest, Role, now_s};
use serde_json::json;

use super::support::certificates::{Authority, certificate};
use super::support::{Answer, Governed, chat_body, governed, read, request};

fn shown(name: &[u8]) -> ClientCertificate {
    ClientCertificate {
        key: KeyHash::of_public_key(name),
        begins: 0,
        ends: now_s() + 60,
    }
}

async fn ask(here: &Governed, certificate: ClientCertificate, headers: &[(&'static str, &str)]) -> Answer {
    let mut asked = request(
        None,
        Method::POST,
        "/v1/chat/completions",
        Some(chat_body(json!({}))),
    );
    asked.extensions_mut().insert(certificate);
    for (name, value) in headers {
        let value = HeaderValue::from_str(value).unwrap();
        asked.headers_mut().insert(*name, value);
    }
    read(&here.server.router, asked).await
}

#[tokio::test]
async fn a_certificate_is_the_key_that_was_made_of_it() {
    let here = governed(&[]).await;
    here.store.create_project("test", "night", &[]).await.unwrap();
    let wanted = NewKeyRequest {
        project: "night",
        role: Role::Service,
        name: "batch",
        expires: None,
        owner: None,
    };
    let (own, other) = (shown(b"own"), shown(b"other"));
    let made = here
        .store
        .create_certificate_key("test", &wanted, &own.key)
        .await
        .unwrap();
    here.look().await;
    assert_eq!(ask(&here, own, &[]).await.status, 200);
    let rows = here.rows().await;
    assert_eq!((rows.len(), &rows[0].key), (1, &made.0));
    assert_eq!(
        ask(&here, other, &[]).await.json()["error"]["code"],
        "missing_api_key"
    );
    let ended = ClientCertificate { ends: 1, ..own };
    assert_eq!(ask(&here, ended, &[]).await.status, 401);
    // What the head says wins, and is not made up for where it is wrong.
    let first = format!("Bearer {}", here.first.reveal());
    assert_eq!(ask(&here, own, &[("authorization", &first)]).await.status, 200);
    assert_eq!(here.rows().await[1].key, here.first.id.0);
    for header in [
        ("authorization", "Bearer sk-rempart-wrong"),
        ("authorization", "Basic eDp4"),
        ("x-api-key", "wrong"),
        ("x-api-key", ""),
        // A page of somebody else's in a browser that has the certificate.
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
    ] {
        assert_eq!(ask(&here, own, &[header]).await.status, 401, "{header:?}");
    }
    assert_eq!(ask(&here, own, &[("openai-project", "night")]).await.status, 200);
    assert_eq!(
        ask(&here, own, &[("openai-project", "default")]).await.status,
        401
    );
    here.store.revoke_key("test", &made.0).await.unwrap();
    here.look().await;
    assert_eq!(
        ask(&here, own, &[]).await.json()["error"]["code"],
        "invalid_api_key"
    );
}

#[test]
fn a_pipe_in_the_place_of_a_certificate_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("client.pem");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let refused = format!(
        "{:#}",
        ClientCertificate::read("--certificate", &pipe).unwrap_err()
    );
    assert_eq!(
        refused,
        format!("--certificate {}: it is no regular file", pipe.display())
    );
    let large = folder.path().join("large.pem");
    std::fs::write(&large, vec![b' '; (1 << 20) + 1]).unwrap();
    let refused = format!(
        "{:#}",
        ClientCertificate::read("--certificate", &large).unwrap_err()
    );
    assert!(refused.ends_with("more than 1048576 bytes"), "{refused}");
}

#[test]
fn a_certificate_is_told_by_its_public_key() {
    let authority = Authority::new("authority");
    let (one, two) = (authority.sign("client", 4000), authority.sign("client", 4000));
    for pair in [&one, &two] {
        let key = KeyPair::from_pem(&pair.key).unwrap().subject_public_key_info();
        let found = ClientCertificate::of(&certificate(&pair.certificate)).unwrap();
        assert_eq!(found.key.to_hex(), KeyHash::of_public_key(&key).to_hex());
        assert!(found.ends > 60_000_000_000);
    }
    for damaged in [&b""[..], b"\x30\x03\x02\x01\x01", &[0x30; 64]] {
        assert!(ClientCertificate::of(damaged).is_none());
    }
}
