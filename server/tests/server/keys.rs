//! A server that asks for keys: who gets in, and what one finds out about another.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::http::{HeaderValue, Method};
use rempart::http::authorize::{ADMIN_NEEDS, NEEDS, Need};
use rempart::http::observe::{ADMIN_ROUTES, ROUTES};
use rempart_governance::{NewKey, Role, Scope, verify};
use rempart_hub::digest::Sha256;
use serde_json::{Value, json};

use super::support::{Answer, SCRIPT, STORED, governed, read, request};

fn code(answer: &Answer) -> Value {
    answer.json()["error"]["code"].clone()
}

/// The methods that a route has, as the document of its interface says.
fn methods(document: &Value, route: &str) -> Vec<Method> {
    let described = document["paths"][route.replace("{*", "{")].as_object();
    let names = described
        .unwrap_or_else(|| panic!("{route} is not described"))
        .keys();
    names.map(|name| name.to_uppercase().parse().unwrap()).collect()
}

const METHODS: [Method; 5] = [
    Method::GET,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
];

/// A path of a route.
fn path(route: &str) -> String {
    let part = |part: &'_ str| if part.starts_with('{') { "x" } else { part }.to_owned();
    route.split('/').map(part).collect::<Vec<_>>().join("/")
}

/// One route with one method.
struct Cell<'a> {
    router: &'a axum::Router,
    route: &'a str,
    method: &'a Method,
}

impl Cell<'_> {
    /// With every kind of key, and with none.
    async fn check(&self, need: Need, keys: &[(Role, NewKey)]) {
        let Self {
            router,
            route,
            method,
        } = *self;
        let path = path(route);
        let ask = |key: Option<&str>| {
            let asked = request(key, method.clone(), &path, None);
            async move { read(router, asked).await.status.as_u16() }
        };
        let scope = need.scope(method);
        for nobody in [None, Some("sk-anything"), Some(""), Some("é")] {
            assert_eq!(
                ask(nobody).await == 401,
                scope.is_some(),
                "{method} {route} {nobody:?}"
            );
        }
        for (role, key) in keys {
            let may = scope.is_none_or(|scope| role.allows(scope));
            let status = ask(Some(key.reveal())).await;
            assert_eq!(status == 403, !may, "{method} {route} {role}: {status}");
            assert_ne!(status, 401, "{method} {route} {role}");
        }
    }
}

/// Every route with every method, with every kind of key and with none.
#[tokio::test]
async fn what_each_role_may_do() {
    let governed = governed(&[]).await;
    let mut keys = Vec::new();
    for role in Role::ALL {
        keys.push((role, governed.key("default", role).await));
    }
    governed.look().await;
    let listed =
        |needs: &[(&'static str, Need)]| needs.iter().map(|(route, _)| *route).collect::<BTreeSet<_>>();
    assert_eq!(listed(NEEDS), ROUTES.iter().copied().collect());
    assert_eq!(listed(ADMIN_NEEDS), ADMIN_ROUTES.iter().copied().collect());
    let mut tried = Vec::new();
    for (router, needs) in [
        (&governed.server.router, NEEDS),
        (&governed.server.admin, ADMIN_NEEDS),
    ] {
        let asked = request(None, Method::GET, "/openapi.json", None);
        let document = read(router, asked).await.json();
        for (route, need) in needs {
            let described = methods(&document, route);
            for method in &described {
                let cell = Cell {
                    router,
                    route,
                    method,
                };
                cell.check(*need, &keys).await;
                let scope = need
                    .scope(method)
                    .map_or("no key".to_owned(), |scope| format!("{scope:?}"));
                tried.push(format!("{method} {route}: {scope}"));
            }
            for method in METHODS.iter().filter(|method| !described.contains(method)) {
                let asked = request(Some(keys[0].1.reveal()), method.clone(), &path(route), None);
                assert_eq!(read(router, asked).await.status, 405, "{method} {route}");
            }
        }
    }
    // Read by people whenever it changes: the table of what routes need is here not compared with itself.
    insta::assert_snapshot!(tried.join("\n"));
    // What is no route is told to those who have a key.
    assert_eq!(governed.server.get("/nothing").await.status, 401);
    let found = governed
        .send(keys[3].1.reveal(), Method::GET, "/nothing", None)
        .await;
    assert_eq!(found.status, 404);
    // And of administration to those who may see the rest of it.
    for (below, told) in [
        ("/v1/organization/groups", "There are no groups"),
        ("/v1/organization/x", "Unknown request URL"),
        ("/v1/projects/p/roles", "Roles are fixed"),
    ] {
        for (role, key) in &keys {
            let found = governed.send(key.reveal(), Method::GET, below, None).await;
            let may = role.allows(Scope::Review);
            assert_eq!(found.status, if may { 404 } else { 403 }, "{below} {role}");
            assert_eq!(found.body.contains(told), may, "{below} {role}");
        }
        assert_eq!(governed.server.get(below).await.status, 401);
    }
}

#[test]
fn roles_are_as_documented() {
    let rows: Vec<(&str, Vec<bool>)> = Role::ALL
        .iter()
        .map(|role| {
            let may = Scope::ALL.iter().map(|scope| role.allows(*scope));
            (role.name(), may.collect())
        })
        .collect();
    assert_eq!(
        rows,
        [
            ("owner", vec![true, true, true, true, true, true]),
            ("admin", vec![true, true, false, true, true, true]),
            ("auditor", vec![false, true, true, true, false, false]),
            ("member", vec![true, false, false, false, false, false]),
            ("service", vec![true, false, false, false, false, false]),
        ]
    );
}

#[tokio::test]
async fn a_key_works_in_both_headers_until_it_is_revoked() {
    let governed = governed(&[]).await;
    let key = governed.key("default", Role::Member).await;
    governed.look().await;
    let answer = governed.chat(&key, json!({"temperature": 0})).await;
    assert_eq!(answer.json()["choices"][0]["message"]["content"], SCRIPT);
    let body =
        json!({"model": "test-model", "max_tokens": 4, "messages": [{"role": "user", "content": "a"}]});
    let mut asked = request(None, Method::POST, "/v1/messages", Some(body.clone()));
    asked
        .headers_mut()
        .insert("x-api-key", HeaderValue::from_str(key.reveal()).unwrap());
    assert_eq!(governed.server.send(asked).await.status, 200);
    let refused = governed
        .server
        .send(request(None, Method::POST, "/v1/messages", Some(body)))
        .await;
    assert_eq!(refused.status, 401);
    assert_eq!(refused.json()["error"]["type"], "authentication_error");
    governed.store.revoke_key("test", &key.id.0).await.unwrap();
    governed.look().await;
    let refused = governed.chat(&key, json!({})).await;
    assert_eq!(
        (refused.status.as_u16(), code(&refused)),
        (401, json!("invalid_api_key"))
    );
    assert!(!refused.body.contains(&key.reveal()[20..]));
    governed
        .server
        .metric_is_with(
            governed.first.reveal(),
            r#"rempart_access_denied_total{reason="key"}"#,
            1.0,
        )
        .await;
}

#[tokio::test]
async fn a_project_sees_its_models_only() {
    let governed = governed(&[]).await;
    let own = ["alias".to_owned(), "embedder".to_owned()];
    governed
        .store
        .create_project("test", "sales", &own)
        .await
        .unwrap();
    let key = governed.key("sales", Role::Member).await;
    governed.look().await;
    let list = governed.send(key.reveal(), Method::GET, "/v1/models", None).await;
    let ids: Vec<Value> = list.json()["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|card| card["id"].clone())
        .collect();
    // A model goes by all of its names.
    assert_eq!(ids, ["test-model", "alias", "embedder"]);
    assert_eq!(governed.chat(&key, json!({})).await.status, 200);
    let body = json!({"model": "ranker", "query": "a", "documents": ["b"]});
    let refused = governed
        .send(key.reveal(), Method::POST, "/v1/rerank", Some(body.clone()))
        .await;
    assert_eq!(
        (refused.status.as_u16(), code(&refused)),
        (404, json!("model_not_found"))
    );
    let told = refused.json()["error"]["message"].to_string();
    assert!(
        told.contains("embedder") && !told.replace("`ranker`", "").contains("ranker"),
        "{told}"
    );
    let card = governed
        .send(key.reveal(), Method::GET, "/v1/models/ranker", None)
        .await;
    assert_eq!(card.status, 404);
    let all = governed
        .send(governed.first.reveal(), Method::POST, "/v1/rerank", Some(body))
        .await;
    assert_eq!(all.status, 200);
}

#[tokio::test]
async fn projects_find_out_nothing_about_each_other() {
    let governed = governed(&[]).await;
    for project in ["a", "b"] {
        governed.store.create_project("test", project, &[]).await.unwrap();
    }
    let (a, again, b) = (
        governed.key("a", Role::Member).await,
        governed.key("a", Role::Service).await,
        governed.key("b", Role::Member).await,
    );
    governed.look().await;
    // Cached prompts are a project's own.
    let prompt = json!({"model": "test-model", "prompt": "x".repeat(100), "max_tokens": 1});
    for (key, cached) in [(&a, 0), (&b, 0), (&again, 96), (&b, 96)] {
        let answer = governed
            .send(
                key.reveal(),
                Method::POST,
                "/v1/completions",
                Some(prompt.clone()),
            )
            .await;
        assert_eq!(
            answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"],
            cached
        );
    }
    // So are kept answers.
    let body = json!({"model": "test-model", "input": "Hi", "max_output_tokens": 4});
    let kept = governed
        .send(a.reveal(), Method::POST, "/v1/responses", Some(body.clone()))
        .await;
    let id: Value = serde_json::from_str::<Value>(&kept.body).unwrap()["id"].clone();
    let path = format!("/v1/responses/{}", id.as_str().unwrap());
    for other in [&b, &governed.first] {
        for (method, path) in [
            (Method::GET, path.clone()),
            (Method::GET, format!("{path}/input_items")),
            (Method::DELETE, path.clone()),
        ] {
            assert_eq!(
                governed.send(other.reveal(), method, &path, None).await.status,
                404
            );
        }
        let mut more = body.clone();
        more["previous_response_id"] = id.clone();
        let refused = governed
            .send(other.reveal(), Method::POST, "/v1/responses", Some(more))
            .await;
        assert_eq!(code(&refused), "response_not_found", "{}", refused.body);
    }
    assert_eq!(
        governed
            .send(again.reveal(), Method::GET, &path, None)
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn where_keys_can_no_longer_be_read_nobody_gets_in() {
    // Longer than a machine stops between a look and the question behind it.
    const STALE_MAX: Duration = Duration::from_secs(10);
    let governed = governed(&["--database-stale-max-s", "10"]).await;
    let keys = governed.keys();
    let (path, elsewhere) = (
        governed.folder.path().join("rempart.db"),
        governed.folder.path().join("elsewhere.db"),
    );
    let ask = async || governed.chat(&governed.first, json!({"max_tokens": 1})).await;
    keys.refresh().await.unwrap();
    assert_eq!(ask().await.status, 200);
    assert_eq!(governed.server.get("/readyz").await.status, 200);
    std::fs::rename(&path, &elsewhere).unwrap();
    let began = Instant::now();
    while began.elapsed() <= STALE_MAX {
        assert!(
            keys.refresh().await.is_err(),
            "the file is not the one of its name"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let closed = ask().await;
    assert_eq!(
        (closed.status.as_u16(), code(&closed)),
        (503, json!("server_not_ready"))
    );
    assert_eq!(governed.server.get("/readyz").await.status, 503);
    assert_eq!(governed.server.get("/livez").await.status, 200);
    std::fs::rename(&elsewhere, &path).unwrap();
    keys.refresh().await.unwrap();
    assert_eq!(ask().await.status, 200);
}

#[tokio::test]
async fn a_model_that_is_refused_is_in_the_chain() {
    let governed = governed(&[]).await;
    let operate = async |path: &str| {
        let path = format!("/admin/models/{path}");
        let asked = request(Some(governed.first.reveal()), Method::POST, &path, None);
        read(&governed.server.admin, asked).await.status.as_u16()
    };
    assert_eq!(operate("damaged/load").await, 422);
    assert_eq!(operate("damaged/load").await, 422);
    assert_eq!(operate("stored/load").await, 200);
    governed
        .server
        .controls
        .files_damaged
        .store(true, Ordering::Relaxed);
    assert_eq!(operate("stored/reload").await, 422);
    let rows = governed.store.audit_events(0).await.unwrap();
    let refused = rows.iter().filter(|row| row.action == "model.refused");
    let refused: Vec<_> = refused
        .map(|row| (row.actor.as_str(), row.object.as_str(), row.detail.as_str()))
        .collect();
    let row = |model| ("server", model, r#"{"reason":"failed"}"#);
    assert_eq!(
        refused,
        [row("damaged"), row("damaged"), row("stored")],
        "each that was asked for"
    );
    verify(&rows, None).unwrap();
}

#[tokio::test]
async fn what_an_operator_does_is_recorded_or_not_done() {
    let governed = governed(&[]).await;
    let operate = async |verb: &str| {
        let path = format!("/admin/models/stored/{verb}");
        let asked = request(Some(governed.first.reveal()), Method::POST, &path, None);
        read(&governed.server.admin, asked).await.status.as_u16()
    };
    for verb in ["load", "reload", "unload"] {
        assert_eq!(operate(verb).await, 200);
    }
    // What is no model is neither done nor recorded, whatever it would look like there.
    for name in ["nothing", "x%0A9%200%20cli:root%20api_key.revoked", "%1b%5B2J"] {
        let path = format!("/admin/models/{name}/load");
        let asked = request(Some(governed.first.reveal()), Method::POST, &path, None);
        assert_eq!(read(&governed.server.admin, asked).await.status, 404, "{name}");
    }
    let rows = governed.store.audit_events(0).await.unwrap();
    let actor = format!("key:{}", governed.first.id.0);
    let done: Vec<&str> = rows
        .iter()
        .filter(|row| row.actor == actor)
        .map(|row| row.action.as_str())
        .collect();
    assert_eq!(done, ["model.load", "model.reload", "model.unload"]);
    // Which one it was that is unloaded, or given up for another; what is loaded is told when it is there.
    let digest = json!({"sha256": Sha256::of(STORED.as_bytes())});
    let told = rows.iter().filter(|row| row.actor == actor);
    let told: Vec<Value> = told.map(|row| row.detail.parse().unwrap()).collect();
    assert_eq!(told, [json!({}), digest.clone(), digest]);
    let loaded = rows
        .iter()
        .filter(|row| row.actor == "server" && row.action == "model.loaded");
    let proof = json!({"sha256": Sha256::of(STORED.as_bytes()), "signer": "key of a test"});
    let loaded: Vec<_> = loaded
        .map(|row| (row.object.as_str(), row.detail.parse::<Value>().unwrap()))
        .collect();
    assert_eq!(
        loaded,
        [("stored", proof.clone()), ("stored", proof)],
        "once for load, once for reload"
    );
    verify(&rows, None).unwrap();
    // The table is gone: nothing can be recorded, and nothing is done.
    let url = format!("sqlite://{}", governed.folder.path().join("rempart.db").display());
    let mut raw = <sqlx::AnyConnection as sqlx::Connection>::connect(&url)
        .await
        .unwrap();
    sqlx::query("ALTER TABLE audit_event RENAME TO gone")
        .execute(&mut raw)
        .await
        .unwrap();
    assert_eq!(operate("load").await, 503);
    assert_eq!(
        governed
            .server
            .app
            .registry
            .loaded()
            .iter()
            .filter(|(name, _)| name == "stored")
            .count(),
        0
    );
}
