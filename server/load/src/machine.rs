//! What is known of the machine that makes the load, and how much of it this program uses.

use std::fs;

use serde::Serialize;

/// Where the load came from.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub processor: Option<String>,
    pub cores: Option<usize>,
    pub memory_bytes: Option<u64>,
    pub system: String,
}

impl Machine {
    pub(crate) fn this() -> Self {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            processor: line("/proc/cpuinfo", "model name")
                .map(|name| name.trim_start_matches(':').trim().to_owned()),
            cores: std::thread::available_parallelism()
                .ok()
                .map(std::num::NonZero::get),
            memory_bytes: line("/proc/meminfo", "MemTotal:").and_then(|text| kilobytes(&text)),
            system: format!(
                "{} {} {}",
                std::env::consts::OS,
                kernel.trim(),
                std::env::consts::ARCH
            ),
        }
    }
}

fn line(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .map(|rest| rest.trim().to_owned())
}

fn kilobytes(text: &str) -> Option<u64> {
    text.strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// Seconds of processor time that this process has used so far, user's and system's; `None` where the system does not tell.
pub(crate) fn cpu_seconds() -> Option<f64> {
    // Since Linux 2.6 a tick that /proc tells is a hundredth of a second to every program.
    const TICKS_PER_S: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name, which may hold anything but ends with the last bracket.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS_PER_S)
}
