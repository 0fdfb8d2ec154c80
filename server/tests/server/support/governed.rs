//! A server that asks for keys.

use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request};
use rempart::access::{Access, Keys};
use rempart::metrics::Metrics;
use rempart_governance::{Database, NewKey, NewKeyRequest, Role, Store, UsageEvent};
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt as _;

use super::{Answer, TestServer, chat_body, settings};

/// A server with a database in a folder of its own.
pub(crate) struct Governed {
    pub(crate) server: TestServer,
    pub(crate) store: Store,
    pub(crate) first: NewKey,
    pub(crate) folder: TempDir,
}

pub(crate) async fn governed(arguments: &[&str]) -> Governed {
    let folder = tempfile::tempdir().unwrap();
    let place = Database::File(folder.path().join("rempart.db"));
    let metrics = Metrics::new().unwrap();
    let (keys, first) = Keys::open(&place, &settings(arguments).governance, &metrics)
        .await
        .unwrap();
    let store = Store::open(&place).await.unwrap();
    Governed {
        server: TestServer::with_keys(keys, metrics, arguments).await,
        store,
        first: first.expect("the database is new"),
        folder,
    }
}

/// A further server over a database that there is.
pub(crate) async fn governed_at(place: &Path, arguments: &[&str]) -> TestServer {
    let metrics = Metrics::new().unwrap();
    let place = Database::File(place.to_owned());
    let (keys, _) = Keys::open(&place, &settings(arguments).governance, &metrics)
        .await
        .unwrap();
    TestServer::with_keys(keys, metrics, arguments).await
}

impl Governed {
    pub(crate) async fn key(&self, project: &str, role: Role) -> NewKey {
        let wanted = NewKeyRequest {
            project,
            role,
            name: "a key",
            expires: None,
            owner: None,
        };
        self.store.create_key("test", &wanted).await.unwrap()
    }

    pub(crate) fn keys(&self) -> &Keys {
        let Access::Keys(keys) = &self.server.app.access else {
            unreachable!("it asks for keys")
        };
        keys
    }

    /// Lets the server look, as it does every second.
    pub(crate) async fn look(&self) {
        self.keys().refresh().await.unwrap();
    }

    pub(crate) async fn send(&self, key: &str, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.server.send(request(Some(key), method, path, body)).await
    }

    pub(crate) async fn post(&self, key: &NewKey, path: &str, body: Value) -> Answer {
        self.send(key.reveal(), Method::POST, path, Some(body)).await
    }

    /// An answer that has begun, to be read or not.
    pub(crate) async fn begun(&self, key: &NewKey, path: &str, body: Value) -> Body {
        let sent = request(Some(key.reveal()), Method::POST, path, Some(body));
        self.server
            .router
            .clone()
            .oneshot(sent)
            .await
            .unwrap()
            .into_body()
    }

    /// Waits until a metric has a value.
    pub(crate) async fn metric_becomes(&self, series: &str, wanted: f64) {
        let wanted = format!("{series} {wanted}");
        for _ in 0..2_000 {
            let page = self
                .send(self.first.reveal(), Method::GET, "/metrics", None)
                .await;
            if page.body.lines().any(|line| line == wanted) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it is not {wanted}");
    }

    pub(crate) async fn chat(&self, key: &NewKey, fields: Value) -> Answer {
        self.post(key, "/v1/chat/completions", chat_body(fields)).await
    }

    /// All rows there are, each chained.
    pub(crate) async fn rows(&self) -> Vec<UsageEvent> {
        self.store.chain_usage().await.unwrap();
        self.store.usage_events(0, i64::MAX).await.unwrap()
    }

    /// With prices, and the key of a member.
    pub(crate) async fn with_member() -> (Self, NewKey) {
        let governed = governed(&["--price", "test-model=2,8,0.5", "--price", "embedder=1,0"]).await;
        let key = governed.key("default", Role::Member).await;
        governed.look().await;
        (governed, key)
    }
}

pub(crate) fn request(key: Option<&str>, method: Method, path: &str, body: Option<Value>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let json = request
        .header("content-type", "application/json")
        .header("host", "localhost");
    json.body(Body::from(body.map_or_else(String::new, |body| body.to_string())))
        .unwrap()
}
