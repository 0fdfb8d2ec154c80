//! What servers on one database lease of limits. The arithmetic is a [`Pool`]'s; here it is read, locked and written.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use sqlx::any::{AnyArguments, AnyRow};
use sqlx::pool::PoolConnection;
use sqlx::query::Query;
use sqlx::{Any, Connection as _, Row as _, Transaction};

use super::{Error, Store};
use crate::limit::{Ask, Counter, Grant, LEASE_MS, Metric, Pool, Subject};
use crate::retention::DAY_MS;

/// Counters of one statement.
pub const ASKS_MAX: usize = 128;
/// How long what counts no day and no month is kept that nobody asks for: a bucket is full again long before, and places are counted by
/// their leases.
const UNUSED_MS: i64 = DAY_MS;
/// Whoever waited for a lock is to see what was counted meanwhile.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";
const CLOCK: &str = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";
const SAME: &str = "c.subject = v.subject AND c.id = v.id AND c.metric = v.metric AND c.span = v.span";
const COLUMNS: &str = "c.subject, c.id, c.metric, c.span";

/// Tokens of rows, by what counts them.
pub type Counts = BTreeMap<Counter, i64>;
type Asked<'q> = Query<'q, Any, AnyArguments>;

/// One server's way to what is leased on a PostgreSQL server.
pub struct Leases {
    store: Store,
    server: String,
    /// Kept from ask to ask, unless one failed.
    connection: Option<PoolConnection<Any>>,
}

impl Leases {
    /// Those of a server of a new name. Nothing is asked.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub fn new(store: Store) -> Result<Self, Error> {
        let mut name = [0; 8];
        getrandom::fill(&mut name)?;
        Ok(Self {
            store,
            server: crate::key::hex(&name),
            connection: None,
        })
    }

    /// What the database grants to at most [`ASKS_MAX`] asks, one for each counter, and when, by its own clock in Unix milliseconds.
    ///
    /// # Errors
    /// What the database says; then nobody knows whether it was done.
    pub async fn lend(&mut self, asks: &[Ask]) -> Result<(Vec<Grant>, i64), Error> {
        let mut connection = self.connect().await?;
        let lent = match lend(&mut connection, &self.server, asks).await {
            Ok(None) => {
                let lock = self.store.database.lock_usage();
                make(&mut connection, lock, asks).await?;
                lend(&mut connection, &self.server, asks).await
            }
            lent => lent,
        };
        // One that failed, or was given up while it waited, may be of no use any more.
        let lent = lent?.ok_or_else(|| Error::Unsound("a limit's count".to_owned()))?;
        self.connection = connection.0.take();
        Ok(lent)
    }

    /// The database's clock, Unix milliseconds.
    ///
    /// # Errors
    /// What the database says.
    pub async fn clock(&mut self) -> Result<i64, Error> {
        let mut connection = self.connect().await?;
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT {CLOCK}")))
            .fetch_one(&mut *connection)
            .await?;
        self.connection = connection.0.take();
        Ok(row.try_get(0)?)
    }

    /// Gives back all that the server has: it ends.
    ///
    /// # Errors
    /// What the database says.
    pub async fn give_back(&mut self) -> Result<(), Error> {
        let mut connection = self.connect().await?;
        sqlx::query("DELETE FROM limit_lease WHERE server = $1")
            .bind(self.server.clone())
            .execute(&mut *connection)
            .await?;
        self.connection = connection.0.take();
        Ok(())
    }

    async fn connect(&mut self) -> Result<Kept, Error> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.store.leases.acquire().await?,
        };
        Ok(Kept(Some(connection)))
    }
}

/// A connection that is closed unless it is taken out.
struct Kept(Option<PoolConnection<Any>>);

impl std::ops::Deref for Kept {
    type Target = sqlx::AnyConnection;

    fn deref(&self) -> &Self::Target {
        self.0.as_ref().expect("it is taken out last")
    }
}

impl std::ops::DerefMut for Kept {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.0.as_mut().expect("it is taken out last")
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(mut connection) = self.0.take() {
            connection.close_on_drop();
        }
    }
}

/// `None` where a counter is not there yet.
async fn lend(
    connection: &mut sqlx::AnyConnection,
    server: &str,
    asks: &[Ask],
) -> Result<Option<(Vec<Grant>, i64)>, Error> {
    let mut change = connection.begin_with(BEGIN).await?;
    let counters: Vec<&Counter> = asks.iter().map(|ask| &ask.counter).collect();
    let counts = locked(&mut change, &counters).await?;
    if counts.len() < asks.len() {
        change.rollback().await?;
        return Ok(None);
    }
    let (leases, now_ms) = leased(&mut change, &counters).await?;
    let (mut grants, mut pools) = (Vec::with_capacity(asks.len()), Vec::with_capacity(asks.len()));
    for ask in asks {
        let (value, at_ms) = counts[&name(&ask.counter)];
        let mut pool = Pool {
            value,
            at_ms,
            own: 0,
            others: 0,
            ended: (0, 0),
        };
        for (whose, held, until_ms) in leases.get(&name(&ask.counter)).into_iter().flatten() {
            pool.add(whose == server, *held, *until_ms, now_ms);
        }
        let before = pool;
        grants.push(pool.lend(ask, now_ms));
        pools.push((
            &ask.counter,
            pool,
            (before.value, before.at_ms) != (pool.value, pool.at_ms),
        ));
    }
    let changed: Vec<_> = pools.iter().filter(|(.., changed)| *changed).collect();
    if !changed.is_empty() {
        let words = format!(
            "UPDATE limit_count AS c SET value = v.value, at_ms = v.at_ms FROM (VALUES {}) \
             AS v (subject, id, metric, span, value, at_ms) WHERE {SAME}",
            marks(changed.len(), 6, 0)
        );
        let asked = sqlx::query(sqlx::AssertSqlSafe(words));
        let bind = |asked, (counter, pool, _): &&(&Counter, Pool, bool)| {
            bind(asked, counter).bind(pool.value).bind(pool.at_ms)
        };
        changed.iter().fold(asked, bind).execute(&mut *change).await?;
    }
    keep(&mut change, server, &pools, now_ms).await?;
    change.commit().await?;
    Ok(Some((grants, now_ms)))
}

/// Writes what the server has from now on in the place of what it had, and takes leases away that have ended.
async fn keep(
    change: &mut Transaction<'_, Any>,
    server: &str,
    pools: &[(&Counter, Pool, bool)],
    now_ms: i64,
) -> Result<(), Error> {
    let words = format!(
        "DELETE FROM limit_lease AS c USING (VALUES {}) AS v (subject, id, metric, span) \
         WHERE {SAME} AND (c.server = $1 OR c.until_ms <= $2)",
        marks(pools.len(), 4, 2)
    );
    let asked = sqlx::query(sqlx::AssertSqlSafe(words))
        .bind(server.to_owned())
        .bind(now_ms);
    let asked = pools
        .iter()
        .fold(asked, |asked, (counter, ..)| bind(asked, counter));
    asked.execute(&mut **change).await?;
    let kept: Vec<_> = pools.iter().filter(|(_, pool, _)| pool.own > 0).collect();
    if kept.is_empty() {
        return Ok(());
    }
    let words = format!(
        "INSERT INTO limit_lease (subject, id, metric, span, server, held, until_ms) VALUES {}",
        marks(kept.len(), 7, 0)
    );
    let bind = |asked, (counter, pool, _): &&(&Counter, Pool, bool)| {
        bind(asked, counter)
            .bind(server.to_owned())
            .bind(pool.own)
            .bind(now_ms.saturating_add(LEASE_MS))
    };
    let asked = sqlx::query(sqlx::AssertSqlSafe(words));
    kept.iter().fold(asked, bind).execute(&mut **change).await?;
    Ok(())
}

type Name = (String, String, String, i64);

fn name(counter: &Counter) -> Name {
    let (kind, id) = counter.subject.parts();
    (
        kind.to_owned(),
        id.to_owned(),
        counter.metric.name().to_owned(),
        counter.span,
    )
}

fn named(row: &AnyRow) -> Result<Name, Error> {
    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))
}

/// What is counted, of those counters that are there; nobody else counts there before the change ends. All lock in one order, and so
/// once in a change.
async fn locked(
    change: &mut Transaction<'_, Any>,
    counters: &[&Counter],
) -> Result<BTreeMap<Name, (i64, i64)>, Error> {
    let words = format!(
        "SELECT {COLUMNS}, c.value, c.at_ms FROM limit_count AS c JOIN (VALUES {}) AS v (subject, id, metric, span) ON {SAME} \
         ORDER BY 1, 2, 3, 4 FOR UPDATE OF c",
        marks(counters.len(), 4, 0)
    );
    let asked = sqlx::query(sqlx::AssertSqlSafe(words));
    let asked = counters.iter().fold(asked, |asked, counter| bind(asked, counter));
    let rows = asked.fetch_all(&mut **change).await?;
    let count = |row: &AnyRow| Ok((named(row)?, (row.try_get(4)?, row.try_get(5)?)));
    rows.iter().map(count).collect()
}

/// What servers have of counters, until when, and the time. It is read behind the lock: nothing that was counted
/// there is newer.
async fn leased(
    change: &mut Transaction<'_, Any>,
    counters: &[&Counter],
) -> Result<(BTreeMap<Name, Vec<(String, i64, i64)>>, i64), Error> {
    let words = format!(
        "SELECT {COLUMNS}, c.server, c.held, c.until_ms FROM limit_lease AS c \
         JOIN (VALUES {}) AS v (subject, id, metric, span) ON {SAME} \
         UNION ALL SELECT '', '', '', 0, '', 0, {CLOCK}",
        marks(counters.len(), 4, 0)
    );
    let asked = sqlx::query(sqlx::AssertSqlSafe(words));
    let asked = counters.iter().fold(asked, |asked, counter| bind(asked, counter));
    let rows = asked.fetch_all(&mut **change).await?;
    let mut all = Vec::with_capacity(rows.len());
    for row in &rows {
        let lease: (String, i64, i64) = (row.try_get(4)?, row.try_get(5)?, row.try_get(6)?);
        all.push((named(row)?, lease));
    }
    let clock = all.iter().find(|((kind, ..), _)| kind.is_empty());
    let now_ms = clock.map_or(0, |(_, (.., now_ms))| *now_ms);
    let mut leases: BTreeMap<Name, Vec<(String, i64, i64)>> = BTreeMap::new();
    for (name, lease) in all.into_iter().filter(|(_, (server, ..))| !server.is_empty()) {
        leases.entry(name).or_default().push(lease);
    }
    Ok((leases, now_ms))
}

/// Makes the counters that are missing: what rows say that was used so far. No row is written meanwhile.
async fn make(
    connection: &mut sqlx::AnyConnection,
    lock: Option<&'static str>,
    asks: &[Ask],
) -> Result<(), Error> {
    let mut change = connection.begin_with(BEGIN).await?;
    if let Some(lock) = lock {
        sqlx::query(lock).fetch_one(&mut *change).await?;
    }
    let counters: Vec<&Counter> = asks.iter().map(|ask| &ask.counter).collect();
    let known = locked(&mut change, &counters).await?;
    let (_, now_ms) = leased(&mut change, &counters).await?;
    for Ask { counter, limit, .. } in asks {
        if known.contains_key(&name(counter)) {
            continue;
        }
        let used = match counter.time_ms() {
            Some((from_ms, to_ms)) => {
                used(&mut change, &counter.subject, from_ms / 1_000, to_ms / 1_000).await?
            }
            None => 0,
        };
        let pool = Pool::new(counter.metric, *limit, used, now_ms);
        let words = "INSERT INTO limit_count (subject, id, metric, span, value, at_ms) VALUES ($1, $2, $3, $4, $5, $6) \
                     ON CONFLICT (subject, id, metric, span) DO NOTHING";
        let asked = bind(sqlx::query(words), counter)
            .bind(pool.value)
            .bind(pool.at_ms);
        asked.execute(&mut *change).await?;
    }
    clean(&mut change, now_ms).await?;
    Ok(change.commit().await?)
}

/// Takes away what nobody counts any more, unless somebody has it locked: to wait for them could be to wait for each other.
async fn clean(change: &mut Transaction<'_, Any>, now_ms: i64) -> Result<(), Error> {
    let old = |metric: Metric| {
        // Requests may run that began in the one before.
        let span = Counter::at(&Subject::Key(String::new()), metric, now_ms).span - 1;
        format!("metric = '{}' AND span < {span}", metric.name())
    };
    let unused = format!(
        "{} OR {} OR span = 0 AND value >= 0 AND at_ms < {}",
        old(Metric::TokensPerDay),
        old(Metric::TokensPerMonth),
        now_ms.saturating_sub(UNUSED_MS)
    );
    for (table, ended) in [
        ("limit_count", unused),
        // By then all is back, whenever it was leased.
        (
            "limit_lease",
            format!("until_ms <= {}", now_ms.saturating_sub(UNUSED_MS)),
        ),
    ] {
        let words = format!(
            "DELETE FROM {table} WHERE ctid IN (SELECT ctid FROM {table} WHERE {ended} FOR UPDATE SKIP LOCKED)"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(words))
            .execute(&mut **change)
            .await?;
    }
    Ok(())
}

/// Tokens of rows of requests that began from one time on and before another, Unix seconds.
async fn used(
    change: &mut Transaction<'_, Any>,
    subject: &Subject,
    from: i64,
    to: i64,
) -> Result<i64, Error> {
    let whose = match subject {
        Subject::Project(_) => "project = $1",
        Subject::Person(_) => "api_key IN (SELECT id FROM api_key WHERE owner = $1)",
        Subject::Key(_) => "api_key = $1",
    };
    let words = format!(
        "SELECT CAST(COALESCE(SUM(input + output), 0) AS BIGINT) FROM usage_bucket WHERE {whose} AND hour >= $2 AND hour < $3"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(words))
        .bind(subject.parts().1.to_owned())
        .bind(from)
        .bind(to)
        .fetch_one(&mut **change)
        .await?;
    Ok(row.try_get(0)?)
}

/// Counts tokens of rows that are written in the same change, where somebody counts them.
pub(super) async fn count(change: &mut Transaction<'_, Any>, counts: &Counts) -> Result<(), Error> {
    let counters: Vec<&Counter> = counts.keys().collect();
    // All in one statement, which has an order of its own: of two, the second could wait for who waits for the first.
    if counters.is_empty() || locked(change, &counters).await?.is_empty() {
        return Ok(());
    }
    let all: Vec<(&Counter, &i64)> = counts.iter().collect();
    for some in all.chunks(ASKS_MAX) {
        let words = format!(
            "UPDATE limit_count AS c SET value = c.value + v.tokens FROM (VALUES {}) \
             AS v (subject, id, metric, span, tokens) WHERE {SAME}",
            marks(some.len(), 5, 0)
        );
        let asked = sqlx::query(sqlx::AssertSqlSafe(words));
        let bind = |asked, (counter, tokens): &(&Counter, &i64)| bind(asked, counter).bind(**tokens);
        some.iter().fold(asked, bind).execute(&mut **change).await?;
    }
    Ok(())
}

fn bind<'q>(asked: Asked<'q>, counter: &Counter) -> Asked<'q> {
    let (kind, id) = counter.subject.parts();
    asked
        .bind(kind.to_owned())
        .bind(id.to_owned())
        .bind(counter.metric.name())
        .bind(counter.span)
}

/// So many rows of so many values, which are numbered behind others.
fn marks(rows: usize, columns: usize, behind: usize) -> String {
    let mut words = String::new();
    for row in 0..rows {
        let from = behind + row * columns + 1;
        let marks: Vec<String> = (from..from + columns).map(|at| format!("${at}")).collect();
        // What is written into memory can't fail.
        let _ = write!(
            words,
            "{}({})",
            if row == 0 { "" } else { ", " },
            marks.join(", ")
        );
    }
    words
}
