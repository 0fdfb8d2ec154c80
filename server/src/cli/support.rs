//! `rempart support-bundle`: what who is to help has to know of an installation, in one file, and nothing that was said on it.
//! This part knows the server's options, and with them the models and the database; the archive is made by `rempart-operations`.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use rempart_governance::Census;
use rempart_hub::manifest::Manifest;
use rempart_hub::store::{self, Stored};
use rempart_operations::{Bundle, BundleArgs, Maker};
use serde_json::{Map, Value, json};

use super::config::{behind_serve, show, unchecked};
use super::doctor;
use crate::config::{ServeArgs, place_of};
use crate::runner;

/// Options of `rempart support-bundle`.
#[derive(Debug, Args)]
pub struct SupportBundleArgs {
    /// What is typed behind `rempart serve`, where a file or the environment does not have it
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<OsString>,
    #[command(flatten)]
    bundle: BundleArgs,
}

/// Writes the archive, and tells what is in it.
pub(super) fn bundle(args: &SupportBundleArgs, file: Option<PathBuf>) -> anyhow::Result<()> {
    let typed = behind_serve(file, &args.options);
    // Where the file is what is wrong, all else is told nevertheless.
    let parsed = unchecked(&typed).or_else(|_| unchecked(&behind_serve(None, &[])));
    let (serve, secrets) = match &parsed {
        Ok((serve, secrets)) => (Some(serve), secrets.as_slice()),
        Err(_) => (None, [].as_slice()),
    };
    let mut bundle = Bundle::begin(
        &args.bundle,
        Maker::this(env!("CARGO_PKG_VERSION"), runner::CUDA),
        secrets,
    )?;
    bundle.put(
        "config.toml",
        "what a server would start with, without secrets",
        configuration(&typed),
    );
    let known = || serve.context("the options of `rempart serve` can't be read: see config.toml");
    bundle.put(
        "doctor.jsonl",
        "what `rempart doctor --machine` finds",
        known().and_then(|serve| doctor::told_of(serve, &typed)),
    );
    bundle.put(
        "models.json",
        "names, sizes and digests of models",
        known().and_then(models),
    );
    if serve.is_none_or(|serve| serve.governance.database.is_some()) {
        bundle.put(
            "database.json",
            "version of its tables, numbers of their rows",
            known().and_then(database),
        );
    }
    let told = bundle.finish()?;
    std::io::stdout().lock().write_all(told.as_bytes())?;
    Ok(())
}

fn configuration(typed: &[OsString]) -> anyhow::Result<String> {
    let mut out = Vec::new();
    show(typed, &mut out)?;
    Ok(String::from_utf8(out)?)
}

/// Models of the store, and those that are served from elsewhere.
fn models(serve: &ServeArgs) -> anyhow::Result<String> {
    let folder = serve.store.clone().path();
    let stored = store::list(&folder)?;
    let of_store = stored.iter().map(|stored| {
        let Stored {
            name,
            files,
            bytes,
            signed,
            ..
        } = stored;
        let manifest = files_of(&folder.join(name));
        json!({"name": name, "files": files, "bytes": bytes, "signed": signed, "manifest": manifest})
    });
    let served = serve
        .models
        .iter()
        .map(|model| match store::resolve(&folder, model) {
            Ok(found) => {
                let file = fs::metadata(&found.path).ok().filter(fs::Metadata::is_file);
                let bytes = file.map(|file| file.len());
                json!({"asked": model, "path": found.path.to_string_lossy(), "bytes": bytes, "manifest": files_of(&found.dir)})
            }
            Err(error) => json!({"asked": model, "error": error.to_string()}),
        });
    let all = json!({
        "folder": folder.to_string_lossy(),
        "stored": of_store.collect::<Vec<_>>(),
        "served": served.collect::<Vec<_>>(),
    });
    Ok(serde_json::to_string_pretty(&all)? + "\n")
}

/// What a folder's manifest says of its files, beside what is there; nothing is read of the files themselves.
fn files_of(folder: &Path) -> Value {
    let manifest = match Manifest::load(folder) {
        Ok(Some(manifest)) => manifest,
        Ok(None) => return Value::Null,
        Err(error) => return json!({"error": error.to_string()}),
    };
    let files = manifest.files.iter().map(|file| {
        let there = fs::metadata(folder.join(&file.path)).map(|there| there.len());
        json!({"path": file.path, "bytes": file.bytes, "bytes_there": there.ok(), "sha256": file.sha256})
    });
    json!({
        "source": manifest.source,
        "revision": manifest.revision,
        "sha256": manifest.root(),
        "files": files.collect::<Vec<_>>(),
    })
}

/// How many rows each table has.
fn database(serve: &ServeArgs) -> anyhow::Result<String> {
    let place = serve.governance.database.as_deref();
    let place = place_of(place.context("there is a database")?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting tokio")?;
    let counted = runtime.block_on(place.census());
    let Census {
        program,
        version,
        version_known,
        bytes,
        rows,
    } = counted.with_context(|| format!("{place}: can this user read it, and is --database right?"))?;
    let rows: Map<String, Value> = rows
        .into_iter()
        .map(|(table, rows)| (table.to_owned(), rows.into()))
        .collect();
    let told = json!({
        "program": program,
        "version": version,
        "version_of_this_program": version_known,
        "bytes": bytes,
        "rows": rows,
    });
    Ok(serde_json::to_string_pretty(&told)? + "\n")
}
