//! `rempart backup` and `rempart restore`: a database as one file, and the other way.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{BufReader, BufWriter};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rempart_governance::{AuditQuery, Database, End, Noted, Store};

use super::audit::prove;
use super::govern::{blocking, say, with_store};
use crate::config::DatabaseArgs;

/// Who may read a copy: its owner.
const MODE: u32 = 0o600;
/// Rows between two looks of the bar.
const ROWS_TOLD: u64 = 1_000;

/// Options of `rempart backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// The copy, which must not be there yet
    file: PathBuf,
}

/// Options of `rempart restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Only try it: into a file for the time being, which is deleted again. That it was done is recorded in the database, which the
    /// copy must be one of
    #[arg(long)]
    test: bool,
    /// The copy
    file: PathBuf,
}

/// Copies a database that may be in use.
pub(super) fn backup(args: &BackupArgs) -> anyhow::Result<()> {
    let file = &args.file;
    with_store(&args.database, async |store| {
        ensure!(!file.exists(), "{} is there already", file.display());
        // Of its own, whatever another run does.
        let mut part = file.clone().into_os_string();
        part.push(format!(".{}.part", uuid::Uuid::new_v4().simple()));
        let part = PathBuf::from(part);
        let made = write(&args.database, store, &part).await;
        // Not over a file that has come meanwhile.
        let linked = made.and_then(|rows| {
            std::fs::hard_link(&part, file).with_context(|| format!("writing {}", file.display()))?;
            Ok(rows)
        });
        let _ = std::fs::remove_file(&part);
        let rows = linked?;
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()?;
        say(&format!("{rows} rows are in {}", file.display()))?;
        say("names of people in it need the secret, which it does not have: keep a copy of that elsewhere")
    })
}

/// Writes a copy, safe from a loss of power; the number of rows.
async fn write(database: &DatabaseArgs, store: &Store, part: &Path) -> anyhow::Result<u64> {
    let place = || format!("writing {}", part.display());
    let mut options = OpenOptions::new();
    let out = options.write(true).create_new(true).mode(MODE).open(part);
    let out = out.with_context(place)?;
    let bar = Bar::new("copied");
    let mut buffered = BufWriter::new(&out);
    let rows = store
        .back_up(&database.actor(), &mut buffered, || bar.row())
        .await?;
    drop(buffered);
    out.sync_all().with_context(place)?;
    Ok(rows)
}

/// Makes a database of a copy, and proves both chains.
pub(super) fn restore(args: &RestoreArgs) -> anyhow::Result<()> {
    if args.test {
        return with_store(&args.database, async |store| test(args, store).await);
    }
    blocking(async {
        let place = args.database.place()?;
        let store = Store::open(&place).await?;
        let restored = fill(args, &store).await;
        let done = match restored {
            Ok(rows) => say(&format!("{rows} rows are in {place}")),
            Err(error) => Err(error),
        };
        let done = match done {
            Ok(()) => prove(&store, &Noted::default()).await,
            failed => failed,
        };
        store.close().await;
        done
    })
}

/// Fills a database with a copy; the number of rows.
async fn fill(args: &RestoreArgs, store: &Store) -> anyhow::Result<u64> {
    let place = || args.file.display().to_string();
    let from = File::open(&args.file).with_context(place)?;
    let (bar, actor) = (Bar::new("restored"), args.database.actor());
    let restored = store.restore(&actor, BufReader::new(from), || bar.row()).await;
    restored.with_context(place)
}

/// Tries a copy, proves that it is one of this database, and records that.
async fn test(args: &RestoreArgs, store: &Store) -> anyhow::Result<()> {
    let folder = std::env::temp_dir().join(format!("rempart-{}", uuid::Uuid::new_v4().simple()));
    DirBuilder::new()
        .mode(0o700)
        .create(&folder)
        .with_context(|| format!("making {}", folder.display()))?;
    let tried = try_in(args, &folder).await;
    std::fs::remove_dir_all(&folder).with_context(|| format!("deleting {}", folder.display()))?;
    let (rows, last) = tried?;
    let noted = Noted {
        audit: vec![last.clone().into()],
        ..Noted::default()
    };
    let proof = store.prove(&noted).await?;
    ensure!(
        proof.untold == 0,
        "{} is so old that the rows it ends with were deleted since: whether it is a copy of this database can't be told",
        args.file.display()
    );
    ensure!(
        proof.contains,
        "{} is a copy of another database: its last row is not in the chain of this one",
        args.file.display()
    );
    let detail = serde_json::json!({"rows": rows, "last": {"seq": last.0, "hash": last.1}});
    store
        .record(
            &args.database.actor(),
            "backup.tested",
            "database",
            detail.to_string(),
        )
        .await?;
    say(&format!(
        "{rows} rows can be restored, both chains hold, and it is a copy of this database"
    ))
}

/// The number of rows of a copy, and the last row of its audit chain.
async fn try_in(args: &RestoreArgs, folder: &Path) -> anyhow::Result<(u64, End)> {
    let store = Store::open(&Database::File(folder.join("rempart.db"))).await?;
    let filled = fill(args, &store).await;
    let tried = async {
        let rows = filled?;
        let end = store.prove(&Noted::default()).await?.audit.1;
        // Before the row that it was restored.
        let query = AuditQuery {
            before: Some(end.0),
            ..AuditQuery::default()
        };
        let last = store.find_audit(&query, 1).await?.pop();
        let last = last.context("a copy has a row that tells when it was made")?;
        anyhow::Ok((rows, (last.seq, last.hash)))
    }
    .await;
    store.close().await;
    tried
}

/// Rows so far, where somebody looks.
pub(super) struct Bar(ProgressBar);

impl Bar {
    pub(super) fn new(what: &str) -> Self {
        let style = ProgressStyle::with_template("  {human_pos} rows {msg} [{elapsed}]");
        let bar = ProgressBar::no_length().with_message(what.to_owned());
        Self(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner())))
    }

    /// So many so far.
    pub(super) fn at(&self, rows: u64) {
        self.0.set_position(rows);
    }

    fn row(&self) {
        // To draw costs more than a row.
        self.0.inc(1);
        if self.0.position().is_multiple_of(ROWS_TOLD) {
            self.0.tick();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
