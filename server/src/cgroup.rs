//! The control groups that a process is in, of either version: what limits it beside the machine.

use std::path::Path;

/// Where the system shows them.
const MOUNT: &str = "/sys/fs/cgroup";

/// The folder of a group.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// Of version 1, in the hierarchy of the controllers that were asked for.
    First(String),
    /// Of version 2, whose one hierarchy has all controllers.
    Second(String),
}

/// The file that tells of which groups a process is, of this one where none is named.
pub(crate) fn of_process(pid: Option<u32>) -> String {
    pid.map_or_else(
        || "/proc/self/cgroup".to_owned(),
        |pid| format!("/proc/{pid}/cgroup"),
    )
}

/// The groups by which a controller may limit a process, of the text of its `/proc/PID/cgroup`: its own, and behind it those above.
/// Which of them are there is for the reader to see. In a container the text may have the host's path, while the folder of the
/// process's own group is what is mounted: that is the last one.
pub(crate) fn groups(text: &str, controller: &str) -> impl Iterator<Item = Group> {
    let of_line = move |line| {
        let (controllers, path) = hierarchy(line, controller)?;
        let above = Path::new(path).ancestors().filter_map(Path::to_str);
        Some(
            above.map(move |path| match (controllers, path.trim_end_matches('/')) {
                ("", path) => Group::Second(format!("{MOUNT}{path}")),
                (controllers, path) => Group::First(format!("{MOUNT}/{controllers}{path}")),
            }),
        )
    };
    text.lines().filter_map(of_line).flatten()
}

/// The controllers of a line and its path, where it is of the one that is looked for; version 2 has all, and names none.
fn hierarchy<'a>(line: &'a str, controller: &str) -> Option<(&'a str, &'a str)> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    let has = controllers.is_empty() || controllers.split(',').any(|one| one == controller);
    has.then_some((controllers, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<Group> {
        groups(text, "memory").collect()
    }

    #[test]
    fn a_group_is_followed_by_those_above_it() {
        let second = |path: &str| Group::Second(format!("/sys/fs/cgroup{path}"));
        assert_eq!(
            of("0::/system.slice/rempart.service\n"),
            [
                second("/system.slice/rempart.service"),
                second("/system.slice"),
                second("")
            ]
        );
        assert_eq!(of("0::/\n"), [second("")]);
        let first = |path: &str| Group::First(format!("/sys/fs/cgroup/memory{path}"));
        assert_eq!(
            of("5:cpuset,cpu:/a\n4:memory:/docker/a\n1:name=systemd:/b\n"),
            [first("/docker/a"), first("/docker"), first("")]
        );
        let both = Group::First("/sys/fs/cgroup/cpu,memory".to_owned());
        assert_eq!(of("3:cpu,memory:/\n0::/\n"), [both, second("")]);
    }

    #[test]
    fn what_is_no_line_of_groups_has_none() {
        for text in ["", "\n", "nonsense\n", "0:\n", "4:memories:/a\n"] {
            assert_eq!(of(text), [], "{text:?}");
        }
    }
}
