//! How much memory this process may plan for.

use anyhow::Context as _;
use candle_core::Device;

/// Share of the free memory that a plan may use, per cent.
const SHARE_PERCENT: u64 = 90;

/// 90 % of what is free: of a card its own memory, of the CPU the machine's available memory, or what the control group leaves
/// if that is less. Bytes.
///
/// # Errors
/// Where the system does not tell.
pub fn available(device: &Device) -> anyhow::Result<u64> {
    if let Some(free) = rempart_kernels::free_memory(device)? {
        return Ok(free / 100 * SHARE_PERCENT);
    }
    let meminfo = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let machine = parse_available(&meminfo).context("/proc/meminfo has no MemAvailable")?;
    let free = cgroup_left().map_or(machine, |left| left.min(machine));
    Ok(free / 100 * SHARE_PERCENT)
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What version 2 control groups leave to this process; `None` without a limit.
fn cgroup_left() -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    left(
        &read("memory.max")?,
        &read("memory.current")?,
        &read("memory.stat")?,
    )
}

/// What the limit leaves. The group's use counts the pages that the system keeps of files, those of the model that were just
/// checked among them; it gives them up for anything else.
fn left(max: &str, current: &str, stat: &str) -> Option<u64> {
    let limit: u64 = max.trim().parse().ok()?;
    let used: u64 = current.trim().parse().ok()?;
    let field = |name| {
        let value = stat.lines().find_map(|line| line.strip_prefix(name));
        value
            .and_then(|value| value.trim().parse::<u64>().ok())
            .unwrap_or(0)
    };
    let files = field("active_file ").saturating_add(field("inactive_file "));
    Some(limit.saturating_sub(used.saturating_sub(files)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes() {
        assert_eq!(
            parse_available("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"),
            Some(2 << 20)
        );
        assert_eq!(parse_available("MemTotal: 9 kB\n"), None);
        assert_eq!(parse_available("MemAvailable: many kB\n"), None);
    }

    #[test]
    fn pages_of_files_are_no_use_of_a_control_group() {
        let stat = "anon 300\nfile 600\nactive_file 100\ninactive_file 450\nactive_anon 9\n";
        assert_eq!(left("1000\n", "900\n", stat), Some(650));
        assert_eq!(left("1000\n", "900\n", ""), Some(100));
        assert_eq!(left("1000\n", "400\n", stat), Some(1000));
        assert_eq!(left("1000\n", "1200\n", ""), Some(0));
        assert_eq!(left("max\n", "900\n", stat), None);
    }
}
