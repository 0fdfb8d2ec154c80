//! What the system says of the machine, and of what it lets a process have: as it says it, since who is to help knows the words.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

/// Instructions that kernels are chosen by.
const FLAGS: [&str; 11] = [
    "avx",
    "amx",
    "f16c",
    "fma",
    "sse4_2",
    "asimd",
    "i8mm",
    "bf16",
    "sve",
    "fphp",
    "hypervisor",
];
/// Of `/proc/meminfo`.
const MEMORY: [&str; 9] = [
    "MemTotal",
    "MemFree",
    "MemAvailable",
    "Cached",
    "Mlocked",
    "SwapTotal",
    "SwapFree",
    "AnonHugePages",
    "HugePages_Total",
];
/// Of a control group, of the second version and of the first.
const LIMITS: [&str; 12] = [
    "cpu.max",
    "cpu.weight",
    "cpuset.cpus.effective",
    "memory.max",
    "memory.high",
    "memory.swap.max",
    "memory.current",
    "memory.events",
    "pids.max",
    "cpu.cfs_quota_us",
    "cpu.cfs_period_us",
    "memory.limit_in_bytes",
];

type Read<'r> = &'r dyn Fn(&str) -> Option<String>;

/// Facts, with the limits of a process: this one where none is named.
pub(super) fn facts(pid: Option<u32>) -> Value {
    let read = |path: &str| fs::read_to_string(path).ok();
    facts_of(pid, &read)
}

fn facts_of(pid: Option<u32>, read: Read<'_>) -> Value {
    let process = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let line = |path: &str| read(path).map(|text| text.trim().to_owned());
    json!({
        "kernel": {
            "release": line("/proc/sys/kernel/osrelease"),
            "version": line("/proc/sys/kernel/version"),
            "architecture": std::env::consts::ARCH,
        },
        "distribution": read("/etc/os-release").and_then(|text| distribution(&text)),
        "processor": processor(read),
        "memory": fields(&read("/proc/meminfo").unwrap_or_default(), &MEMORY),
        "huge_pages": line("/sys/kernel/mm/transparent_hugepage/enabled"),
        "load": line("/proc/loadavg"),
        "pressure": {
            "cpu": line("/proc/pressure/cpu"),
            "memory": line("/proc/pressure/memory"),
            "io": line("/proc/pressure/io"),
        },
        "card": read("/proc/driver/nvidia/version").and_then(|text| text.lines().next().map(str::to_owned)),
        "process": {
            "of": pid.map_or_else(|| "this command".to_owned(), |pid| format!("process {pid}")),
            "limits": read(&format!("/proc/{process}/limits")).map(|text| limits(&text)),
            "memory": fields(
                &read(&format!("/proc/{process}/status")).unwrap_or_default(),
                &["VmPeak", "VmRSS", "VmSwap", "Threads", "Cpus_allowed_list", "Seccomp"],
            ),
            "control_groups": read(&format!("/proc/{process}/cgroup")).map(|groups| control_groups(&groups, read)),
        },
    })
}

/// Of `/etc/os-release`.
fn distribution(text: &str) -> Option<String> {
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim_matches('"').to_owned())
}

fn processor(read: Read<'_>) -> Value {
    let text = read("/proc/cpuinfo").unwrap_or_default();
    let value = |names: &[&str]| {
        text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            names.contains(&name.trim()).then(|| value.trim().to_owned())
        })
    };
    let flags = value(&["flags", "Features"]).unwrap_or_default();
    let flags = flags
        .split_whitespace()
        .filter(|flag| FLAGS.iter().any(|known| flag.starts_with(known)));
    json!({
        "model": value(&["model name", "CPU part"]),
        "usable": std::thread::available_parallelism().map_or(1, usize::from),
        "online": read("/sys/devices/system/cpu/online").map(|text| text.trim().to_owned()),
        "nodes": read("/sys/devices/system/node/online").map(|text| text.trim().to_owned()),
        "flags": flags.collect::<Vec<_>>(),
    })
}

/// Of lines like `MemTotal:  16384 kB`.
fn fields(text: &str, names: &[&str]) -> Map<String, Value> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .filter(|(name, _)| names.contains(name))
        .map(|(name, value)| (name.to_owned(), value.trim().into()))
        .collect()
}

/// Of `/proc/PID/limits`: names and values in columns, of which the first is as wide as the heading says.
fn limits(text: &str) -> Map<String, Value> {
    let width = text.find("Soft Limit").unwrap_or(0);
    let lines = text.lines().skip(1);
    lines
        .filter_map(|line| line.split_at_checked(width))
        .map(|(name, value)| {
            let words: Vec<&str> = value.split_whitespace().collect();
            (name.trim().to_owned(), words.join(" ").into())
        })
        .collect()
}

/// Of `/proc/PID/cgroup`: what each group has, and those above it.
fn control_groups(groups: &str, read: Read<'_>) -> Map<String, Value> {
    let mut found = Map::new();
    for line in groups.lines() {
        let parts: Vec<&str> = line.splitn(3, ':').collect();
        let [_, controllers, path] = parts[..] else {
            continue;
        };
        let above = Path::new(path).ancestors().filter_map(Path::to_str);
        for group in above {
            let place = format!("/sys/fs/cgroup/{controllers}{}", group.trim_end_matches('/'));
            let place = place.replace("//", "/").trim_end_matches('/').to_owned();
            let has = LIMITS.iter().filter_map(|name| {
                let value = read(&format!("{place}/{name}"))?;
                let words: Vec<&str> = value.split_whitespace().collect();
                Some(((*name).to_owned(), words.join(" ").into()))
            });
            let has: Map<String, Value> = has.collect();
            if !has.is_empty() {
                found.insert(place, has.into());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let facts = facts(None);
        for at in [
            "/kernel/release",
            "/memory/MemTotal",
            "/process/limits/Max open files",
            "/process/memory/VmRSS",
        ] {
            assert!(facts.pointer(at).is_some_and(Value::is_string), "{at}: {facts}");
        }
    }

    #[test]
    fn a_machine_is_described_as_its_system_says() {
        let files = [
            ("/etc/os-release", "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"),
            (
                "/proc/cpuinfo",
                "model name\t: A CPU\nflags\t\t: fpu avx2 amx_int8 nx\n",
            ),
            ("/proc/7/cgroup", "0::/system.slice/rempart.service\n"),
            (
                "/sys/fs/cgroup/system.slice/rempart.service/memory.max",
                "17179869184\n",
            ),
            (
                "/sys/fs/cgroup/system.slice/rempart.service/cpu.max",
                "200000 100000\n",
            ),
            ("/sys/fs/cgroup/system.slice/memory.max", "max\n"),
            (
                "/proc/7/limits",
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max open files            1024                 524288               files     \n",
            ),
        ];
        let read = |path: &str| {
            let mut files = files.iter();
            files
                .find(|(name, _)| *name == path)
                .map(|(_, text)| (*text).to_owned())
        };
        let facts = facts_of(Some(7), &read);
        assert_eq!(facts["distribution"], "Debian GNU/Linux 12");
        assert_eq!(facts["processor"]["model"], "A CPU");
        assert_eq!(facts["processor"]["flags"], json!(["avx2", "amx_int8"]));
        assert_eq!(facts["process"]["limits"]["Max open files"], "1024 524288 files");
        assert_eq!(
            facts["process"]["control_groups"],
            json!({
                "/sys/fs/cgroup/system.slice/rempart.service": {"cpu.max": "200000 100000", "memory.max": "17179869184"},
                "/sys/fs/cgroup/system.slice": {"memory.max": "max"},
            })
        );
    }
}
