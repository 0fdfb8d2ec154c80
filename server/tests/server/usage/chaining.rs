//! Rows that are written, and then chained.

use std::time::{Duration, Instant};

use axum::http::Method;
use serde_json::json;

use crate::support::Governed;

/// Renames a table of the server's database.
pub(super) async fn rename(governed: &Governed, from: &str, to: &str) {
    let statement = format!("ALTER TABLE {from} RENAME TO {to}");
    sqlx::query(sqlx::AssertSqlSafe(statement))
        .execute(&mut raw(governed).await)
        .await
        .unwrap();
}

/// The database of a server, past the server.
async fn raw(governed: &Governed) -> sqlx::AnyConnection {
    let url = format!("sqlite://{}", governed.folder.path().join("rempart.db").display());
    <sqlx::AnyConnection as sqlx::Connection>::connect(&url)
        .await
        .unwrap()
}

/// How many rows are chained, and how many are not yet.
async fn rows(raw: &mut sqlx::AnyConnection) -> (i64, i64) {
    let query = "SELECT (SELECT COUNT(*) FROM usage_event), (SELECT COUNT(*) FROM usage_unchained)";
    sqlx::query_as(query).fetch_one(raw).await.unwrap()
}

/// Waits until so many rows are chained, and so many are not yet.
async fn rows_become(raw: &mut sqlx::AnyConnection, wanted: (i64, i64)) {
    let began = Instant::now();
    while rows(raw).await != wanted {
        assert!(began.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The counter rises while chaining fails, and rows are chained once they can be.
#[tokio::test]
async fn rows_that_can_not_be_chained_are_counted() {
    let (governed, key) = Governed::with_member().await;
    let mut raw = raw(&governed).await;
    let failures = async || -> u64 {
        let key = governed.first.reveal();
        let page = governed.send(key, Method::GET, "/metrics", None).await;
        let mut lines = page.body.lines();
        let told = lines.find_map(|line| line.strip_prefix("rempart_usage_chain_failures_total "));
        told.unwrap().parse().unwrap()
    };
    assert_eq!(governed.chat(&key, json!({})).await.status, 200);
    rows_become(&mut raw, (1, 0)).await;
    assert_eq!(failures().await, 0);
    assert_eq!(governed.chat(&key, json!({})).await.status, 200);
    rename(&governed, "usage_batch", "gone").await;
    // Where the machine was slow it is chained by now, and another is not.
    if rows(&mut raw).await == (2, 0) {
        assert_eq!(governed.chat(&key, json!({})).await.status, 200);
    }
    let began = Instant::now();
    while failures().await == 0 {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "no failed try was counted"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (chained, waiting) = rows(&mut raw).await;
    assert_eq!(waiting, 1);
    rename(&governed, "gone", "usage_batch").await;
    rows_become(&mut raw, (chained + 1, 0)).await;
    assert_eq!(governed.chat(&key, json!({})).await.status, 200);
}

/// By the server itself, whoever reads.
#[tokio::test]
async fn rows_are_chained_while_nobody_asks() {
    let (governed, key) = Governed::with_member().await;
    let mut raw = raw(&governed).await;
    let (mut answers, mut waited) = (0, false);
    while answers < 2 || !waited {
        assert_eq!(governed.chat(&key, json!({})).await.status, 200);
        answers += 1;
        let (chained, waiting) = rows(&mut raw).await;
        assert_eq!(chained + waiting, answers);
        // Where the machine was slow it is chained by now; of many one is not.
        waited |= waiting > 0;
        assert!(answers < 10);
        rows_become(&mut raw, (answers, 0)).await;
    }
    assert_eq!(governed.chat(&key, json!({})).await.status, 200);
    governed.server.app.access.close().await;
    assert_eq!(
        rows(&mut raw).await,
        (answers + 1, 0),
        "nothing is left to the next process"
    );
}
