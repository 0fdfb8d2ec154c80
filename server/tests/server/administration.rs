//! Projects, keys, people and the audit chain, as OpenAI's administration has them.

use axum::http::Method;
use rempart_governance::{NewKey, Role};
use serde_json::{Value, json};

use super::support::{Answer, Governed, governed};

const ROOT: &str = "/v1/organization";

/// What one key asks of administration.
pub(super) struct Desk<'a>(pub(super) &'a Governed, pub(super) &'a str);

impl Desk<'_> {
    pub(super) async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.0.send(self.1, method, &format!("{ROOT}{path}"), body).await
    }

    pub(super) async fn get(&self, path: &str) -> Value {
        let answer = self.send(Method::GET, path, None).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        raw(&answer)
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> Value {
        let answer = self.send(Method::POST, path, Some(body)).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        raw(&answer)
    }

    async fn delete(&self, path: &str) -> Value {
        let answer = self.send(Method::DELETE, path, None).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        raw(&answer)
    }

    /// Status, code and parameter of a refusal.
    pub(super) async fn refused(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (u16, String, Value) {
        let answer = self.send(method, path, body).await;
        let error = raw(&answer)["error"].clone();
        let code = error["code"].as_str().unwrap_or_default().to_owned();
        (answer.status.as_u16(), code, error["param"].clone())
    }
}

/// The answer as it is: its identifiers are used.
pub(super) fn raw(answer: &Answer) -> Value {
    serde_json::from_str(&answer.body).unwrap()
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

async fn chats(governed: &Governed, key: &str) -> u16 {
    let body =
        json!({"model": "test-model", "max_tokens": 2, "messages": [{"role": "user", "content": "a"}]});
    let answer = governed
        .send(key, Method::POST, "/v1/chat/completions", Some(body))
        .await;
    answer.status.as_u16()
}

/// A server and the key of an owner, an admin and an auditor.
pub(super) async fn offices() -> (Governed, [NewKey; 3]) {
    let governed = governed(&[]).await;
    let keys = [
        governed.key("default", Role::Owner).await,
        governed.key("default", Role::Admin).await,
        governed.key("default", Role::Auditor).await,
    ];
    governed.look().await;
    (governed, keys)
}

#[tokio::test]
async fn a_project_from_its_begin_to_its_end() {
    let (governed, [owner, ..]) = offices().await;
    let desk = Desk(&governed, owner.reveal());
    let made = desk.post("/projects", json!({"name": "sales"})).await;
    let id = text(&made["id"]).to_owned();
    let own = format!("/projects/{id}");
    assert_eq!(
        (&made["object"], &made["status"]),
        (&json!("organization.project"), &json!("active"))
    );
    assert_eq!(desk.get(&own).await, made);
    assert_eq!(
        desk.post(&own, json!({"name": "Vertrieb"})).await["name"],
        "Vertrieb"
    );
    let models = format!("{own}/model_permissions");
    assert_eq!(desk.get(&models).await["mode"], "deny_list");
    let held = json!({"mode": "allow_list", "model_ids": ["alias"]});
    assert_eq!(desk.post(&models, held).await["model_ids"], json!(["alias"]));
    let key = desk
        .post(
            &format!("{own}/api_keys"),
            json!({"name": "a", "role": "service"}),
        )
        .await;
    // It is known at once, without a second's wait.
    assert_eq!(chats(&governed, text(&key["value"])).await, 200);
    desk.post(&models, json!({"mode": "allow_list", "model_ids": ["embedder"]}))
        .await;
    assert_eq!(chats(&governed, text(&key["value"])).await, 404);
    desk.delete(&models).await;
    assert_eq!(chats(&governed, text(&key["value"])).await, 200);
    let limits = desk.get(&format!("{own}/rate_limits")).await["data"][0].clone();
    assert_eq!(
        (&limits["model"], &limits["max_requests_per_1_minute"]),
        (&json!("*"), &Value::Null)
    );
    let path = format!("{own}/rate_limits/{}", text(&limits["id"]));
    let set = desk.post(&path, json!({"max_requests_per_1_minute": 1})).await;
    assert_eq!(set["max_requests_per_1_minute"], 1);
    let (first, second) = (
        chats(&governed, text(&key["value"])).await,
        chats(&governed, text(&key["value"])).await,
    );
    assert_eq!((first, second), (200, 429));
    let archived = raw(&desk.send(Method::POST, &format!("{own}/archive"), None).await);
    assert_eq!(archived["status"], "archived");
    assert_eq!(chats(&governed, text(&key["value"])).await, 401);
    let refused = desk.refused(Method::POST, &own, Some(json!({"name": "x"}))).await;
    assert_eq!((refused.0, refused.1.as_str()), (400, "invalid_value"));
    assert_eq!(desk.get("/projects").await["data"].as_array().unwrap().len(), 1);
    let all = desk.get("/projects?include_archived=true").await;
    assert_eq!(all["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn keys_are_made_changed_and_ended() {
    let (governed, [owner, ..]) = offices().await;
    let desk = Desk(&governed, owner.reveal());
    let project = desk.post("/projects", json!({"name": "sales"})).await;
    let root = format!("/projects/{}/api_keys", text(&project["id"]));
    let made = desk
        .post(&root, json!({"name": "laptop", "expires_in_seconds": 100}))
        .await;
    let (id, value) = (text(&made["id"]), text(&made["value"]));
    assert!(made["expires_at"].as_i64() > made["created_at"].as_i64());
    let path = format!("{root}/{id}");
    let told = desk.get(&path).await;
    assert!(
        !told.to_string().contains(&value[20..]),
        "the secret is told once"
    );
    assert_eq!(
        (&told["role"], &told["owner"]["type"]),
        (&json!("member"), &Value::Null)
    );
    let later = desk.post(&path, json!({"expires_in_seconds": 1_000})).await;
    assert!(later["expires_at"].as_i64() > made["expires_at"].as_i64());
    assert_eq!(desk.delete(&path).await["deleted"], true);
    assert_eq!(chats(&governed, value).await, 401);
    assert_eq!(desk.refused(Method::GET, &path, None).await.0, 404);
    // What governs or reviews is listed apart, and in no other place asked for by it.
    let admin = desk.post("/admin_api_keys", json!({"name": "ops"})).await;
    assert_eq!(admin["owner"]["role"], "admin");
    let listed = desk.get("/admin_api_keys?limit=100").await;
    let ids: Vec<&str> = listed["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| text(&key["id"]))
        .collect();
    assert!(ids.contains(&text(&admin["id"])) && ids.contains(&owner.id.0.as_str()));
    desk.delete(&format!("/admin_api_keys/{}", text(&admin["id"])))
        .await;
    assert_eq!(chats(&governed, text(&admin["value"])).await, 401);
}

#[tokio::test]
async fn people_come_work_and_leave() {
    let (governed, [owner, ..]) = offices().await;
    let desk = Desk(&governed, owner.reveal());
    let anna = desk
        .post(
            "/users",
            json!({"email": "Anna@example.org", "name": "Anna Example"}),
        )
        .await;
    let id = text(&anna["id"]);
    assert_eq!(
        (&anna["email"], &anna["role"]),
        (&json!("anna@example.org"), &json!("member"))
    );
    let project = desk.post("/projects", json!({"name": "sales"})).await;
    let root = format!("/projects/{}", text(&project["id"]));
    let wanted = json!({"name": "laptop", "user_id": id});
    let refused = desk
        .refused(Method::POST, &format!("{root}/api_keys"), Some(wanted.clone()))
        .await;
    assert_eq!(refused.0, 400, "she is not in the project");
    let member = desk
        .post(
            &format!("{root}/users"),
            json!({"email": "anna@example.org", "role": "member"}),
        )
        .await;
    assert_eq!(
        (&member["id"], &member["name"]),
        (&anna["id"], &json!("Anna Example"))
    );
    let key = desk.post(&format!("{root}/api_keys"), wanted).await;
    assert_eq!(key["owner"]["user"]["email"], "anna@example.org");
    assert_eq!(chats(&governed, text(&key["value"])).await, 200);
    let found = desk
        .get("/users?emails=anna@example.org&emails=b@example.org")
        .await;
    assert_eq!(found["data"][0]["id"], anna["id"]);
    assert_eq!(desk.get("/users?emails[]=b@example.org").await["data"], json!([]));
    let done = desk.get("/audit_logs?actor_emails[]=anna@example.org").await;
    assert_eq!(done["data"], json!([]), "she has administered nothing");
    assert_eq!(desk.delete(&format!("/users/{id}")).await["deleted"], true);
    assert_eq!(chats(&governed, text(&key["value"])).await, 401);
    assert_eq!(desk.get(&format!("{root}/users")).await["data"], json!([]));
    let rows = governed.store.audit_events(0).await.unwrap();
    let chain = format!("{rows:?}");
    assert!(!chain.contains("nna"), "the chain names nobody");
}

#[tokio::test]
async fn programs_have_accounts() {
    let (governed, [owner, ..]) = offices().await;
    let desk = Desk(&governed, owner.reveal());
    let project = desk.post("/projects", json!({"name": "sales"})).await;
    let root = format!("/projects/{}/service_accounts", text(&project["id"]));
    let bare = desk
        .post(&root, json!({"name": "crm", "create_service_account_only": true}))
        .await;
    assert_eq!(bare["api_key"], Value::Null);
    let path = format!("{root}/{}", text(&bare["id"]));
    let key = desk.post(&format!("{path}/api_keys"), json!({})).await;
    assert_eq!(
        (&key["name"], chats(&governed, text(&key["value"])).await),
        (&json!("crm"), 200)
    );
    assert_eq!(desk.post(&path, json!({"name": "erp"})).await["name"], "erp");
    let both = desk.post(&root, json!({"name": "rag"})).await;
    assert_eq!(chats(&governed, text(&both["api_key"]["value"])).await, 200);
    assert_eq!(desk.get(&root).await["data"].as_array().unwrap().len(), 2);
    desk.delete(&path).await;
    assert_eq!(chats(&governed, text(&key["value"])).await, 401);
    assert_eq!(desk.refused(Method::GET, &path, None).await.0, 404);
}

#[tokio::test]
async fn nobody_gives_or_takes_what_they_do_not_have() {
    let (governed, [owner, admin, auditor]) = offices().await;
    let desk = Desk(&governed, admin.reveal());
    let owned = format!("/admin_api_keys/{}", owner.id.0);
    let forbidden = (403, "insufficient_permissions".to_owned(), Value::Null);
    let anna = json!({"email": "a@example.org", "name": "A", "role": "owner"});
    for (method, path, body) in [
        (
            Method::POST,
            "/admin_api_keys",
            Some(json!({"name": "x", "role": "owner"})),
        ),
        (
            Method::POST,
            "/admin_api_keys",
            Some(json!({"name": "x", "role": "auditor"})),
        ),
        (Method::DELETE, owned.as_str(), None),
        (Method::POST, "/users", Some(anna)),
        (Method::GET, "/audit_logs", None),
    ] {
        assert_eq!(desk.refused(method, path, body).await, forbidden, "{path}");
    }
    assert_eq!(chats(&governed, owner.reveal()).await, 200);
    // An auditor sees who may do what, and changes nothing.
    let desk = Desk(&governed, auditor.reveal());
    for path in ["/projects", "/users", "/admin_api_keys", "/audit_logs"] {
        desk.get(path).await;
    }
    let refused = desk
        .refused(Method::POST, "/projects", Some(json!({"name": "x"})))
        .await;
    assert_eq!(refused.0, 403);
}

#[tokio::test]
async fn the_audit_chain_is_told_in_pages() {
    let (governed, [owner, ..]) = offices().await;
    let desk = Desk(&governed, owner.reveal());
    let project = desk.post("/projects", json!({"name": "sales"})).await;
    let id = text(&project["id"]);
    let made = desk
        .get(&format!(
            "/audit_logs?event_types[]=project.created&resource_ids[]={id}"
        ))
        .await;
    let row = &made["data"][0];
    assert_eq!(
        (&row["actor"]["api_key"]["id"], &row["project.created"]["id"]),
        (&json!(owner.id.0), &json!(id))
    );
    let chain = governed.store.audit_events(0).await.unwrap();
    let own = chain.iter().find(|event| event.object == id).unwrap();
    assert_eq!(
        (&row["chain"]["seq"], &row["chain"]["hash"]),
        (&json!(own.seq), &json!(own.hash))
    );
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = desk.get(&format!("/audit_logs?limit=2{after}")).await;
        seen.extend(
            page["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|row| row["chain"]["seq"].as_i64().unwrap()),
        );
        if page["has_more"] == false {
            break;
        }
        after = format!("&after={}", text(&page["last_id"]));
    }
    let wanted: Vec<i64> = chain.iter().rev().map(|event| event.seq).collect();
    assert_eq!(seen, wanted);
    let newer = desk.get("/audit_logs?limit=2&before=audit_log-1").await;
    let ids: Vec<&str> = newer["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| text(&row["id"]))
        .collect();
    assert_eq!(
        (ids, &newer["has_more"]),
        (vec!["audit_log-3", "audit_log-2"], &json!(true))
    );
    let now = rempart_governance::now_s();
    let none = desk
        .get(&format!("/audit_logs?effective_at[gt]={}", now + 60))
        .await;
    assert_eq!(none["data"], json!([]));
    let all = desk
        .get(&format!(
            "/audit_logs?limit=100&effective_at[gte]={}&effective_at[lte]={}",
            now - 600,
            now + 60
        ))
        .await;
    assert_eq!(all["data"].as_array().unwrap().len(), wanted.len());
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let (governed, [owner, ..]) = offices().await;
    let desk = Desk(&governed, owner.reveal());
    let project = text(&desk.post("/projects", json!({"name": "sales"})).await["id"]).to_owned();
    let of = |path: &str| format!("/projects/{project}{path}");
    let cases = [
        ("/projects".to_owned(), json!({}), "name"),
        (
            "/projects".to_owned(),
            json!({"name": "x", "residency": "eu"}),
            "residency",
        ),
        (
            of("/model_permissions"),
            json!({"mode": "deny_list", "model_ids": ["a"]}),
            "model_ids",
        ),
        (
            of("/model_permissions"),
            json!({"mode": "allow_list", "model_ids": []}),
            "model_ids",
        ),
        (of("/api_keys"), json!({"name": "x", "role": "emperor"}), "role"),
        (
            of("/api_keys"),
            json!({"name": "x", "expires_in_seconds": 0}),
            "expires_in_seconds",
        ),
        (of("/api_keys"), json!({"name": "x", "scopes": ["a"]}), "scopes"),
        (
            of("/rate_limits/*"),
            json!({"max_requests_per_1_day": 3}),
            "max_requests_per_1_day",
        ),
        (of("/rate_limits/*"), json!({}), "max_requests_per_1_minute"),
        (of("/users"), json!({"role": "owner", "user_id": "x"}), "role"),
        (of("/users"), json!({"email": "a@b", "user_id": "x"}), "email"),
        (
            "/users".to_owned(),
            json!({"email": "a@b", "name": "x", "role": "service"}),
            "role",
        ),
    ];
    for (path, body, param) in cases {
        let refused = desk.refused(Method::POST, &path, Some(body.clone())).await;
        assert_eq!((refused.0, &refused.2), (400, &json!(param)), "{path} {body}");
    }
}

#[tokio::test]
async fn what_is_wrong_in_a_query_or_a_path_is_named() {
    let (governed, [owner, ..]) = offices().await;
    let desk = Desk(&governed, owner.reveal());
    let project = text(&desk.post("/projects", json!({"name": "sales"})).await["id"]).to_owned();
    for (query, param) in [
        ("/projects?limit=0", "limit"),
        ("/projects?limit=x", "limit"),
        ("/projects?after=x", "after"),
        ("/projects?frobnicate=x", "frobnicate"),
        ("/audit_logs?after=7", "after"),
        ("/audit_logs?effective_at[gt]=-1", "effective_at[gt]"),
        ("/audit_logs?tenant_only=true", "tenant_only"),
    ] {
        let refused = desk.refused(Method::GET, query, None).await;
        assert_eq!((refused.0, &refused.2), (400, &json!(param)), "{query}");
    }
    for path in [
        "/projects/x",
        "/users/x",
        "/admin_api_keys/x",
        "/projects/%ff",
        "/projects/%00",
    ] {
        assert_eq!(desk.refused(Method::GET, path, None).await.0, 404, "{path}");
    }
    let hostile = json!({"name": "x", "user_id": "a\u{0}b"});
    let refused = desk
        .refused(
            Method::POST,
            &format!("/projects/{project}/api_keys"),
            Some(hostile),
        )
        .await;
    assert_eq!((refused.0, refused.2), (400, json!("user_id")));
}
