//! Takes from a process, for good, what it could reach others by: the kernel then refuses to connect, whatever code runs and
//! whoever wrote it. Landlock holds TCP to ports, and a seccomp filter refuses the system calls that lead to anything else.
//! Sockets that listen are made before; what they accept is served as ever.

#[cfg(target_os = "linux")]
mod calls;
#[cfg(target_os = "linux")]
mod ports;
#[cfg(target_os = "linux")]
mod processes;
#[cfg(target_os = "linux")]
mod trial;

#[cfg(not(target_os = "linux"))]
mod elsewhere;

use std::fmt;
use std::time::Duration;

use thiserror::Error;

#[cfg(not(target_os = "linux"))]
pub use elsewhere::{confine, inspect, try_everything};
#[cfg(target_os = "linux")]
pub use processes::{confine, inspect};
#[cfg(target_os = "linux")]
pub use trial::try_everything;

/// Whom a process may still connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Nobody: no socket can be made and none connected.
    Nobody,
    /// Processes of this machine, by Unix sockets.
    UnixSockets,
    /// This TCP port, of any address: the kernel tells ports apart and no addresses.
    Port(u16),
}

impl fmt::Display for Reach {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody => formatter.write_str("nobody"),
            Self::UnixSockets => formatter.write_str("Unix sockets"),
            Self::Port(port) => write!(formatter, "TCP port {port}"),
        }
    }
}

/// Why a process can't be confined.
#[derive(Debug, Error)]
pub enum Error {
    #[error("the kernel can't hold TCP to ports: it takes Linux 6.7 or newer, with Landlock enabled ({0})")]
    Landlock(String),
    #[error("the kernel can't filter system calls: it takes Linux with CONFIG_SECCOMP_FILTER ({0})")]
    Seccomp(String),
    #[error("there is no filter of system calls for {0}")]
    Architecture(&'static str),
    #[error("threads run already, which would stay free: {0}")]
    Threads(usize),
    #[error("what the process is can't be read from /proc: {0}")]
    Proc(#[from] std::io::Error),
    #[error("this operating system can't confine a process: it takes Linux")]
    System,
}

/// What holds a process that was confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confined {
    /// The generation of Landlock's interface that the kernel and this program have in common, 4 or more. `None`: the kernel
    /// can't hold TCP to ports, and the filter of system calls, which refuses to connect at all, holds the process by itself.
    pub landlock_abi: Option<u32>,
}

impl fmt::Display for Confined {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.landlock_abi {
            Some(abi) => write!(formatter, "Landlock, ABI {abi}, and seccomp"),
            None => formatter.write_str(
                "seccomp alone, as no Landlock holds TCP to ports here (that of Linux 6.7 does, where it is enabled)",
            ),
        }
    }
}

/// What the kernel tells of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspected {
    pub threads: usize,
    /// Threads whose system calls are filtered, and that can't gain privileges: those of a process that was confined all are.
    pub confined: usize,
}

/// What refused something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wall {
    /// The filter of system calls: `EPERM`.
    Seccomp,
    /// The ruleset of ports: `EACCES`.
    Landlock,
    /// The kernel has no such thing.
    Kernel,
}

impl fmt::Display for Wall {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Seccomp => "seccomp",
            Self::Landlock => "Landlock",
            Self::Kernel => "the kernel, which has no such thing",
        })
    }
}

/// One try to get out, and what came of it.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub what: String,
    /// `None`: nothing did, or something that says nothing of the next try, such as a missing route.
    pub stopped_by: Option<Wall>,
    /// As the system said it.
    pub said: String,
    pub took: Duration,
}
