//! What was used, as OpenAI's administration tells it.

use axum::http::Method;
use rempart::openai::usage::NEVER_USED;
use rempart_governance::{NewKey, Role, UsageEvent};
use serde_json::{Value, json};

use super::support::Governed;

const CHAT: &str = "/v1/chat/completions";

async fn organization(governed: &Governed, query: &str) -> Value {
    let path = format!("/v1/organization/{query}");
    governed
        .send(governed.first.reveal(), Method::GET, &path, None)
        .await
        .json()
}

/// Two answers and two vectors for one key, one each for another.
async fn used_by_two() -> (Governed, NewKey, NewKey) {
    let (governed, key) = Governed::with_member().await;
    governed.store.create_project("test", "sales", &[]).await.unwrap();
    let other = governed.key("sales", Role::Service).await;
    governed.look().await;
    for key in [&key, &key, &other] {
        assert_eq!(governed.chat(key, json!({})).await.status, 200);
        let body = json!({"model": "embedder", "input": "a"});
        assert_eq!(governed.post(key, "/v1/embeddings", body).await.status, 200);
    }
    governed.chat(&key, json!({"temperature": -1})).await;
    (governed, key, other)
}

/// The results of all spans.
async fn results(governed: &Governed, query: &str) -> Vec<Value> {
    let page = organization(governed, query).await;
    let spans = page["data"].as_array().unwrap().iter();
    spans
        .flat_map(|span| span["results"].as_array().unwrap().clone())
        .collect()
}

#[tokio::test]
async fn usage_is_told_as_openai_tells_it() {
    let (governed, _, _) = used_by_two().await;
    let rows = governed.rows().await;
    let chats = rows.iter().filter(|row| row.endpoint == CHAT);
    let sum = |of: fn(&UsageEvent) -> i64| chats.clone().map(of).sum::<i64>();
    let now = rows[0].began_ms / 1_000;
    let day = now / 86_400 * 86_400;
    let page = organization(&governed, &format!("usage/completions?start_time={now}&limit=1")).await;
    let span = json!({
        "object": "bucket", "start_time": day, "end_time": day + 86_400,
        "results": [{
            "object": "organization.usage.completions.result", "input_tokens": sum(|row| row.input),
            "input_cached_tokens": sum(|row| row.cached), "output_tokens": sum(|row| row.output),
            "num_model_requests": 3, "project_id": null, "api_key_id": null, "user_id": null, "model": null,
        }],
    });
    assert_eq!((&page["object"], &page["data"]), (&json!("page"), &json!([span])));
}

/// Dashboards read all kinds that there are.
#[tokio::test]
async fn of_what_there_is_not_none_was_used() {
    let (governed, _, _) = used_by_two().await;
    let day = governed.rows().await[0].began_ms / 86_400_000 * 86_400;
    for kind in NEVER_USED {
        let page = organization(&governed, &format!("usage/{kind}?start_time={day}&limit=1")).await;
        let span = json!({"object": "bucket", "start_time": day, "end_time": day + 86_400, "results": []});
        assert_eq!(
            (&page["object"], &page["data"]),
            (&json!("page"), &json!([span])),
            "{kind}"
        );
    }
    let page = organization(
        &governed,
        "usage/images?start_time=1&sizes[]=256x256&group_by[]=size&limit=1",
    )
    .await;
    assert_eq!(page["object"], "page", "{page}");
    let wrong = organization(&governed, "usage/images").await;
    assert_eq!(wrong["error"]["param"], "start_time");
    let unknown = organization(&governed, "usage/dreams?start_time=1").await;
    assert_eq!(unknown["error"]["code"], "unknown_url");
}

#[tokio::test]
async fn usage_is_told_in_groups() {
    let (governed, key, other) = used_by_two().await;
    let day = governed.rows().await[0].began_ms / 86_400_000 * 86_400;
    let query = format!("usage/completions?start_time={day}&group_by[]=api_key_id&group_by[]=model");
    let told = |result: &Value| {
        (
            result["api_key_id"].clone(),
            result["num_model_requests"].clone(),
            result["model"].clone(),
        )
    };
    let mut wanted =
        [(&key, 2), (&other, 1)].map(|(key, count)| (json!(key.id.0), json!(count), json!("test-model")));
    wanted.sort_by_key(|(key, ..)| key.to_string());
    assert_eq!(
        results(&governed, &query)
            .await
            .iter()
            .map(told)
            .collect::<Vec<_>>(),
        wanted
    );
    let rows = governed.rows().await;
    let project = rows[0].project.clone();
    let query = format!("usage/embeddings?start_time={day}&project_ids={project}&group_by=project_id");
    let own = results(&governed, &query).await;
    assert_eq!(
        (own.len(), &own[0]["num_model_requests"], &own[0]["project_id"]),
        (1, &json!(2), &json!(project))
    );
    let query = format!("usage/completions?start_time={day}&models[]=embedder");
    assert!(results(&governed, &query).await.is_empty());
    let costs = results(&governed, &format!("costs?start_time={day}&group_by=line_item")).await;
    assert_eq!(costs.len(), 2);
    for (result, model) in costs.iter().zip(["embedder", "test-model"]) {
        assert_eq!(
            (&result["line_item"], &result["amount"]["currency"]),
            (&json!(model), &json!("eur"))
        );
        let nano: i64 = rows
            .iter()
            .filter(|row| row.model == model)
            .map(|row| row.cost_nano)
            .sum();
        assert!(nano > 0 && (result["amount"]["value"].as_f64().unwrap() - nano as f64 / 1e9).abs() < 1e-12);
    }
}

#[tokio::test]
async fn usage_is_told_page_by_page() {
    let (governed, key) = Governed::with_member().await;
    governed.chat(&key, json!({})).await;
    let began = governed.rows().await[0].began_ms / 1_000;
    let hour = began / 3_600 * 3_600;
    let (start, end) = (hour - 9 * 3_600 - 5, hour + 3_600);
    let (mut starts, mut requests, mut page) = (Vec::new(), 0, String::new());
    loop {
        let query =
            format!("usage/completions?start_time={start}&end_time={end}&bucket_width=1h&limit=4{page}");
        let told = organization(&governed, &query).await;
        for bucket in told["data"].as_array().unwrap() {
            starts.push(bucket["start_time"].as_i64().unwrap());
            requests += bucket["results"].as_array().unwrap().len();
        }
        if told["has_more"] == false {
            break;
        }
        page = format!("&page={}", told["next_page"].as_str().unwrap());
    }
    // From the hour that holds the start to the one before the end, each once.
    assert_eq!(
        starts,
        (0..11).map(|at| hour - (10 - at) * 3_600).collect::<Vec<_>>()
    );
    assert_eq!(requests, 1);
    let minutes = organization(
        &governed,
        &format!("usage/completions?start_time={began}&bucket_width=1m&limit=2"),
    )
    .await;
    assert_eq!(minutes["data"][0]["results"][0]["num_model_requests"], 1);
    for (query, param) in [
        ("usage/completions", "start_time"),
        ("usage/completions?start_time=-1", "start_time"),
        ("usage/completions?start_time=1e9", "start_time"),
        ("usage/completions?start_time=9&end_time=9", "end_time"),
        (
            "usage/completions?start_time=9&end_time=99999999999999999999",
            "end_time",
        ),
        ("usage/completions?start_time=9&bucket_width=2d", "bucket_width"),
        ("usage/completions?start_time=9&limit=32", "limit"),
        ("usage/completions?start_time=9&limit=0", "limit"),
        ("costs?start_time=9&limit=181", "limit"),
        ("costs?start_time=9&bucket_width=1h", "bucket_width"),
        ("costs?start_time=9&models=a", "models"),
        ("usage/completions?start_time=9&page=x", "page"),
        ("usage/completions?start_time=9&group_by=user", "group_by"),
        ("costs?start_time=9&group_by=user_id", "group_by"),
        ("costs?start_time=9&user_ids=a", "user_ids"),
        ("usage/completions?start_time=9&batch=true", "batch"),
        ("usage/completions?start_time=9&a%00b=1", "query"),
    ] {
        let error = organization(&governed, query).await;
        assert_eq!(error["error"]["param"], param, "{query}");
    }
    assert_eq!(
        governed
            .send(
                key.reveal(),
                Method::GET,
                "/v1/organization/costs?start_time=1",
                None
            )
            .await
            .status,
        403
    );
}
