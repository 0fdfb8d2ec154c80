//! What keys and projects may use, and what is told when it is used up.

use std::time::{Duration, Instant};

use axum::http::Method;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rempart::shutdown::Phase;
use rempart_governance::{Metric, NewKey, NewKeyRequest, Role, Subject};
use serde_json::{Value, json};

use super::support::{Answer, Governed, governed};

const EMBEDDINGS: &str = "/v1/embeddings";
const PROJECT_QUEUE: &str =
    r#"vllm:admission_rejections_total{model_name="test-model",engine="0",reason="project_queue"}"#;

async fn limited(limits: &[(Metric, i64)]) -> (Governed, NewKey) {
    let governed = governed(&[]).await;
    let key = governed.key("default", Role::Member).await;
    governed.limit(&Subject::Key(key.id.0.clone()), limits).await;
    (governed, key)
}

impl Governed {
    async fn limit(&self, subject: &Subject, limits: &[(Metric, i64)]) {
        let changes: Vec<(Metric, Option<i64>)> = limits
            .iter()
            .map(|(metric, value)| (*metric, Some(*value).filter(|value| *value > 0)))
            .collect();
        self.store.set_limits("test", subject, &changes).await.unwrap();
        self.look().await;
    }

    async fn embed(&self, key: &NewKey) -> Answer {
        self.post(key, EMBEDDINGS, json!({"model": "embedder", "input": "a"}))
            .await
    }
}

fn header(answer: &Answer, name: &str) -> Option<String> {
    answer
        .headers
        .get(name)
        .map(|value| value.to_str().unwrap().to_owned())
}

fn refusal(answer: &Answer) -> (u16, Value, Value) {
    let error = answer.json()["error"].clone();
    (
        answer.status.as_u16(),
        error["type"].clone(),
        error["code"].clone(),
    )
}

fn over(kind: &str) -> (u16, Value, Value) {
    (429, json!(kind), json!("rate_limit_exceeded"))
}

#[tokio::test]
async fn requests_of_a_minute() {
    let (governed, key) = limited(&[(Metric::RequestsPerMinute, 2)]).await;
    let first = governed.embed(&key).await;
    assert_eq!(first.status, 200);
    assert_eq!(header(&first, "x-ratelimit-limit-requests").as_deref(), Some("2"));
    assert_eq!(
        header(&first, "x-ratelimit-remaining-requests").as_deref(),
        Some("1")
    );
    assert!(
        header(&first, "x-ratelimit-reset-requests")
            .unwrap()
            .ends_with('s')
    );
    assert_eq!(header(&first, "x-ratelimit-limit-tokens"), None);
    assert_eq!(governed.embed(&key).await.status, 200);
    let refused = governed.embed(&key).await;
    assert_eq!(refusal(&refused), over("requests"));
    assert_eq!(
        header(&refused, "x-ratelimit-remaining-requests").as_deref(),
        Some("0")
    );
    assert_eq!(
        refused.json()["error"]["message"]
            .as_str()
            .unwrap()
            .split("; try")
            .next(),
        Some("Rate limit reached: this key's limit is 2 requests per minute")
    );
    let wait: u64 = header(&refused, "retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&wait));
    assert_eq!(header(&refused, "x-should-retry").as_deref(), Some("true"));
    // What asks no model is not limited, and neither is anyone else.
    assert_eq!(
        governed
            .send(key.reveal(), Method::GET, "/v1/models", None)
            .await
            .status,
        200
    );
    assert_eq!(governed.embed(&governed.first).await.status, 200);
    assert_eq!(
        header(
            &governed.embed(&governed.first).await,
            "x-ratelimit-limit-requests"
        ),
        None
    );
    governed
        .server
        .metric_is_with(
            governed.first.reveal(),
            r#"rempart_limited_total{limit="requests-per-minute"}"#,
            1.0,
        )
        .await;
    // Refused ones are in no row: they have used nothing.
    let messages =
        json!({"model": "test-model", "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]});
    let refused = governed.post(&key, "/v1/messages", messages).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.json()["error"]["type"]),
        (429, &json!("rate_limit_error"))
    );
    // A limit that is taken away limits nobody.
    governed
        .limit(&Subject::Key(key.id.0.clone()), &[(Metric::RequestsPerMinute, 0)])
        .await;
    assert_eq!(governed.embed(&key).await.status, 200);
}

#[tokio::test]
async fn tokens_are_reserved_and_given_back() {
    let (governed, key) = limited(&[(Metric::TokensPerMinute, 150)]).await;
    // The prompt has some twenty tokens, the answer 28.
    for _ in 0..2 {
        let answer = governed.chat(&key, json!({"max_tokens": 60})).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(
            header(&answer, "x-ratelimit-limit-tokens").as_deref(),
            Some("150")
        );
        let used = answer.json()["usage"]["total_tokens"].as_i64().unwrap();
        assert!(used < 100, "{used}");
    }
    let refused = governed.chat(&key, json!({"max_tokens": 60})).await;
    assert_eq!(refusal(&refused), over("tokens"));
    let rows = governed.rows().await;
    assert_eq!(
        (
            rows.len(),
            rows[2].status,
            rows[2].outcome.as_str(),
            rows[2].input
        ),
        (3, 429, "refused", 0)
    );
    // More than there can ever be is told so, and not to try again.
    let refused = governed.chat(&key, json!({"max_tokens": 149})).await;
    assert_eq!(refusal(&refused), over("tokens"));
    assert!(
        refused.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("larger than its limit")
    );
    assert_eq!(
        (
            header(&refused, "retry-after"),
            header(&refused, "x-should-retry").as_deref()
        ),
        (None, Some("false"))
    );
}

#[tokio::test]
async fn a_project_is_limited_as_a_whole_and_remembers() {
    let (governed, key) = limited(&[]).await;
    let other = governed.key("default", Role::Service).await;
    governed
        .limit(
            &Subject::Project("default".to_owned()),
            &[(Metric::TokensPerDay, 150), (Metric::TokensPerMonth, 10_000)],
        )
        .await;
    assert_eq!(governed.chat(&key, json!({"max_tokens": 60})).await.status, 200);
    assert_eq!(governed.chat(&other, json!({"max_tokens": 60})).await.status, 200);
    let refused = governed.chat(&key, json!({"max_tokens": 60})).await;
    assert_eq!(refusal(&refused), over("tokens"));
    assert!(
        refused.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("this project's limit is 150 tokens per day")
    );
    // After a new start the day is still used up.
    let place = governed.folder.path().join("rempart.db");
    let again = super::support::governed_at(&place, &[]).await;
    let body = super::support::chat_body(json!({"max_tokens": 60}));
    let path = "/v1/chat/completions";
    let sent = super::support::request(Some(other.reveal()), Method::POST, path, Some(body));
    assert_eq!(again.send(sent).await.status, 429);
}

/// Keys of two projects are one person's.
#[tokio::test]
async fn a_person_is_limited_as_a_whole_and_remembers() {
    let governed = governed(&[]).await;
    let place = governed.folder.path().join("rempart.db");
    let secret = governed.folder.path().join("rempart.db.secret");
    let store = governed
        .store
        .clone()
        .with_secret_of("test", &secret)
        .await
        .unwrap();
    store.create_project("test", "sales", &[]).await.unwrap();
    let anna = store
        .add_person("test", "anna@example.org", "Anna", Role::Member)
        .await
        .unwrap()
        .id;
    let mut keys = Vec::new();
    for project in ["default", "sales"] {
        store.add_member("test", project, &anna).await.unwrap();
        let wanted = NewKeyRequest {
            project,
            role: Role::Member,
            name: "laptop",
            expires: None,
            owner: Some(&anna),
        };
        keys.push(store.create_key("test", &wanted).await.unwrap());
    }
    let subject = Subject::Person(anna.clone());
    governed.limit(&subject, &[(Metric::TokensPerDay, 150)]).await;
    assert_eq!(
        governed.chat(&keys[0], json!({"max_tokens": 60})).await.status,
        200
    );
    assert_eq!(
        governed.chat(&keys[1], json!({"max_tokens": 60})).await.status,
        200
    );
    let refused = governed.chat(&keys[0], json!({"max_tokens": 60})).await;
    assert_eq!(refusal(&refused), over("tokens"));
    let message = refused.json()["error"]["message"].clone();
    assert!(
        message
            .as_str()
            .unwrap()
            .contains("this user's limit is 150 tokens per day")
    );
    let again = super::support::governed_at(&place, &[]).await;
    let body = super::support::chat_body(json!({"max_tokens": 60}));
    let path = "/v1/chat/completions";
    let sent = super::support::request(Some(keys[1].reveal()), Method::POST, path, Some(body));
    assert_eq!(again.send(sent).await.status, 429);
    // Who has left keeps no limits that can't be taken away.
    store.end_person("test", &anna).await.unwrap();
    let more = [(Metric::TokensPerDay, Some(200))];
    assert!(store.set_limits("test", &subject, &more).await.is_err());
    governed.limit(&subject, &[(Metric::TokensPerDay, 0)]).await;
    assert!(store.limits().await.unwrap().is_empty());
}

#[tokio::test]
async fn requests_at_one_time() {
    let (governed, key) = limited(&[(Metric::Parallel, 2)]).await;
    governed.server.controls.close();
    let (one, two) = (governed.chat(&key, json!({})), governed.chat(&key, json!({})));
    let third = async {
        governed.server.controls.held().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        // One that is let in would wait for the gate.
        let third = tokio::time::timeout(Duration::from_secs(20), governed.chat(&key, json!({}))).await;
        governed.server.controls.open();
        third.unwrap()
    };
    let (one, two, third) = tokio::join!(one, two, third);
    assert_eq!((one.status.as_u16(), two.status.as_u16()), (200, 200));
    assert_eq!(refusal(&third), over("requests"));
    assert_eq!(header(&third, "retry-after").as_deref(), Some("1"));
    for _ in 0..5 {
        assert_eq!(
            governed.chat(&key, json!({})).await.status,
            200,
            "places come back"
        );
        governed.chat(&key, json!({"temperature": -1})).await;
    }
}

#[tokio::test]
async fn no_project_fills_the_queue() {
    let governed = governed(&["--queue-requests-max", "8"]).await;
    governed.store.create_project("test", "sales", &[]).await.unwrap();
    let other = governed.key("sales", Role::Member).await;
    governed.look().await;
    governed.server.controls.close();
    // One is computed, and what comes meanwhile waits.
    let running = governed.chat(&governed.first, json!({}));
    let flood = async {
        governed.server.controls.held().await;
        let all = (0..16).map(|_| governed.chat(&governed.first, json!({})));
        futures::future::join_all(all).await
    };
    let late = async {
        // All but three are refused before anything else happens.
        governed.metric_becomes(PROJECT_QUEUE, 13.0).await;
        // For the project that fills its part, whatever else is wrong; others are told that.
        let wrong = json!({"temperature": -1});
        assert_eq!(governed.chat(&governed.first, wrong.clone()).await.status, 503);
        assert_eq!(governed.chat(&other, wrong).await.status, 400);
        let late = governed.chat(&other, json!({}));
        let opening = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            governed.server.controls.open();
        };
        tokio::join!(late, opening).0
    };
    let (running, flood, late) = tokio::join!(running, flood, late);
    assert_eq!(
        (running.status.as_u16(), late.status.as_u16()),
        (200, 200),
        "{}",
        late.body
    );
    let taken = flood.iter().filter(|answer| answer.status == 200).count();
    // Half of the queue, in which the one that is computed was counted when its step began.
    assert_eq!(taken, 3);
    let refused = flood.iter().find(|answer| answer.status != 200).unwrap();
    assert_eq!(
        (refused.status.as_u16(), &refused.json()["error"]["code"]),
        (503, &json!("server_is_overloaded"))
    );
    // More prompts than a project may queue at all are told so.
    let prompts: Vec<String> = (0..5).map(|at| format!("p{at}")).collect();
    let body = json!({"model": "test-model", "prompt": prompts, "max_tokens": 1});
    let refused = governed.post(&other, "/v1/completions", body).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.json()["error"]["code"]),
        (400, &json!("request_too_large"))
    );
}

/// Whoever comes again at once with every refusal of a full queue waits for the next.
#[tokio::test]
async fn refusals_come_at_a_pace() {
    let queue = ["--queue-requests-max", "2", "--sequences-max", "1"];
    let pace = ["--refusals-per-second", "1", "--refusal-wait-max-ms", "2000"];
    let governed = governed(&[queue, pace].concat()).await;
    governed.server.controls.close();
    let timed = async || {
        let began = Instant::now();
        let answer = governed.chat(&governed.first, json!({})).await;
        (answer.status.as_u16(), began.elapsed())
    };
    let flood = async {
        governed.server.controls.held().await;
        let mut asked: FuturesUnordered<_> = (0..5).map(|_| timed()).collect();
        let mut times = Vec::new();
        while let Some((status, time)) = asked.next().await {
            times.extend((status == 503).then_some(time));
            // One may have found room, and waits for this.
            if times.len() == 4 {
                governed.server.controls.open();
            }
        }
        times
    };
    let (running, times) = tokio::join!(timed(), flood);
    assert_eq!(running.0, 200);
    // One is refused at once, and the others after 1, 2 and 2 s.
    let [half, whole] = [500, 1000].map(Duration::from_millis);
    assert!(times.len() >= 4, "{times:?}");
    assert!(
        times[0] + whole + half / 2 < times[2]
            && times[1] >= half
            && times[2] >= whole + half
            && times[3] >= whole + half,
        "{times:?}"
    );
}

/// Who waits for a refusal is told at once when the server ends.
#[tokio::test]
async fn a_drain_ends_what_refusals_wait_for() {
    let queue = ["--queue-requests-max", "2", "--sequences-max", "1"];
    let pace = ["--refusals-per-second", "1", "--refusal-wait-max-ms", "60000"];
    let governed = governed(&[queue, pace].concat()).await;
    governed.server.controls.close();
    let ask = || governed.chat(&governed.first, json!({}));
    let flood = async {
        governed.server.controls.held().await;
        let began = Instant::now();
        let mut asked: FuturesUnordered<_> = (0..24).map(|_| ask()).collect();
        // The first is told at once; the last one's turn would be twenty seconds later.
        assert_eq!(asked.next().await.unwrap().status, 503);
        let early = tokio::time::timeout(Duration::from_millis(500), asked.next()).await;
        let (early, turns) = (usize::from(early.is_ok()), began.elapsed().as_secs());
        assert!(early as u64 <= turns, "the others wait");
        let began = Instant::now();
        governed.server.app.shutdown.advance(Phase::Draining);
        for _ in early..21 {
            assert_eq!(asked.next().await.unwrap().status, 503);
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        governed.server.controls.open();
    };
    tokio::join!(ask(), flood);
}

#[tokio::test]
async fn only_operators_go_before_all_others() {
    let governed = governed(&["--priority-min", "-5"]).await;
    let member = governed.key("default", Role::Member).await;
    governed.look().await;
    let first = json!({"priority": -1});
    let refused = governed.chat(&member, first.clone()).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.json()["error"]["param"]),
        (403, &json!("priority"))
    );
    assert_eq!(governed.chat(&governed.first, first).await.status, 200);
    assert_eq!(governed.chat(&member, json!({"priority": 1})).await.status, 200);
}

/// What a budget does not hold is refused before it is made, and one that is used up before anything is prepared.
#[tokio::test]
async fn a_budget_is_not_overdrawn() {
    let (governed, key) = limited(&[(Metric::TokensPerDay, 120)]).await;
    // It may be as long as the context is, which is more than the day has.
    let refused = governed.chat(&key, json!({})).await;
    assert_eq!(refusal(&refused), over("tokens"));
    assert_eq!(governed.chat(&key, json!({"max_tokens": 60})).await.status, 200);
    governed
        .limit(&Subject::Key(key.id.0.clone()), &[(Metric::TokensPerDay, 10)])
        .await;
    let refused = governed.chat(&key, json!({"temperature": -1})).await;
    assert_eq!(refusal(&refused), over("tokens"), "the body is not looked at");
}
