//! How fast what was done and used is recorded, proven, told to a person and copied: `cargo bench -p rempart-bench --bench
//! governance -- [ROWS]`, a million of each unless told, on the disk of the folder for temporary files.
//!
//! Single runs of whole passes, not medians: each takes seconds, and the bars are far away from them.

#![expect(clippy::print_stdout, reason = "it is what this program is for")]

use std::time::Instant;

use rempart_governance::{
    AuditQuery, BATCH_ROWS_MAX, Database, NewKeyRequest, Noted, Record, Role, Secret, Store, UsageEvent,
    UsageWriter, now_ms,
};

const ROWS: i64 = 1_000_000;
/// Rows of the audit chain in one change.
const RECORDS: usize = 256;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // `cargo bench` itself gives `--bench`.
    let rows = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(rows.unwrap_or(ROWS)))
}

async fn run(rows: i64) -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let secret = Secret::open_or_make(&folder.path().join("secret"))?;
    let store = Store::open(&Database::File(folder.path().join("rempart.db"))).await?;
    let store = store.with_secret("bench", secret).await?;
    store.create_project("bench", "sales", &[]).await?;
    let anna = store
        .add_person("bench", "anna@example.org", "Anna", Role::Member)
        .await?;
    store.add_member("bench", "sales", &anna.id).await?;
    let wanted = NewKeyRequest {
        project: "sales",
        role: Role::Member,
        name: "laptop",
        expires: None,
        owner: Some(&anna.id),
    };
    let key = store.create_key("bench", &wanted).await?.id.0;

    let began = Instant::now();
    record(&store, rows).await?;
    told("audit rows appended", rows, began);
    let began = Instant::now();
    use_up(&store, rows, &key).await?;
    told("usage rows appended", rows, began);

    let began = Instant::now();
    let proof = store.prove(&Noted::default()).await?;
    told("rows of both chains proven", proof.audit.0 + proof.usage.0, began);

    let began = Instant::now();
    let own = store.usage_events_of(&key, 1, rows).await?.len();
    let query = AuditQuery {
        actors: vec![anna.id.clone()],
        ..AuditQuery::default()
    };
    store.find_audit(&query, 10_000).await?;
    told(
        "a person's rows of usage and of the chain found",
        i64::try_from(own)?,
        began,
    );
    let began = Instant::now();
    store.erase_person("bench", &anna.id).await?;
    println!("{:>9.1} ms  a person erased", began.elapsed().as_secs_f64() * 1e3);

    let began = Instant::now();
    let mut copy = Vec::new();
    let copied = store.back_up("bench", &mut copy, || ()).await?;
    told("rows copied", i64::try_from(copied)?, began);
    let began = Instant::now();
    let other = Store::open(&Database::File(folder.path().join("other.db"))).await?;
    let restored = other.restore("bench", copy.as_slice(), || ()).await?;
    told("rows restored", i64::try_from(restored)?, began);
    Ok(())
}

async fn record(store: &Store, rows: i64) -> Result<(), Box<dyn std::error::Error>> {
    let objects: Vec<String> = (0..rows).map(|at| format!("object{at}")).collect();
    for objects in objects.chunks(RECORDS) {
        let records: Vec<Record<'_>> = objects
            .iter()
            .map(|object| Record {
                actor: "key:abcdefgh",
                action: "model.load",
                object,
                detail: "{}".to_owned(),
            })
            .collect();
        store.record_all(&records).await?;
    }
    Ok(())
}

async fn use_up(store: &Store, rows: i64, key: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut writer = UsageWriter::new(store.clone());
    let first_ms = now_ms() - rows * 1_000;
    let all: Vec<i64> = (0..rows).collect();
    for batch in all.chunks(BATCH_ROWS_MAX) {
        let used: Vec<UsageEvent> = batch
            .iter()
            .map(|at| UsageEvent {
                id: format!("{at:032x}"),
                began_ms: first_ms + at * 1_000,
                project: "proj_0123456789abcdef".to_owned(),
                // Every tenth is the person's.
                key: if at % 10 == 0 { key } else { "abcdefgh" }.to_owned(),
                model: "model".to_owned(),
                endpoint: "/v1/chat/completions".to_owned(),
                input: 1_000,
                cached: 500,
                output: 200,
                first_ms: Some(80),
                duration_ms: 2_000,
                status: 200,
                outcome: "completed".to_owned(),
                content: String::new(),
                cost_nano: 1_000,
            })
            .collect();
        writer.write(&used).await?;
    }
    Ok(())
}

fn told(what: &str, rows: i64, began: Instant) {
    let took = began.elapsed().as_secs_f64();
    println!("{:>9.0} / s  {what}: {rows} in {took:.2} s", rows as f64 / took);
}
