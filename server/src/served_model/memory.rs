//! How much memory this process may plan for.

use std::fs;

use anyhow::Context as _;
use candle_core::Device;

use crate::cgroup::{self, Group};

/// Share of the free memory that a plan may use, per cent.
const SHARE_PERCENT: u64 = 90;
/// No machine has as much: version 1 has a number for a group without a limit, too.
const NO_LIMIT_MIN: u64 = 1 << 60;

/// What the control group that leaves least has, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupMemory {
    pub(crate) limit: u64,
    pub(crate) left: u64,
}

/// 90 % of what is free: of a card its own memory, of the CPU the machine's available memory, or what the control groups
/// leave if that is less. Bytes.
///
/// # Errors
/// Where the system does not tell.
pub fn available(device: &Device) -> anyhow::Result<u64> {
    if let Some(free) = rempart_kernels::free_memory(device)? {
        return Ok(free / 100 * SHARE_PERCENT);
    }
    let machine = field("MemAvailable:")?;
    let free = group_memory(None).map_or(machine, |group| group.left.min(machine));
    Ok(free / 100 * SHARE_PERCENT)
}

/// What this machine has of memory, free or not, bytes.
///
/// # Errors
/// Where the system does not tell.
pub(crate) fn total() -> anyhow::Result<u64> {
    field("MemTotal:")
}

fn field(name: &str) -> anyhow::Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    parse(&meminfo, name).with_context(|| format!("/proc/meminfo has no {name}"))
}

fn parse(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What the control groups of a process leave to it, of this one where none is named; `None` without a limit.
pub(crate) fn group_memory(pid: Option<u32>) -> Option<GroupMemory> {
    let read = |path: &str| fs::read_to_string(path).ok();
    // Where the process is not told which groups it is in, that of a container is what is mounted.
    let groups = read(&cgroup::of_process(pid)).unwrap_or_else(|| "0::/".to_owned());
    least_left(&groups, &read)
}

/// The group that leaves least, of a process's own and those above it: each counts all that is in it.
fn least_left(groups: &str, read: &impl Fn(&str) -> Option<String>) -> Option<GroupMemory> {
    let of_group = |group| {
        // Above `memory.high` a group is slowed until it hardly moves.
        let (folder, limits, current) = match group {
            Group::Second(folder) => (folder, &["memory.max", "memory.high"][..], "memory.current"),
            Group::First(folder) => (folder, &["memory.limit_in_bytes"][..], "memory.usage_in_bytes"),
        };
        let file = |name: &str| read(&format!("{folder}/{name}"));
        let limits = limits.iter().filter_map(|name| file(name)?.trim().parse().ok());
        let limit = limits.filter(|limit| *limit < NO_LIMIT_MIN).min()?;
        let left = left(limit, &file(current)?, &file("memory.stat").unwrap_or_default())?;
        Some(GroupMemory { limit, left })
    };
    cgroup::groups(groups, "memory")
        .filter_map(of_group)
        .min_by_key(|group| group.left)
}

/// What the limit leaves. The group's use counts the pages that the system keeps of files, those of the model that were just
/// checked among them; it gives them up for anything else.
fn left(limit: u64, current: &str, stat: &str) -> Option<u64> {
    let used: u64 = current.trim().parse().ok()?;
    let field = |name: &str| {
        let value = stat.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().parse::<u64>().ok()
    };
    // Version 1 has a total beside what is of the group alone, without those below it.
    let pages = |total, own| field(total).or_else(|| field(own)).unwrap_or(0);
    let active = pages("total_active_file ", "active_file ");
    let files = active.saturating_add(pages("total_inactive_file ", "inactive_file "));
    Some(limit.saturating_sub(used.saturating_sub(files)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes() {
        assert_eq!(
            parse("MemTotal: 9 kB\nMemAvailable:   2048 kB\n", "MemAvailable:"),
            Some(2 << 20)
        );
        assert_eq!(parse("MemTotal: 9 kB\n", "MemAvailable:"), None);
        assert_eq!(parse("MemAvailable: many kB\n", "MemAvailable:"), None);
    }

    #[test]
    fn pages_of_files_are_no_use_of_a_control_group() {
        let stat = "anon 300\nfile 600\nactive_file 100\ninactive_file 450\nactive_anon 9\n";
        assert_eq!(left(1000, "900\n", stat), Some(650));
        assert_eq!(left(1000, "900\n", ""), Some(100));
        assert_eq!(left(1000, "400\n", stat), Some(1000));
        assert_eq!(left(1000, "1200\n", ""), Some(0));
        assert_eq!(left(1000, "many\n", stat), None);
    }

    fn least(groups: &str, files: &[(&str, &str)]) -> Option<u64> {
        let group = least_left(groups, &|path| {
            let file = files.iter().find(|(name, _)| *name == path);
            file.map(|(_, text)| (*text).to_owned())
        });
        group.map(|group| group.left)
    }

    #[test]
    fn a_limit_of_the_own_group_or_of_one_above_holds() {
        let service = "0::/system.slice/rempart.service\n";
        let own = [
            ("/sys/fs/cgroup/system.slice/rempart.service/memory.max", "1000\n"),
            (
                "/sys/fs/cgroup/system.slice/rempart.service/memory.current",
                "400\n",
            ),
            (
                "/sys/fs/cgroup/system.slice/rempart.service/memory.stat",
                "active_file 100\ninactive_file 50\n",
            ),
        ];
        assert_eq!(least(service, &own), Some(750));
        let above = |max| {
            [
                ("/sys/fs/cgroup/system.slice/memory.max", max),
                ("/sys/fs/cgroup/system.slice/memory.current", "900\n"),
                ("/sys/fs/cgroup/system.slice/memory.stat", "inactive_file 150\n"),
            ]
        };
        assert_eq!(least(service, &[own, above("1200\n")].concat()), Some(450));
        assert_eq!(least(service, &[own, above("max\n")].concat()), Some(750));
        assert_eq!(least(service, &above("1200\n")), Some(450));
        let high = ("/sys/fs/cgroup/system.slice/rempart.service/memory.high", "500\n");
        assert_eq!(least(service, &[&own[..], &[high]].concat()), Some(250));
        assert_eq!(least(service, &[]), None);
        assert_eq!(least("", &own), None);
    }

    #[test]
    fn the_first_version_counts_the_pages_of_the_groups_below() {
        let groups = "4:memory:/docker/a\n3:cpu,cpuacct:/docker/b\n0::/\n";
        let files = [
            ("/sys/fs/cgroup/memory/docker/memory.limit_in_bytes", "1000\n"),
            ("/sys/fs/cgroup/memory/docker/memory.usage_in_bytes", "800\n"),
            (
                "/sys/fs/cgroup/memory/docker/memory.stat",
                "active_file 1\ninactive_file 2\ntotal_active_file 300\ntotal_inactive_file 400\n",
            ),
        ];
        assert_eq!(least(groups, &files), Some(900));
        assert_eq!(least(groups, &files[..2]), Some(200));
        assert_eq!(least("3:cpu,cpuacct:/docker/a\n", &files), None);
        let mut without = files;
        without[0].1 = "9223372036854771712\n";
        assert_eq!(least(groups, &without), None);
    }

    #[test]
    fn in_a_container_what_is_mounted_is_the_own_group() {
        let second = [
            ("/sys/fs/cgroup/memory.max", "1000\n"),
            ("/sys/fs/cgroup/memory.current", "100\n"),
        ];
        assert_eq!(least("0::/\n", &second), Some(900));
        assert_eq!(least("0::/kubepods/pod1/c1\n", &second), Some(900));
        assert_eq!(least("0::/../../system.slice\n", &second), Some(900));
        let first = [
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1000\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "300\n"),
        ];
        assert_eq!(least("4:memory:/docker/c1\n", &first), Some(700));
    }
}
