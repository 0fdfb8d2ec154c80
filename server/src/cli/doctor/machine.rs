//! The machine: processor, card, and what the system lets a process have of them.

use std::fs;
use std::path::Path;

use rempart_kernels::roof::Roof;
use rempart_kernels::{cpu, pool};

use super::DoctorArgs;
use super::finding::Finding;
use super::memory;
use crate::cgroup::{self, Group};
use crate::config::Settings;
use crate::http::listen::{files_max, waiting_max, waiting_max_of_system};
use crate::runner;

/// Drivers for CUDA 13 begin with it.
const DRIVER_MIN: u32 = 580;

pub(super) fn findings(args: &DoctorArgs, settings: Option<&Settings>) -> Vec<Finding> {
    let connections_max = args.connections_max.get();
    let read = |path: &str| fs::read_to_string(path).ok();
    let mut findings = vec![kernels(cpu::best().name), threads()];
    findings.extend(read(&cgroup::of_process(args.pid)).and_then(|groups| quota(&groups, &read)));
    findings.push(rates(&Roof::measure()));
    findings.extend(memory::findings(args, settings));
    findings.extend(read("/sys/kernel/mm/transparent_hugepage/enabled").map(|modes| huge_pages(&modes)));
    findings.extend(read("/proc/swaps").map(|swaps| swap(&swaps)));
    findings.extend(
        rlimit::Resource::NOFILE
            .get()
            .ok()
            .map(|(_, hard)| open_files(hard, connections_max)),
    );
    findings.extend(waiting_max_of_system().map(|most| waiting(most, connections_max)));
    let version = read("/proc/driver/nvidia/version");
    let device = Path::new("/dev/nvidiactl");
    let opened = device.exists().then(|| fs::File::open(device).is_ok());
    findings.push(card(version.as_deref(), opened, runner::CUDA));
    findings
}

/// The table of kernels that this processor runs.
fn kernels(name: &str) -> Finding {
    const WHAT: &str = "processor";
    match name {
        "scalar" => Finding::warning(
            WHAT,
            "no vector instructions that there are kernels for",
            "answers will take many times as long: use a processor with AVX2, and have a virtual machine show its host's (QEMU: -cpu host)",
        ),
        "avx2" | "avx512" | "neon" => Finding::warning(
            WHAT,
            format!("kernels for {name}"),
            "newer processors multiply whole numbers in one instruction (VNNI, AMX, dot products): if this one does, have the virtual \
             machine show it",
        ),
        name => Finding::good(WHAT, format!("kernels for {name}")),
    }
}

fn threads() -> Finding {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = pool::threads();
    Finding::good(
        "cores",
        format!("{threads} threads compute, on {processors} processors"),
    )
}

/// What the groups of `/proc/self/cgroup` leave of the processors: the least of the process's own group and of those above it.
fn quota(groups: &str, read: &impl Fn(&str) -> Option<String>) -> Option<Finding> {
    let of_group = |group| match group {
        Group::Second(folder) => share(&read(&format!("{folder}/cpu.max"))?),
        Group::First(folder) => {
            let part = |name: &str| read(&format!("{folder}/cpu.cfs_{name}_us"));
            share(&format!("{} {}", part("quota")?.trim(), part("period")?.trim()))
        }
    };
    let shares = cgroup::groups(groups, "cpu").filter_map(of_group);
    let processors = shares.min_by(f64::total_cmp)?;
    let found = format!("the control group has the time of {processors:.1} processors");
    let whole = processors >= 1.0 && processors.fract() < 0.01;
    Some(if whole {
        Finding::good("quota", found)
    } else {
        Finding::warning(
            "quota",
            found,
            "threads are halted within steps for what is no whole processor: set a whole number (systemd: CPUQuota, containers: --cpus)",
        )
    })
}

/// Processors of a quota: microseconds in so many, as `cpu.max` has them; `None` where there is no limit.
fn share(max: &str) -> Option<f64> {
    let mut fields = max.split_whitespace();
    let quota: f64 = fields.next()?.parse().ok()?;
    let period: f64 = fields.next()?.parse().ok()?;
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

fn rates(roof: &Roof) -> Finding {
    let Roof {
        bytes,
        products,
        instruction,
    } = roof;
    Finding::good(
        "rates",
        format!(
            "{:.1} GB/s read from memory, {:.0} G/s multiplied ({instruction}): a token takes as long as reading the weights, at least",
            bytes / 1e9,
            products / 1e9
        ),
    )
}

/// Of `transparent_hugepage/enabled`, which has the mode in brackets.
fn huge_pages(modes: &str) -> Finding {
    const WHAT: &str = "huge pages";
    if modes.contains("[never]") {
        return Finding::warning(
            WHAT,
            "the system gives none, so that weights take longer to read",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        );
    }
    Finding::good(WHAT, "given where weights ask for them")
}

/// Of `/proc/swaps`, a line for each below its heading.
fn swap(swaps: &str) -> Finding {
    const WHAT: &str = "swap";
    let places: Vec<&str> = swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .filter(|place| !place.starts_with("/dev/zram"))
        .collect();
    if places.is_empty() {
        return Finding::good(WHAT, "none on a disk");
    }
    Finding::warning(
        WHAT,
        format!("memory may be written to {}", places.join(", ")),
        "prompts and answers are in it: turn it off (swapoff -a), or have it encrypted",
    )
}

/// Of the hard limit: a server raises its own to that.
fn open_files(most: u64, connections_max: usize) -> Finding {
    const WHAT: &str = "open files";
    let found = format!("a process may have {most}");
    let wanted = files_max(connections_max);
    if most >= wanted {
        return Finding::good(WHAT, found);
    }
    let todo = format!(
        "{connections_max} connections (--connections-max) need more: raise the hard limit to {wanted} (as root: \
         /etc/security/limits.conf; systemd: LimitNOFILE; containers: --ulimit nofile), or lower the option"
    );
    Finding::warning(WHAT, found, todo)
}

/// Connections that may wait to be accepted, of any listener.
fn waiting(most: usize, connections_max: usize) -> Finding {
    const WHAT: &str = "burst";
    let found = format!("{most} connections may wait to be accepted");
    let wanted = waiting_max(connections_max);
    if most >= wanted {
        return Finding::good(WHAT, found);
    }
    let todo = format!(
        "of more that come at once some wait a second: raise it to {wanted} (net.core.somaxconn in /etc/sysctl.d, which containers \
         have of their own: --sysctl), and start the server again"
    );
    Finding::warning(WHAT, found, todo)
}

/// Of the driver's version, of whether its device can be opened if there is one, and of whether this binary has CUDA.
fn card(version: Option<&str>, opened: Option<bool>, cuda: bool) -> Finding {
    const WHAT: &str = "card";
    let Some(version) = version else {
        if !cuda {
            return Finding::good(WHAT, "no NVIDIA driver; this binary computes on the processor");
        }
        let found = "no NVIDIA driver: this binary has CUDA and will compute on the processor";
        let todo = format!("install the driver, {DRIVER_MIN} or newer (docs/gpu.md)");
        return Finding::warning(WHAT, found, todo);
    };
    let driver = driver_of(version);
    let found = match &driver {
        Some((_, text)) => format!("NVIDIA driver {text}"),
        None => "an NVIDIA driver of a version that is not understood".to_owned(),
    };
    if !cuda {
        let todo = "this binary computes on the processor: the one with CUDA uses the card (docs/gpu.md)";
        return Finding::warning(WHAT, found, todo);
    }
    match (driver, opened) {
        (Some((major, _)), _) if major < DRIVER_MIN => {
            Finding::bad(WHAT, found, format!("CUDA 13 needs {DRIVER_MIN} or newer"))
        }
        (_, None) => Finding::bad(
            WHAT,
            format!("{found}, but no /dev/nvidiactl"),
            "give the container the card (docs/gpu.md)",
        ),
        (_, Some(false)) => Finding::bad(
            WHAT,
            format!("{found}, but /dev/nvidiactl can't be opened"),
            "let the server's user open it (systemd: DeviceAllow, SupplementaryGroups)",
        ),
        _ => Finding::good(WHAT, found),
    }
}

/// Of the driver's own line: `NVRM version: NVIDIA UNIX … Kernel Module  580.95.05  Release Build …`.
fn driver_of(version: &str) -> Option<(u32, String)> {
    let line = version.lines().find(|line| line.contains("NVRM"))?;
    line.split_whitespace().find_map(|word| {
        let (major, minor) = word.split_once('.')?;
        let major: u32 = major.parse().ok()?;
        minor
            .starts_with(|c: char| c.is_ascii_digit())
            .then(|| (major, word.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    #[test]
    fn a_quota_is_good_where_it_is_whole() {
        let of = |groups: &str, files: &[(&str, &str)]| {
            let read = |path: &str| {
                files
                    .iter()
                    .find(|(name, _)| *name == path)
                    .map(|(_, text)| (*text).to_owned())
            };
            quota(groups, &read).map(|finding| finding.state())
        };
        let second = |max: &str| {
            of(
                "0::/system.slice/rempart.service\n",
                &[("/sys/fs/cgroup/system.slice/cpu.max", max)],
            )
        };
        assert_eq!(second("max 100000\n"), None);
        assert_eq!(second("200000 100000\n"), Some(State::Good));
        assert_eq!(second("150000 100000\n"), Some(State::Warning));
        assert_eq!(second("50000 100000\n"), Some(State::Warning));
        assert_eq!(second("0 0"), None);
        let files = |quota| {
            [
                ("/sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_quota_us", quota),
                ("/sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_period_us", "100000\n"),
            ]
        };
        let first = |quota| of("4:memory:/docker\n3:cpu,cpuacct:/docker\n0::/\n", &files(quota));
        assert_eq!(first("-1\n"), None);
        assert_eq!(first("400000\n"), Some(State::Good));
        assert_eq!(first("450000\n"), Some(State::Warning));
        assert_eq!(of("", &[]), None);
        assert_eq!(of("nonsense\n::\n", &[]), None);
    }

    #[test]
    fn swap_on_a_disk_is_told() {
        let heading = "Filename\tType\tSize\tUsed\tPriority\n";
        assert_eq!(swap(heading).state(), State::Good);
        let zram = format!("{heading}/dev/zram0 partition 1 0 100\n");
        assert_eq!(swap(&zram).state(), State::Good);
        let disk = format!("{zram}/swap.img file 1 0 -2\n");
        assert_eq!(swap(&disk).state(), State::Warning);
    }

    #[test]
    fn huge_pages_files_and_bursts_are_looked_at() {
        assert_eq!(huge_pages("always [madvise] never").state(), State::Good);
        assert_eq!(huge_pages("always madvise [never]").state(), State::Warning);
        assert_eq!(open_files(1024, 1024).state(), State::Warning);
        assert_eq!(open_files(1 << 20, 1024).state(), State::Good);
        assert_eq!(waiting(128, 1024).state(), State::Warning);
        assert_eq!(waiting(4096, 1024).state(), State::Good);
        assert_eq!(waiting(4096, 8192).state(), State::Warning);
        assert_eq!(kernels("scalar").state(), State::Warning);
        assert_eq!(kernels("amx").state(), State::Good);
    }

    #[test]
    fn a_card_needs_a_driver_a_device_and_a_binary_for_it() {
        let version = |number: &str| {
            format!(
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {number}  Release Build\nGCC version: 13.3.0\n"
            )
        };
        let state =
            |number: Option<&str>, opened, cuda| card(number.map(version).as_deref(), opened, cuda).state();
        assert_eq!(state(None, None, false), State::Good);
        assert_eq!(state(None, None, true), State::Warning);
        assert_eq!(state(Some("580.95.05"), Some(true), true), State::Good);
        assert_eq!(state(Some("580.95.05"), Some(true), false), State::Warning);
        assert_eq!(state(Some("550.54.14"), Some(true), true), State::Bad);
        assert_eq!(state(Some("580.95.05"), None, true), State::Bad);
        assert_eq!(state(Some("580.95.05"), Some(false), true), State::Bad);
        assert_eq!(driver_of("NVRM version: none\nGCC version: 13.3.0\n"), None);
    }
}
