//! Where traces of requests go, if they are kept.

use std::path::PathBuf;

use clap::Args;
use rempart_traces::Settings;

const MIB: u64 = 1 << 20;

/// Options of traces.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Traces")]
pub struct TracesArgs {
    /// File that gets a line of OpenTelemetry's JSON for what requests waited for and took; a collector reads it; never a prompt, an
    /// answer or a key [default: there is none]
    #[arg(long, env = "REMPART_TRACES_FILE", value_name = "FILE")]
    pub traces_file: Option<PathBuf>,
    /// MiB of that file at which it becomes FILE.1, in place of the one before, and is begun anew
    #[arg(long, env = "REMPART_TRACES_FILE_MIB_MAX", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1_048_576), requires = "traces_file")]
    pub traces_file_mib_max: u64,
    /// Share of requests that are traced, 0 to 1, where a client does not say by its `traceparent`
    #[arg(long, env = "REMPART_TRACES_RATIO", default_value_t = 1.0, value_parser = share, requires = "traces_file")]
    pub traces_ratio: f64,
    /// Spans that may wait to be written; further ones are lost, and counted
    #[arg(
        long,
        env = "REMPART_TRACES_QUEUE_MAX",
        default_value_t = 4096,
        value_parser = clap::value_parser!(u32).range(1..=65_536),
        requires = "traces_file"
    )]
    pub traces_queue_max: u32,
}

impl TracesArgs {
    pub(super) fn settings(self) -> Option<Settings> {
        let (ratio, queue_max) = (self.traces_ratio, self.traces_queue_max as usize);
        let file_bytes_max = self.traces_file_mib_max * MIB;
        self.traces_file.map(|file| Settings {
            file,
            file_bytes_max,
            ratio,
            queue_max,
        })
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a number from 0 to 1".to_owned())
}
