//! Model files by strangers: each broken one is refused with a message that names the field, at once, without panic
//! and without memory for what it claims; each valid one is read as it was written.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

mod allocator;
mod checkpoint;
mod gguf_cases;
mod gguf_tensor_cases;
mod properties;
mod safetensors_cases;
mod writers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use rempart_models::weights::Checkpoint;

/// Processor time for one file; code that is not optimised takes several times as long.
const TIME_MAX: Duration = Duration::from_millis(if cfg!(debug_assertions) { 500 } else { 100 });
/// Memory beyond what the test held before, for one file.
const PEAK_BYTES_MAX: usize = 64 << 20;
/// The name of a GGUF case's only file.
const GGUF: &str = "model.gguf";
/// What the corpus must not fall below.
const CASES_MIN: usize = 120;

/// A broken file or directory.
pub(crate) struct Case {
    /// What is broken.
    pub(crate) name: String,
    /// File names and contents. The first is opened when it is [`GGUF`], the directory otherwise.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// Zeros after the first file's content, up to this length, which take no space on disk.
    pub(crate) sparse_length: Option<u64>,
    /// What the message must mention.
    pub(crate) mentions: Vec<&'static str>,
}

impl Case {
    pub(crate) fn gguf(name: impl Into<String>, bytes: Vec<u8>, mentions: &[&'static str]) -> Self {
        Self::files(name, vec![(GGUF.to_owned(), bytes)], mentions)
    }

    pub(crate) fn files(
        name: impl Into<String>,
        files: Vec<(String, Vec<u8>)>,
        mentions: &[&'static str],
    ) -> Self {
        Self {
            name: name.into(),
            files,
            sparse_length: None,
            mentions: mentions.to_vec(),
        }
    }
}

fn write(case: &Case, directory: &Path) {
    for (index, (name, bytes)) in case.files.iter().enumerate() {
        let path = directory.join(name);
        std::fs::write(&path, bytes).unwrap();
        if let (0, Some(length)) = (index, case.sparse_length) {
            std::fs::File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(length)
                .unwrap();
        }
    }
}

fn open(case: &Case, directory: &Path) -> Result<Checkpoint, String> {
    let opened = match case.files.first() {
        Some((name, _)) if name == GGUF => Checkpoint::open_gguf(&directory.join(name)),
        _ => Checkpoint::open_safetensors(directory),
    };
    opened.map_err(|error| error.to_string())
}

/// What is wrong with how `case` is treated.
fn faults(case: &Case) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    write(case, directory.path());
    let started = allocator::thread_time();
    let before = allocator::start();
    let outcome = catch_unwind(AssertUnwindSafe(|| open(case, directory.path())));
    let peak = allocator::peak_since(before);
    let time = allocator::thread_time().saturating_sub(started);
    let mut faults = Vec::new();
    match outcome {
        Err(_) => faults.push("panics".to_owned()),
        Ok(Ok(_)) => faults.push("is accepted".to_owned()),
        Ok(Err(message)) => {
            for mention in case
                .mentions
                .iter()
                .filter(|mention| !message.contains(**mention))
            {
                faults.push(format!("does not mention '{mention}': {message}"));
            }
            if message.chars().any(char::is_control) || message.len() > 1000 {
                faults.push("has a message unfit for a log line".to_owned());
            }
        }
    }
    if time > TIME_MAX {
        faults.push(format!("takes {time:?}"));
    }
    if peak > PEAK_BYTES_MAX {
        faults.push(format!("allocates {peak} bytes"));
    }
    faults
        .into_iter()
        .map(|fault| format!("{}: {fault}", case.name))
        .collect()
}

#[test]
fn every_broken_file_is_refused_at_once_and_by_name() {
    let cases: Vec<Case> = gguf_cases::all()
        .into_iter()
        .chain(safetensors_cases::all())
        .collect();
    assert!(cases.len() >= CASES_MIN, "only {} cases", cases.len());
    let names: std::collections::BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "cases with the same name");
    let faults: Vec<String> = cases.iter().flat_map(faults).collect();
    assert!(
        faults.is_empty(),
        "{} of {} cases:\n{}",
        faults.len(),
        cases.len(),
        faults.join("\n")
    );
}

#[test]
fn a_pipe_is_refused_without_waiting_for_its_writer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    let message = Checkpoint::open_gguf(&path).unwrap_err().to_string();
    assert!(message.contains("regular file"), "{message}");
}
