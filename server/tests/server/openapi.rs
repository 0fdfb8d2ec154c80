//! The OpenAPI document says what the server does, and what docs/api.md says.

use std::collections::{BTreeMap, BTreeSet};

use rempart::http::authorize::{NEEDS, Need};
use rempart::http::observe::ROUTES;
use serde_json::{Value, json};

use super::api::{base, page};
use super::support::{Answer, SCRIPT, TestServer, merged, post_request, read, request};

/// Codes of errors that say that a value is beyond its limits.
const BEYOND: &[&str] = &[
    "array_above_max_length",
    "empty_array",
    "invalid_type",
    "object_above_max_length",
    "out_of_range",
    "request_too_large",
];
/// What the model, or another parameter, limits further than the document can tell.
const LIMITED_FURTHER: &[&str] = &["dimensions", "min_tokens"];

async fn document(server: &TestServer) -> Value {
    serde_json::from_str(&server.get("/openapi.json").await.body).unwrap()
}

/// A schema without the name it may stand behind.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(name) => document.pointer(name.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}

/// A schema, or its alternatives without `null`, each resolved.
fn alternatives<'a>(document: &'a Value, schema: &'a Value) -> Vec<&'a Value> {
    let schema = resolved(document, schema);
    match schema["anyOf"].as_array() {
        Some(all) => all
            .iter()
            .flat_map(|one| alternatives(document, one))
            .filter(|one| one["type"] != "null")
            .collect(),
        None => vec![schema],
    }
}

fn body_of<'a>(document: &'a Value, path: &str) -> Vec<&'a Value> {
    let schema = &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"];
    alternatives(document, schema)
}

/// The fields of a request, and whether each must be there in all its forms.
fn fields<'a>(document: &'a Value, path: &str) -> BTreeMap<&'a str, (&'a Value, bool)> {
    let forms = body_of(document, path);
    let mut all = BTreeMap::new();
    for form in &forms {
        for (name, schema) in form["properties"].as_object().unwrap() {
            let required = |form: &&Value| form["required"].as_array().unwrap().contains(&json!(name));
            all.insert(name.as_str(), (schema, forms.iter().all(required)));
        }
    }
    all
}

/// The least that a schema takes.
fn least(document: &Value, schema: &Value) -> Value {
    let schema = alternatives(document, schema)[0];
    if let Some(first) = schema["enum"].get(0) {
        return first.clone();
    }
    match kind(schema) {
        "string" => json!("x"),
        "integer" | "number" => json!(7),
        "boolean" => json!(true),
        "array" => json!([least(document, &schema["items"])]),
        "object" => {
            let required = schema["required"].as_array().into_iter().flatten();
            let names = required.map(|name| name.as_str().unwrap());
            let field = |name: &str| (name.to_owned(), least(document, &schema["properties"][name]));
            names.map(field).collect()
        }
        other => panic!("{other} is new"),
    }
}

fn kind(schema: &Value) -> &str {
    let kind = &schema["type"];
    kind.as_str().or(kind[0].as_str()).unwrap_or("")
}

/// Values at the limits of a schema, and beyond them, as JSON.
fn limits(document: &Value, schema: &Value) -> (Vec<String>, Vec<String>) {
    let (mut within, mut beyond) = (Vec::new(), Vec::new());
    for schema in alternatives(document, schema) {
        match kind(schema) {
            "integer" => {
                let bound = |name: &str| schema[name].as_i64().map(i128::from).unwrap();
                let (low, high) = (bound("minimum"), bound("maximum"));
                within.extend([low, high].map(|n| n.to_string()));
                beyond.extend([low - 1, high + 1].map(|n| n.to_string()));
                beyond.extend(["\"7\"", "true", "0.5"].map(str::to_owned));
            }
            "number" => {
                let bound = |name: &str| schema[name].as_f64().unwrap();
                let (low, high) = (bound("minimum"), bound("maximum"));
                within.extend([low, high].map(|n| n.to_string()));
                beyond.extend([low - 0.001, high + 0.001].map(|n| n.to_string()));
                beyond.extend(["\"0.5\"", "[]", "1e999"].map(str::to_owned));
            }
            "boolean" => beyond.extend(["1", "\"true\"", "{}"].map(str::to_owned)),
            "string" if schema["enum"].is_array() => beyond.push("\"frobnicate\"".to_owned()),
            "string" => {
                beyond.push("7.5".to_owned());
                if let Some(most) = schema["maxLength"].as_u64() {
                    let of = |length: u64| json!("x".repeat(length as usize)).to_string();
                    within.push(of(most));
                    beyond.push(of(most + 1));
                }
                if schema["minLength"] == 1 {
                    beyond.push("\"\"".to_owned());
                }
            }
            "array" => {
                let one = least(document, &schema["items"]);
                if let Some(most) = schema["maxItems"].as_u64() {
                    within.push(json!(vec![&one; most as usize]).to_string());
                    beyond.push(json!(vec![&one; most as usize + 1]).to_string());
                }
                if schema["minItems"] == 1 {
                    beyond.push("[]".to_owned());
                }
            }
            _ => {}
        }
    }
    (within, beyond)
}

async fn send(server: &TestServer, path: &str, name: &str, value: &str) -> Answer {
    let body = merged(base(path, name), json!({name: "@"})).to_string();
    server
        .send(post_request(path, body.replace("\"@\"", value)))
        .await
}

fn code(answer: &Answer) -> (String, String) {
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    let error = &body["error"];
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    (text("code"), text("param"))
}

/// A path with a name in each of its parts that want one.
fn uri(path: &str) -> String {
    let part = |part: &'_ str| if part.starts_with('{') { "test-model" } else { part }.to_owned();
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}

#[tokio::test]
async fn every_route_is_described_and_answers() {
    let server = TestServer::start(&[]).await;
    let document = document(&server).await;
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    let described: BTreeSet<String> = paths.keys().cloned().collect();
    let routes: BTreeSet<String> = ROUTES.iter().map(|route| route.replace('*', "")).collect();
    assert_eq!(described, routes);
    let mut ids = BTreeSet::new();
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().unwrap() {
            assert!(
                ids.insert(operation["operationId"].to_string()),
                "{path}: {method}"
            );
            let request = axum::http::Request::builder()
                .method(method.to_uppercase().as_str())
                .uri(uri(path))
                .body(axum::body::Body::empty());
            let status = server.send(request.unwrap()).await.status.as_u16().to_string();
            assert_ne!(status, "405", "{method} {path}");
            assert!(
                operation["responses"].get(&status).is_some(),
                "{method} {path}: {status}"
            );
        }
    }
}

#[tokio::test]
async fn who_makes_a_request_is_described() {
    let server = TestServer::start(&[]).await;
    let document = document(&server).await;
    let schemes = &document["components"]["securitySchemes"];
    assert_eq!(schemes["certificate"]["type"], "mutualTLS");
    for (path, open) in [
        ("/v1/chat/completions", false),
        ("/v1/models", false),
        ("/livez", true),
    ] {
        let operations = document["paths"][path].as_object().unwrap();
        for operation in operations.values() {
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let mut names = parameters.map(|parameter| (&parameter["in"], &parameter["name"]));
            assert_eq!(
                names.any(|one| one == (&json!("header"), &json!("OpenAI-Project"))),
                !open,
                "{path}"
            );
            let ways = operation["security"].as_array().map_or(0, Vec::len);
            assert_eq!(
                ways,
                if open { 0 } else { 4 },
                "{path}: three, or none without a database"
            );
        }
    }
    let chat = &document["paths"]["/v1/chat/completions"]["post"]["responses"];
    assert!(chat["429"].is_object() && document["paths"]["/tokenize"]["post"]["responses"]["429"].is_null());
    let codes = &document["components"]["schemas"]["ErrorObject"]["properties"]["code"];
    for code in [
        "project_required",
        "no_project",
        "mismatched_project",
        "key_ended",
    ] {
        assert!(
            codes["enum"].as_array().unwrap().contains(&json!(code)),
            "{codes}"
        );
    }
    assert_eq!(codes["type"], json!(["string", "null"]));
    let theirs =
        &document["components"]["schemas"]["AnthropicError"]["properties"]["error"]["properties"]["code"];
    assert_eq!(theirs, codes);
}

#[tokio::test]
async fn what_uses_a_model_may_be_limited_and_recorded() {
    let server = TestServer::start(&[]).await;
    let document = document(&server).await;
    let (mut limited, mut recorded) = (BTreeSet::new(), BTreeSet::new());
    for (path, calls) in document["paths"].as_object().unwrap() {
        for call in calls.as_object().unwrap().values() {
            let responses = &call["responses"];
            limited.extend(responses.get("429").map(|_| path.as_str()));
            recorded.extend(
                responses
                    .pointer("/200/headers/x-rempart-recorded")
                    .map(|_| path.as_str()),
            );
        }
    }
    // Not what counts tokens.
    let using = BTreeSet::from([
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/messages",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/rerank",
        "/rerank",
        "/v2/rerank",
        "/v1/score",
        "/score",
    ]);
    assert_eq!((&limited, &recorded), (&using, &using));
}

#[tokio::test]
async fn the_document_has_what_the_page_has() {
    let server = TestServer::saying(None, SCRIPT, &[]).await;
    let document = document(&server).await;
    for endpoint in page() {
        let path = endpoint.path.as_str();
        let fields = fields(&document, path);
        for (name, example, _, what) in &endpoint.rows {
            let (schema, _) = fields
                .get(name.as_str())
                .unwrap_or_else(|| panic!("{path} lacks {name}"));
            assert_eq!(schema["description"], *what, "{path} {name}");
            assert_eq!(schema["examples"][0], *example, "{path} {name}");
        }
        for name in &endpoint.without_effect {
            assert!(fields.contains_key(name.as_str()), "{path} lacks {name}");
        }
        for name in &endpoint.refused {
            assert!(!fields.contains_key(name.as_str()), "{path} has {name}");
        }
        let forms = body_of(&document, path);
        for (name, (_, required)) in &fields {
            assert!(
                endpoint.names.contains(*name),
                "docs/api.md, {path}, lacks {name}"
            );
            let (code, param) = code(&send(&server, path, name, "null").await);
            let missing = code == "missing_required_parameter" && param == *name;
            // Of several forms one may be missing what another does not have.
            assert!(*required == missing || forms.len() > 1, "{path} {name}: {code}");
        }
        assert!(
            forms.iter().all(|form| form["additionalProperties"] == false),
            "{path}"
        );
    }
}

#[tokio::test]
async fn the_limits_of_the_document_are_those_of_the_server() {
    let server = TestServer::saying(None, SCRIPT, &["--inputs-max", "20", "--messages-max", "30"]).await;
    let document = document(&server).await;
    let mut checked = 0;
    for endpoint in page() {
        let path = endpoint.path.as_str();
        for (name, (schema, _)) in fields(&document, path) {
            let (within, beyond) = limits(&document, schema);
            for value in within.iter().filter(|_| !LIMITED_FURTHER.contains(&name)) {
                let (code, param) = code(&send(&server, path, name, value).await);
                let shown: String = value.chars().take(40).collect();
                assert!(
                    !BEYOND.contains(&code.as_str()),
                    "{path} {name} {shown}: {code} {param}"
                );
                checked += 1;
            }
            for value in &beyond {
                let answer = send(&server, path, name, value).await;
                let shown: String = value.chars().take(40).collect();
                let (code, param) = code(&answer);
                assert_eq!(answer.status, 400, "{path} {name} {shown}");
                assert!(param.starts_with(name), "{path} {name} {shown}: {code} {param}");
                checked += 1;
            }
        }
    }
    assert!(checked > 500, "{checked}");
}

/// What an answer says, without what is new in every one.
fn said(answer: &Answer) -> Value {
    fn without_news(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|name, _| {
                    !["id", "created", "created_at", "completed_at"].contains(&name.as_str())
                });
                fields.values_mut().for_each(without_news);
            }
            Value::Array(items) => items.iter_mut().for_each(without_news),
            _ => {}
        }
    }
    let mut body = serde_json::from_str(&answer.body).unwrap_or(Value::Null);
    without_news(&mut body);
    body
}

#[tokio::test]
async fn a_default_is_what_happens_without_it() {
    let server = TestServer::saying(None, SCRIPT, &["--no-prefix-cache"]).await;
    let document = document(&server).await;
    let mut checked = 0;
    for endpoint in page() {
        let path = endpoint.path.as_str();
        let fields = fields(&document, path);
        for (name, (schema, _)) in &fields {
            let name = *name;
            let Some(value) = schema.get("default") else {
                continue;
            };
            // Nothing may depend on chance.
            let likeliest = match (fields.contains_key("temperature"), name) {
                (false, _) => json!({}),
                (true, "temperature") => json!({"top_p": 0}),
                (true, _) => json!({"temperature": 0}),
            };
            let body =
                |value: &Value| merged(base(path, name), merged(likeliest.clone(), json!({name: value})));
            let (with, without) = (
                server.post(path, body(value)).await,
                server.post(path, body(&Value::Null)).await,
            );
            assert_eq!(with.status, 200, "{path} {name}");
            assert_eq!(said(&with), said(&without), "{path} {name}");
            checked += 1;
        }
    }
    assert!(checked > 30, "{checked}");
}

#[tokio::test]
async fn limits_that_an_operator_sets_are_in_the_document() {
    let server = TestServer::start(&["--stops-max", "3", "--choices-max", "5"]).await;
    let document = document(&server).await;
    let fields = fields(&document, "/v1/chat/completions");
    assert_eq!(fields["stop"].0["anyOf"][1]["maxItems"], 3);
    assert_eq!(fields["n"].0["maximum"], 5);
}

#[tokio::test]
async fn the_page_to_read_comes_from_here_alone() {
    let server = TestServer::start(&[]).await;
    let page = server.get("/docs").await;
    assert_eq!(
        (page.status.as_u16(), &page.headers["content-type"]),
        (200, &"text/html; charset=utf-8".parse().unwrap())
    );
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; connect-src 'self'"));
    assert!(page.body.contains("openapi.json"));
    for elsewhere in ["http:", "https:", "//cdn", "innerHTML"] {
        assert!(!page.body.contains(elsewhere), "{elsewhere}");
    }
}

/// What the document says of keys is what the server asks for.
#[tokio::test]
async fn keys_are_described() {
    let server = TestServer::start(&[]).await;
    let document = document(&server).await;
    for (route, need) in NEEDS {
        let operations = document["paths"][route.replace("{*", "{")].as_object().unwrap();
        for (method, operation) in operations {
            let described = operation["security"].as_array().map_or(0, Vec::len);
            let keyed = *need != Need::Nothing;
            assert_eq!(described, if keyed { 4 } else { 0 }, "{method} {route}");
            assert_eq!(
                operation["responses"].get("401").is_some(),
                keyed,
                "{method} {route}"
            );
        }
    }
    let schemes = document["components"]["securitySchemes"].as_object().unwrap();
    assert_eq!(schemes["bearer"], json!({"type": "http", "scheme": "bearer"}));
    assert_eq!(schemes["x-api-key"]["name"], "x-api-key");
    // Administration has no TLS, and so nobody's certificate.
    let admin = read(
        &server.admin,
        request(None, axum::http::Method::GET, "/openapi.json", None),
    )
    .await
    .json();
    assert!(admin["components"]["securitySchemes"]["certificate"].is_null());
    let ways = &admin["paths"]["/admin/models/{name}/load"]["post"]["security"];
    assert_eq!(*ways, json!([{"bearer": []}, {"x-api-key": []}, {}]));
}

/// Keys of JSON objects are text, whatever they are made of: a schema must not say otherwise.
#[tokio::test]
async fn no_schema_wants_keys_that_are_no_text() {
    fn check(value: &Value) {
        match value {
            Value::Object(fields) => {
                let names = fields.get("propertyNames").map(|names| &names["type"]);
                assert!(names.is_none_or(|kind| kind == "string"), "{value}");
                fields.values().for_each(check);
            }
            Value::Array(items) => items.iter().for_each(check),
            _ => {}
        }
    }
    let server = TestServer::start(&[]).await;
    let document = document(&server).await;
    assert!(document["components"]["schemas"]["PromptLogprobs"].is_object());
    check(&document);
}
