//! `rempart backup` and `rempart restore`: a database as one file, and the other way.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rempart_governance::Store;

use super::audit::{Noted, prove};
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
    let from = File::open(&args.file).with_context(|| format!("reading {}", args.file.display()))?;
    blocking(async {
        let place = args.database.place()?;
        let store = Store::open(&place).await?;
        let bar = Bar::new("restored");
        let restored = store
            .restore(&args.database.actor(), BufReader::new(from), || bar.row())
            .await;
        drop(bar);
        let done = match restored {
            Ok(rows) => say(&format!("{rows} rows are in {place}")),
            Err(error) => Err(anyhow::Error::new(error).context(format!("{}", args.file.display()))),
        };
        let done = match done {
            Ok(()) => prove(&store, &Noted::default()).await,
            failed => failed,
        };
        store.close().await;
        done
    })
}

/// Rows so far, where somebody looks.
struct Bar(ProgressBar);

impl Bar {
    fn new(what: &str) -> Self {
        let style = ProgressStyle::with_template("  {human_pos} rows {msg} [{elapsed}]");
        let bar = ProgressBar::no_length().with_message(what.to_owned());
        Self(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner())))
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
