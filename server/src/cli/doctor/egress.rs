//! The proof of zero egress: a child confines itself as a server does, and then tries every way out.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use rempart_confinement::{Attempt, Reach, inspect, try_everything};

use super::DoctorArgs;
use crate::config::place_of;
use crate::egress::reach;

const COMMAND: &str = "try-egress";
/// What is refused is refused at once: an attempt that takes longer went out and was lost there.
const AT_ONCE: Duration = Duration::from_millis(500);

/// What the child is told.
#[derive(Debug, Args)]
pub struct TrialArgs {
    /// `nobody`, `unix` or a port
    reach: String,
    /// Where the doctor listens
    elsewhere: SocketAddrV4,
}

pub(super) fn check(args: &DoctorArgs) -> anyhow::Result<bool> {
    let database = args.database.as_deref().map(place_of).transpose()?;
    let reach = reach(database.as_ref());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening on loopback")?;
    let SocketAddr::V4(elsewhere) = listener.local_addr()? else {
        bail!("the address that was bound is another");
    };
    listener.set_nonblocking(true)?;
    let reached = TcpStream::connect(elsewhere).and_then(|_| listener.accept());
    reached.context("connecting to a listener of our own")?;
    say(&format!(
        "{elsewhere} listens, and is reached by a process that is not confined"
    ))?;
    let word = match reach {
        Reach::Nobody => "nobody".to_owned(),
        Reach::UnixSockets => "unix".to_owned(),
        Reach::Port(port) => port.to_string(),
    };
    let child = Command::new(std::env::current_exe()?)
        .args([COMMAND, &word, &elsewhere.to_string()])
        .status()
        .context("starting the trial")?;
    let unreached = listener
        .accept()
        .is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    if !unreached {
        say(&format!(
            "NOT STOPPED: {elsewhere} was reached by the process that is confined"
        ))?;
    }
    let running = args.pid.map_or(Ok(true), running)?;
    Ok(child.success() && unreached && running)
}

/// The child: it is confined until its end.
pub(crate) fn try_egress(args: &TrialArgs) -> anyhow::Result<()> {
    let reach = match args.reach.as_str() {
        "nobody" => Reach::Nobody,
        "unix" => Reach::UnixSockets,
        port => Reach::Port(port.parse().context("a port")?),
    };
    let (confined, attempts) = try_everything(reach, args.elsewhere)?;
    say(&format!("confined by {confined}; may connect to: {reach}"))?;
    let mut open = 0;
    for attempt in &attempts {
        let (line, stopped) = tell(attempt);
        say(&line)?;
        open += usize::from(!stopped);
    }
    if open > 0 {
        bail!("{open} of {} attempts were not stopped", attempts.len());
    }
    say(&format!("all {} attempts were stopped", attempts.len()))
}

/// A line about an attempt, and whether it was stopped.
fn tell(attempt: &Attempt) -> (String, bool) {
    let Attempt { what, said, took, .. } = attempt;
    match attempt.stopped_by {
        Some(wall) if *took < AT_ONCE => (format!("stopped by {wall}: {what} ({said})"), true),
        Some(wall) => (
            format!("NOT STOPPED AT ONCE: {what} ({wall} after {took:.1?})"),
            false,
        ),
        None => (format!("NOT STOPPED: {what} ({said})"), false),
    }
}

/// Tells what the kernel says of a server that runs.
fn running(process: u32) -> anyhow::Result<bool> {
    let inspected = inspect(process).with_context(|| format!("--pid {process}"))?;
    say(&format!(
        "process {process}: {} of {} threads have a filter of system calls and can't gain privileges",
        inspected.confined, inspected.threads
    ))?;
    Ok(inspected.confined == inspected.threads)
}

fn say(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout().lock(), "{line}").context("writing to standard output")
}

#[cfg(test)]
mod tests {
    use rempart_confinement::Wall;

    use super::*;

    #[test]
    fn what_was_not_stopped_at_once_is_told() {
        let attempt = |stopped_by, took| Attempt {
            what: "UDP".to_owned(),
            stopped_by,
            said: "why".to_owned(),
            took,
        };
        let now = Duration::from_millis(1);
        let (line, stopped) = tell(&attempt(Some(Wall::Seccomp), now));
        assert_eq!((line.as_str(), stopped), ("stopped by seccomp: UDP (why)", true));
        for attempt in [
            attempt(None, now),
            attempt(Some(Wall::Landlock), Duration::from_secs(2)),
        ] {
            let (line, stopped) = tell(&attempt);
            assert!(!stopped && line.starts_with("NOT STOPPED"), "{line}");
        }
    }
}
