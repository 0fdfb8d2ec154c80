//! Every number a client may send, at and beyond its limits.

use axum::http::Method;
use rempart::openai::administration::EXPIRES_MAX_S;
use rempart::openai::usage::TIME_MAX;
use rempart_governance::LIMIT_MAX;
use serde_json::{Value, json};

use super::administration::{Desk, offices, raw, text};
use super::support::{TestServer, chat_body};

struct Number {
    endpoint: &'static str,
    name: &'static str,
    /// The lowest and the highest allowed, and values just outside.
    allowed: [&'static str; 2],
    refused: [&'static str; 2],
}

const fn number(name: &'static str, allowed: [&'static str; 2], refused: [&'static str; 2]) -> Number {
    Number {
        endpoint: "/v1/chat/completions",
        name,
        allowed,
        refused,
    }
}

const NUMBERS: &[Number] = &[
    number("temperature", ["0", "2"], ["-0.001", "2.001"]),
    number("top_p", ["0", "1"], ["-0.001", "1.001"]),
    number("min_p", ["0", "1"], ["-0.001", "1.001"]),
    number("repetition_penalty", ["0.01", "10"], ["0.009", "10.01"]),
    number("presence_penalty", ["-2", "2"], ["-2.001", "2.001"]),
    number("frequency_penalty", ["-2", "2"], ["-2.001", "2.001"]),
    number("top_k", ["-1", "1000000"], ["-2", "1000001"]),
    number("n", ["1", "16"], ["0", "17"]),
    number("max_tokens", ["1", "16777216"], ["0", "16777217"]),
    number("max_completion_tokens", ["1", "16777216"], ["0", "16777217"]),
    number("min_tokens", ["0", "16777216"], ["-1", "16777217"]),
    number("top_logprobs", ["0", "20"], ["-1", "21"]),
    number("prompt_logprobs", ["0", "20"], ["-1", "21"]),
    number("priority", ["0", "1000"], ["-1", "1001"]),
    number(
        "seed",
        ["-9223372036854775808", "9223372036854775807"],
        ["-9223372036854775809", "9223372036854775808"],
    ),
    Number {
        endpoint: "/v1/completions",
        name: "logprobs",
        allowed: ["0", "20"],
        refused: ["-1", "21"],
    },
    Number {
        endpoint: "/v1/completions",
        name: "max_tokens",
        allowed: ["1", "16777216"],
        refused: ["-1", "16777217"],
    },
];

/// A body with `value` for `name`, written as it is.
fn body(number: &Number, value: &str) -> String {
    let mut fields = json!({"max_tokens": 1, "logprobs": true});
    if number.endpoint == "/v1/completions" {
        fields = json!({"max_tokens": 1, "prompt": "a", "messages": null});
    }
    if number.name == "max_completion_tokens" {
        fields["max_tokens"] = Value::Null;
    }
    fields[number.name] = json!("VALUE");
    let mut body = chat_body(fields);
    if number.endpoint == "/v1/completions" {
        body.as_object_mut().unwrap().remove("messages");
    }
    body.to_string().replace("\"VALUE\"", value)
}

#[tokio::test]
async fn limits_are_kept_and_named() {
    let server = TestServer::start(&["--request-timeout-s", "60"]).await;
    for number in NUMBERS {
        for value in number.allowed {
            let answer = server.post_text(number.endpoint, &body(number, value)).await;
            // A count may still be too much for this model's context, which is a matter of its own.
            let code = answer.json()["error"]["code"].clone();
            let fits =
                answer.status == 200 || code == "context_length_exceeded" || number.name == "min_tokens";
            assert!(fits, "{} = {value}: {}", number.name, answer.body);
        }
        let wrong = [
            "1e999",
            "-1e999",
            "1e400",
            "123456789012345678901234567890",
            "\"1\"",
            "true",
            "[]",
            "{}",
        ];
        for value in number.refused.iter().chain(&wrong) {
            let answer = server.post_text(number.endpoint, &body(number, value)).await;
            assert_eq!(answer.status, 400, "{} = {value}", number.name);
            let error = answer.json()["error"].clone();
            assert_eq!(error["param"], number.name, "{} = {value}", number.name);
            let message = error["message"].as_str().unwrap();
            let limits = number.allowed.iter().all(|limit| message.contains(limit));
            assert!(limits, "{} = {value}: {message}", number.name);
        }
        for value in ["NaN", "Infinity", "-Infinity", "01", "+1", "1.", ".5", "0x1"] {
            let answer = server.post_text(number.endpoint, &body(number, value)).await;
            assert_eq!(answer.status, 400, "{} = {value}", number.name);
            assert_eq!(
                answer.json()["error"]["param"],
                number.name,
                "{} = {value}",
                number.name
            );
        }
    }
}

#[tokio::test]
async fn whole_numbers_may_have_a_point_and_no_fraction() {
    let server = TestServer::start(&[]).await;
    for number in NUMBERS
        .iter()
        .filter(|number| !number.allowed[0].contains('.') && number.name != "temperature")
    {
        let fractions = ["top_p", "min_p", "presence_penalty", "frequency_penalty"];
        let answer = server.post_text(number.endpoint, &body(number, "1.5")).await;
        let allowed = ["presence_penalty", "frequency_penalty"].contains(&number.name);
        assert_eq!(answer.status == 200, allowed, "{}: {}", number.name, answer.body);
        if !fractions.contains(&number.name) {
            let plain = server.post_text(number.endpoint, &body(number, "1")).await;
            let pointed = server.post_text(number.endpoint, &body(number, "1.0")).await;
            assert_eq!(plain.status, pointed.status, "{}", number.name);
        }
    }
}

#[tokio::test]
async fn a_negative_zero_is_zero() {
    let server = TestServer::start(&[]).await;
    for (name, allowed) in [
        ("temperature", true),
        ("top_k", true),
        ("min_tokens", true),
        ("n", false),
    ] {
        let number = number(name, ["", ""], ["", ""]);
        let answer = server.post_text(number.endpoint, &body(&number, "-0")).await;
        assert_eq!(answer.status == 200, allowed, "{name}: {}", answer.body);
    }
}

#[tokio::test]
async fn limits_of_administration_are_kept_and_named() {
    let (governed, [owner, ..]) = offices().await;
    let desk = Desk(&governed, owner.reveal());
    let project = desk.post("/projects", json!({"name": "sales"})).await;
    let project = format!("/projects/{}", text(&project["id"]));
    let rates = desk.get(&format!("{project}/rate_limits")).await;
    let rates = format!("{project}/rate_limits/{}", text(&rates["data"][0]["id"]));
    let keys = format!("{project}/api_keys");
    for (path, field, highest) in [
        (&rates, "max_requests_per_1_minute", LIMIT_MAX),
        (&rates, "max_tokens_per_1_minute", LIMIT_MAX),
        (&keys, "expires_in_seconds", EXPIRES_MAX_S),
    ] {
        let body = |value: i64| {
            let mut body = json!({field: value});
            if path == &keys {
                body["name"] = json!("laptop");
            }
            body
        };
        for value in [1, highest] {
            desk.post(path, body(value)).await;
        }
        for value in [0, highest + 1, i64::MIN, i64::MAX] {
            let answer = desk.send(Method::POST, path, Some(body(value))).await;
            let error = raw(&answer)["error"].clone();
            assert_eq!(
                (answer.status.as_u16(), &error["param"]),
                (400, &json!(field)),
                "{value}"
            );
            let limits = [1, highest].map(|limit| text(&error["message"]).contains(&limit.to_string()));
            assert_eq!(limits, [true, true], "{error}");
        }
    }
    for list in ["/api_keys", "/service_accounts", "/users", "/rate_limits"] {
        asks_within(&desk, &format!("{project}{list}?limit="), "limit", [1, 100]).await;
    }
}

#[tokio::test]
async fn limits_of_queries_are_kept_and_named() {
    let (governed, [owner, ..]) = offices().await;
    let desk = Desk(&governed, owner.reveal());
    let times = [0, TIME_MAX];
    for (query, name, limits) in [
        ("/usage/completions?start_time=", "start_time", times),
        (
            "/usage/completions?start_time=0&end_time=",
            "end_time",
            [1, TIME_MAX],
        ),
        ("/usage/completions?start_time=0&limit=", "limit", [1, 31]),
        (
            "/usage/completions?start_time=0&bucket_width=1h&limit=",
            "limit",
            [1, 168],
        ),
        (
            "/usage/embeddings?start_time=0&bucket_width=1m&limit=",
            "limit",
            [1, 1_440],
        ),
        ("/usage/images?start_time=", "start_time", times),
        ("/costs?start_time=", "start_time", times),
        ("/costs?start_time=0&limit=", "limit", [1, 180]),
        ("/audit_logs?effective_at[gt]=", "effective_at[gt]", times),
        ("/audit_logs?effective_at[gte]=", "effective_at[gte]", times),
        ("/audit_logs?effective_at[lt]=", "effective_at[lt]", times),
        ("/audit_logs?effective_at[lte]=", "effective_at[lte]", times),
        ("/audit_logs?limit=", "limit", [1, 100]),
        ("/projects?limit=", "limit", [1, 100]),
        ("/users?limit=", "limit", [1, 100]),
        ("/admin_api_keys?limit=", "limit", [1, 100]),
    ] {
        asks_within(&desk, query, name, limits).await;
    }
}

/// A query takes its limits, and names what is beyond them or no number.
async fn asks_within(desk: &Desk<'_>, query: &str, name: &str, [lowest, highest]: [i64; 2]) {
    for value in [lowest, highest] {
        desk.get(&format!("{query}{value}")).await;
    }
    let beyond = [lowest - 1, highest + 1].map(|value| value.to_string());
    let wrong = ["99999999999999999999", "1e3", "1.5", "x", ""];
    for value in beyond.iter().map(String::as_str).chain(wrong) {
        let refused = desk.refused(Method::GET, &format!("{query}{value}"), None).await;
        assert_eq!((refused.0, refused.2), (400, json!(name)), "{query}{value}");
    }
}
