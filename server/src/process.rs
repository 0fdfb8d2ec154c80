//! What the operating system knows of this process, under the names of Prometheus's own client libraries.

use std::fmt::Write as _;
use std::fs;
use std::sync::LazyLock;

use metrics::Gauge;
use object::{Object as _, ReadCache};

/// Linux counts CPU time for `/proc` in hundredths of a second on every architecture (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// What the linker has named this binary by, in hexadecimal digits (ELF's `NT_GNU_BUILD_ID`): of two builds of one version it tells
/// which one runs. A linker may have been told to leave it out.
pub(crate) static BUILD: LazyLock<Option<String>> = LazyLock::new(|| {
    let file = ReadCache::new(fs::File::open("/proc/self/exe").ok()?);
    let binary = object::File::parse(&file).ok()?;
    let id = binary.build_id().ok()??;
    let digits = |mut text: String, byte: &u8| {
        // Writing to a text does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    };
    Some(id.iter().fold(String::new(), digits))
});

/// Gauges that are read from `/proc` when asked for; absent there, they stay at 0.
pub(crate) struct Gauges {
    resident_bytes: Gauge,
    cpu_s: Gauge,
    open_files: Gauge,
    threads: Gauge,
    started: Gauge,
}

impl Gauges {
    pub(crate) fn new(gauge: &dyn Fn(&'static str) -> Gauge) -> Self {
        let gauges = Self {
            resident_bytes: gauge("process_resident_memory_bytes"),
            cpu_s: gauge("process_cpu_seconds_total"),
            open_files: gauge("process_open_fds"),
            threads: gauge("process_threads"),
            started: gauge("process_start_time_seconds"),
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        gauges.started.set(now.map_or(0.0, |since| since.as_secs_f64()));
        gauges
    }

    /// Reads them anew.
    pub(crate) fn read(&self) {
        if let Ok(status) = fs::read_to_string("/proc/self/status") {
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name))?;
                line.split_whitespace().next()?.parse::<f64>().ok()
            };
            self.resident_bytes.set(field("VmRSS:").unwrap_or(0.0) * 1024.0);
            self.threads.set(field("Threads:").unwrap_or(0.0));
        }
        if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
            self.cpu_s.set(cpu_ticks(&stat).unwrap_or(0.0) / TICKS_PER_SECOND);
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            self.open_files.set(files.count() as f64);
        }
    }
}

/// A page of metrics on which the time of the processor is declared as the counter that it is: counters of the recorder are whole numbers.
pub(crate) fn declared(page: &str) -> String {
    const DECLARATION: &str = "# TYPE process_cpu_seconds_total ";
    page.replacen(
        &format!("{DECLARATION}gauge"),
        &format!("{DECLARATION}counter"),
        1,
    )
}

/// User and system time of a `/proc/self/stat` line. The second field is the program's name in parentheses, which may
/// hold anything, so fields are counted from its end.
fn cpu_ticks(stat: &str) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}
