//! Limits that several servers lease from one PostgreSQL server.

use std::time::{Duration, Instant};

use rempart_governance::{
    Ask, Counter, Counts, Leases, Metric, Outcome, Role, Store, Subject, Usage, UsageEvent, UsageWriter,
    now_ms,
};
use sqlx::{Connection as _, Row as _};

use crate::support::{Place, key};

fn ask(subject: &Subject, metric: Metric, limit: i64, needs: Vec<i64>) -> Ask {
    Ask {
        counter: Counter::at(subject, metric, now_ms()),
        limit,
        free: 0,
        held: 0,
        returned: 0,
        settled: 0,
        needs,
        more: 0,
    }
}

/// Rows, and what they count for.
fn usage<'a>(rows: &'a [UsageEvent], counts: &'a Counts) -> Usage<'a> {
    Usage {
        rows,
        records: &[],
        counts,
    }
}

fn row(id: usize, project: &str, key: &str, tokens: i64) -> UsageEvent {
    UsageEvent {
        id: format!("id{id}"),
        began_ms: now_ms(),
        project: project.to_owned(),
        key: key.to_owned(),
        model: "m".to_owned(),
        endpoint: "/v1/chat/completions".to_owned(),
        input: tokens - 1,
        cached: 0,
        output: 1,
        first_ms: None,
        duration_ms: 5,
        status: 200,
        outcome: Outcome::Completed.name().to_owned(),
        cost_nano: 3,
        content: String::new(),
    }
}

async fn hammer(store: Store, subject: Subject, metric: Metric, limit: i64) -> i64 {
    let mut leases = Leases::new(store).unwrap();
    let mut had = 0;
    for _ in 0..40 {
        let held = if metric == Metric::Parallel { had } else { 0 };
        let wanted = Ask {
            held,
            ..ask(&subject, metric, limit, vec![3, 1])
        };
        let (grants, _) = leases.lend(&[wanted]).await.unwrap();
        had += grants[0].granted;
    }
    had
}

#[tokio::test]
async fn servers_that_ask_at_one_time_get_no_more_than_there_is() {
    let place = Place::server();
    let stores = [place.open().await, place.open().await, place.open().await];
    let subject = Subject::Key("abcdefgh".to_owned());
    // Of a minute's requests one comes back every second.
    for (metric, limit) in [(Metric::Parallel, 50), (Metric::RequestsPerMinute, 60)] {
        let all = stores
            .iter()
            .map(|store| hammer(store.clone(), subject.clone(), metric, limit));
        let began = Instant::now();
        let had: i64 = futures::future::join_all(all).await.iter().sum();
        let meanwhile = i64::try_from(began.elapsed().as_secs()).unwrap() + 1;
        assert!(had >= limit, "{metric:?}: {had}");
        assert!(
            had <= if metric == Metric::Parallel {
                limit
            } else {
                limit + meanwhile
            },
            "{metric:?}: {had}"
        );
    }
}

#[tokio::test]
async fn a_day_is_counted_by_its_rows() {
    let place = Place::server();
    let store = place.open().await;
    store.create_project("test", "sales", &[]).await.unwrap();
    let key = key(&store, "sales", Role::Member).await.id.0;
    let project = store.projects().await.unwrap()[0].id.clone();
    let mut writer = UsageWriter::new(store.clone());
    writer.write(&[row(0, &project, &key, 100)]).await.unwrap();
    let (mut one, mut two) = (
        Leases::new(store.clone()).unwrap(),
        Leases::new(place.open().await).unwrap(),
    );
    let subjects = [Subject::Key(key.clone()), Subject::Project(project.clone())];
    let asks = |needs: &[i64], held: i64| -> Vec<Ask> {
        let of = |subject: &Subject| {
            [Metric::TokensPerDay, Metric::TokensPerMonth].map(|metric| Ask {
                held,
                ..ask(subject, metric, 1_000, needs.to_vec())
            })
        };
        subjects.iter().flat_map(of).collect()
    };
    // What was used before anybody counted is counted.
    let (grants, at_ms) = one.lend(&asks(&[500], 0)).await.unwrap();
    assert!(
        grants
            .iter()
            .all(|grant| (grant.granted, grant.left) == (500, 400)),
        "{grants:?}"
    );
    assert!((at_ms - now_ms()).abs() < 60_000);
    let (grants, _) = two.lend(&asks(&[500, 300], 0)).await.unwrap();
    assert!(
        grants
            .iter()
            .all(|grant| (grant.granted, grant.left) == (300, 100)),
        "{grants:?}"
    );
    // A row counts in the change that writes it; until its server says so it counts twice, and never less.
    let counts: Counts = asks(&[], 0).into_iter().map(|ask| (ask.counter, 200)).collect();
    writer
        .write_all(usage(&[row(1, &project, &key, 200)], &counts))
        .await
        .unwrap();
    assert!(
        writer
            .write_all(usage(
                &[row(2, &project, &key, 7), row(1, &project, &key, 7)],
                &counts
            ))
            .await
            .is_err()
    );
    let (grants, _) = two.lend(&asks(&[], 300)).await.unwrap();
    assert!(grants.iter().all(|grant| grant.left == 0), "{grants:?}");
    let (grants, _) = one.lend(&asks(&[], 300)).await.unwrap();
    assert!(grants.iter().all(|grant| grant.left == 100), "{grants:?}");
    // A server that says no more of itself has nothing after a while; one that ends has nothing at once.
    let mut raw = place.raw().await;
    sqlx::query("UPDATE limit_lease SET until_ms = until_ms - 4000 WHERE held = 300")
        .execute(&mut raw)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let (grants, _) = two.lend(&asks(&[], 0)).await.unwrap();
    assert!(grants.iter().all(|grant| grant.left == 700), "{grants:?}");
    two.lend(&asks(&[600], 0)).await.unwrap();
    two.give_back().await.unwrap();
    let (grants, _) = one.lend(&asks(&[700], 0)).await.unwrap();
    assert!(grants.iter().all(|grant| grant.granted == 700), "{grants:?}");
    raw.close().await.unwrap();
}

#[tokio::test]
async fn what_is_long_over_is_not_kept() {
    let place = Place::server();
    let mut leases = Leases::new(place.open().await).unwrap();
    let mut raw = place.raw().await;
    for old in [
        "'tokens-per-day', 9, 5",
        "'parallel', 0, 0",
        "'tokens-per-minute', 0, -5",
    ] {
        let words = format!(
            "INSERT INTO limit_count (subject, id, metric, span, value, at_ms) VALUES ('user', 'u', {old}, 0)"
        );
        sqlx::query(sqlx::AssertSqlSafe(words))
            .execute(&mut raw)
            .await
            .unwrap();
    }
    let subject = Subject::Key("k".to_owned());
    leases
        .lend(&[ask(&subject, Metric::Parallel, 3, vec![1])])
        .await
        .unwrap();
    let kept = sqlx::query("SELECT metric FROM limit_count ORDER BY metric")
        .fetch_all(&mut raw)
        .await
        .unwrap();
    let kept: Vec<String> = kept.iter().map(|row| row.get(0)).collect();
    // What is owed is not forgotten.
    assert_eq!(kept, ["parallel", "tokens-per-minute"]);
    raw.close().await.unwrap();
}
