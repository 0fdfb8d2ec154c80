//! A process as a whole: all of its threads are confined, or it is not.

use std::fs;

use crate::{Confined, Error, Inspected, Reach, calls, ports};

/// Confines this process, and all that it will start, until its end. It must be done before the first thread is started: what
/// a thread may do is its own, and passes to those it starts.
///
/// # Errors
/// Where it can't be done: then nothing may be promised, and some of it may be in force.
pub fn confine(reach: Reach) -> Result<Confined, Error> {
    let threads = fs::read_dir("/proc/self/task")?.count();
    if threads > 1 {
        return Err(Error::Threads(threads - 1));
    }
    let landlock_abi = ports::restrict(reach)?;
    calls::restrict(reach)?;
    // By this name, since the number may be that of another process in the /proc that is mounted.
    let inspected = threads_of("self")?;
    if inspected.confined != inspected.threads {
        return Err(Error::Seccomp("/proc says that there is no filter".to_owned()));
    }
    Ok(Confined { landlock_abi })
}

/// Tells whether the threads of a process are under a filter of system calls. What the filter says, and whether there are
/// rules of Landlock, the kernel tells nobody.
///
/// # Errors
/// Where there is no such process.
pub fn inspect(process: u32) -> Result<Inspected, Error> {
    threads_of(&process.to_string())
}

fn threads_of(process: &str) -> Result<Inspected, Error> {
    let mut inspected = Inspected {
        threads: 0,
        confined: 0,
    };
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        // A thread that ends meanwhile is none.
        let Ok(status) = fs::read_to_string(thread?.path().join("status")) else {
            continue;
        };
        inspected.threads += 1;
        inspected.confined += usize::from(is_confined(&status));
    }
    Ok(inspected)
}

fn is_confined(status: &str) -> bool {
    let says = |name: &str, value: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.is_some_and(|line| line.trim() == value)
    };
    // 2 is the mode of a filter.
    says("Seccomp:", "2") && says("NoNewPrivs:", "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_confined() {
        // Tests run in a thread beside the first.
        let refused = confine(Reach::Nobody);
        assert!(matches!(refused, Err(Error::Threads(1..))), "{refused:?}");
        assert!(std::net::TcpListener::bind("127.0.0.1:0").is_ok());
    }

    #[test]
    fn a_status_is_read() {
        let confined = "Name:\trempart\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        assert!(is_confined(confined));
        assert!(!is_confined(&confined.replace("Seccomp:\t2", "Seccomp:\t0")));
        assert!(!is_confined(
            &confined.replace("NoNewPrivs:\t1", "NoNewPrivs:\t0")
        ));
        assert!(!is_confined(""));
    }

    #[test]
    fn this_process_is_free() {
        let inspected = inspect(std::process::id()).unwrap();
        assert!(inspected.threads >= 1);
        assert!(matches!(inspect(u32::MAX), Err(Error::Proc(_))));
    }
}
