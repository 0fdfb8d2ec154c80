//! Has what was kept for long enough deleted, while a server runs.

use std::time::Duration;

use rempart_governance::{Deleted, Store, now_ms};

use crate::metrics::Metrics;

/// Between two looks. The first is so long after the start, too: by then a clock that was wrong is set.
const LOOK: Duration = Duration::from_hours(1);

/// Deletes what is old from time to time, for as long as it runs.
pub async fn keep(store: &Store, metrics: &Metrics) {
    loop {
        tokio::time::sleep(LOOK).await;
        let mut counted = Deleted::default();
        let trimmed = store
            .trim("server", now_ms(), |so_far| {
                metrics.deleted(counted, so_far);
                counted = so_far;
            })
            .await;
        match trimmed {
            Ok(deleted) if deleted == Deleted::default() => {}
            Ok(deleted) => tracing::info!(
                usage = deleted.usage,
                audit = deleted.audit,
                sums = deleted.sums,
                people = deleted.people,
                content = deleted.content,
                "what was kept for long enough is deleted"
            ),
            Err(error) => {
                metrics.retention_failed();
                let error = anyhow::Error::new(error);
                tracing::error!(
                    error = format!("{error:#}"),
                    "what was kept for long enough could not all be deleted"
                );
            }
        }
    }
}
