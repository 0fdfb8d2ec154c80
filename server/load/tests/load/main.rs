//! `rempart bench` against servers of known behaviour, on loopback.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod failures;
mod reports;
mod shapes;
mod stub;
mod tls;

use std::time::Duration;

use clap::Parser;
use rempart_load::{LoadArgs, Outcome};
use serde_json::Value;
use tempfile::TempDir;

use stub::Pace;

#[derive(Parser)]
#[command(args_override_self = true)]
struct Bench {
    #[command(flatten)]
    load: LoadArgs,
}

/// A run in a folder of its own.
struct Run {
    folder: TempDir,
    options: Vec<String>,
}

const QUICK: Pace = Pace {
    ttft: Duration::from_millis(2),
    itl: Duration::from_millis(1),
};

impl Run {
    /// Short prompts, no calibration and no warm-up, so that every request is of the measurement.
    fn of(url: &str, options: &[&str]) -> Self {
        let common = [
            "bench",
            "--base-url",
            url,
            "--quiet",
            "--seed",
            "1",
            "--num-warmups",
            "0",
            "--no-calibration",
            "--random-input-len",
            "8",
            "--random-output-len",
            "4",
        ];
        Self {
            folder: tempfile::tempdir().unwrap(),
            options: common
                .iter()
                .chain(options)
                .map(|option| (*option).to_owned())
                .collect(),
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn run(&self) -> anyhow::Result<Outcome> {
        let files = [
            "--result".to_owned(),
            self.path("result.json"),
            "--save-detailed".to_owned(),
        ];
        let parsed = Bench::try_parse_from(self.options.iter().chain(&files))?;
        rempart_load::run(&parsed.load)
    }

    /// The results of a run that could be made.
    fn results(&self) -> Vec<Value> {
        self.run().unwrap();
        self.read()
    }

    fn read(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("result.json")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The one step of a run.
    fn result(&self) -> Value {
        let mut results = self.results();
        assert_eq!(results.len(), 1);
        results.remove(0)
    }
}

fn number(result: &Value, name: &str) -> f64 {
    result[name]
        .as_f64()
        .unwrap_or_else(|| panic!("{name} in {result}"))
}
