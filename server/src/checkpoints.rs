//! Signed lines that say what the audit chain is, added to a file from time to time.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rempart_governance::{End, Error, Store};

use crate::metrics::Metrics;

/// Who may read the file: its owner and their group, auditors say.
const MODE: u32 = 0o640;

/// What adds them.
pub struct Checkpoints {
    store: Store,
    file: PathBuf,
    interval: Duration,
    metrics: Metrics,
    /// The ends of both chains in the last one that this has added.
    last: tokio::sync::Mutex<Option<(End, Option<End>)>>,
}

impl Checkpoints {
    /// Adds the first.
    ///
    /// # Errors
    /// Where it can't be made or kept.
    pub async fn open(
        store: Store,
        (file, interval): (PathBuf, Duration),
        metrics: &Metrics,
    ) -> Result<Self, Error> {
        let checkpoints = Self {
            store,
            file,
            interval,
            metrics: metrics.clone(),
            last: tokio::sync::Mutex::default(),
        };
        checkpoints.add().await?;
        Ok(checkpoints)
    }

    /// Adds one whenever it is time, for as long as it runs.
    pub async fn keep(&self) {
        loop {
            tokio::time::sleep(self.interval).await;
            self.try_add().await;
        }
    }

    /// Adds one, if anything was recorded since; what goes wrong is told to whoever runs the server.
    pub async fn try_add(&self) {
        if let Err(error) = self.add().await {
            self.metrics.checkpoint_failed();
            let error = anyhow::Error::new(error);
            tracing::error!(
                error = format!("{error:#}"),
                "a checkpoint of the audit chain could not be kept"
            );
        }
    }

    async fn add(&self) -> Result<(), Error> {
        let mut last = self.last.lock().await;
        let checkpoint = self.store.checkpoint().await?;
        let ends = Some((checkpoint.audit.clone(), checkpoint.usage.clone()));
        if *last == ends {
            return Ok(());
        }
        let (file, line) = (self.file.clone(), checkpoint.line());
        let added = tokio::task::spawn_blocking(move || append(&file, &line)).await;
        added.map_err(std::io::Error::other)??;
        *last = ends;
        Ok(())
    }
}

/// Adds a line that outlives a loss of power.
fn append(file: &Path, line: &str) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.append(true).create(true).mode(MODE).open(file)?;
    // In one piece, as several servers may add to one file; and behind an end of a line, as the one before may have been cut.
    file.write_all(format!("\n{line}\n").as_bytes())?;
    file.sync_data()
}
