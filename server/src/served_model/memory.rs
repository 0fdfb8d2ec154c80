//! How much memory this process may plan for.

use anyhow::Context as _;

/// Share of the free memory that a plan may use, per cent.
const SHARE_PERCENT: u64 = 90;

/// 90 % of what is free: the machine's available memory, or what the control group leaves if that is less. Bytes.
pub(super) fn available() -> anyhow::Result<u64> {
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
    let limit: u64 = read("memory.max")?.trim().parse().ok()?;
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    Some(limit.saturating_sub(used))
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
}
