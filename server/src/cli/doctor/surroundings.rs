//! What a server depends on beside the machine: disks, the clock, its certificate.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rempart_governance::Database;

use super::DoctorArgs;
use super::finding::{Finding, in_gib};
use crate::certificate::ClientCertificate;
use crate::config::{Settings, place_of};

/// Less is soon full of rows and logs.
const DISK_BYTES_MIN: u64 = 2 << 30;
/// The next certificate should be on its way by then.
const RENEWAL: Duration = Duration::from_hours(24 * 30);
/// 2026-11-01: this version was made later.
const MADE_S: u64 = 1_793_491_200;
/// What the services that keep the time leave while they do.
const SYNCHRONIZED: [&str; 4] = [
    "/run/systemd/timesync/synchronized",
    "/run/chrony/chronyd.pid",
    "/run/ntpd.pid",
    "/run/ntpsec/ntpd.pid",
];

pub(super) fn findings(args: &DoctorArgs, settings: Option<&Settings>) -> Vec<Finding> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let kept = SYNCHRONIZED.iter().any(|file| Path::new(file).exists());
    let mut findings = vec![
        clock(now, kept),
        disk("models", &args.store.clone().path(), "models are fetched there"),
    ];
    match args.database.as_deref().map(place_of) {
        Some(Ok(Database::File(path))) => findings.push(disk(
            "database",
            folder_of(&path),
            "where it is full no request is taken",
        )),
        Some(Err(error)) => findings.push(Finding::bad(
            "database",
            error.to_string(),
            "--database takes a file or a URL",
        )),
        Some(Ok(Database::Server(_))) | None => {}
    }
    if let Some(traces) = settings.and_then(|settings| settings.traces.as_ref()) {
        let folder = folder_of(&traces.file);
        findings.push(disk("traces", folder, "where it is full spans are lost"));
    }
    if let Some(path) = &args.tls_certificate {
        findings.push(match validity(path) {
            Ok(valid) => certificate(&valid, now),
            Err(error) => Finding::bad(
                "certificate",
                format!("{error:#}"),
                "give the chain that the server is to show, in PEM",
            ),
        });
    }
    findings
}

/// Rows of the audit chain, limits by the minute and tokens of a login all go by it.
fn clock(now: Duration, kept: bool) -> Finding {
    const WHAT: &str = "clock";
    if now.as_secs() < MADE_S {
        return Finding::bad(
            WHAT,
            "before this version was made",
            "set the time, and have a service keep it (systemd-timesyncd, chrony)",
        );
    }
    if !kept {
        return Finding::warning(
            WHAT,
            "no service is seen to keep it",
            "records are dated by it: start systemd-timesyncd or chrony with a time server of the company (a virtual machine's host may keep it)",
        );
    }
    Finding::good(WHAT, "kept by a service")
}

fn folder_of(file: &Path) -> &Path {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// What is free where a folder is, or will be, and why it is needed.
fn disk(what: &'static str, folder: &Path, why: &str) -> Finding {
    let there = folder.ancestors().find(|folder| folder.exists());
    let there = there.map_or_else(|| PathBuf::from("."), Path::to_path_buf);
    let free = rustix::fs::statvfs(&there).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    match free {
        Ok(free) => room(what, folder, free, why),
        Err(error) => Finding::bad(
            what,
            format!("{}: {error}", folder.display()),
            "name a folder that can be read",
        ),
    }
}

/// Whether so many free bytes are enough.
fn room(what: &'static str, folder: &Path, free: u64, why: &str) -> Finding {
    let found = format!("{} free at {}", in_gib(free), folder.display());
    if free >= DISK_BYTES_MIN {
        return Finding::good(what, found);
    }
    let todo = format!("make room, {} at least: {why}", in_gib(DISK_BYTES_MIN));
    Finding::warning(what, found, todo)
}

/// From when until when the first certificate of a chain is valid, since 1970.
fn validity(path: &Path) -> anyhow::Result<Range<Duration>> {
    let ClientCertificate { begins, ends, .. } = ClientCertificate::read("--tls-certificate", path)?;
    let since_1970 = |at| Duration::from_secs(u64::try_from(at).unwrap_or(0));
    Ok(since_1970(begins)..since_1970(ends))
}

fn certificate(valid: &Range<Duration>, now: Duration) -> Finding {
    const WHAT: &str = "certificate";
    if now < valid.start {
        return Finding::bad(
            WHAT,
            "it is not valid yet",
            "clients refuse it until it is: look whether the clock is behind, or put the one before back in its place, and send SIGHUP",
        );
    }
    let Some(left) = valid.end.checked_sub(now) else {
        return Finding::bad(
            WHAT,
            "it has ended",
            "no client connects any more: put the new one in its place, and send SIGHUP",
        );
    };
    let found = format!("it ends in {} days", left.as_secs() / (24 * 60 * 60));
    if left > RENEWAL {
        return Finding::good(WHAT, found);
    }
    Finding::warning(WHAT, found, "ask for the next one; the server takes it at SIGHUP")
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    #[test]
    fn a_certificate_that_ends_soon_is_told() {
        let now = DAY * 20_000;
        let state = |ends| certificate(&(DAY..ends), now).state();
        assert_eq!(state(now + DAY * 31), State::Good);
        assert_eq!(state(now + DAY * 29), State::Warning);
        assert_eq!(state(DAY * 19_999), State::Bad);
    }

    #[test]
    fn a_certificate_of_tomorrow_is_told() {
        let now = DAY * 20_000;
        let state = |begins| certificate(&(begins..now + DAY * 90), now).state();
        assert_eq!(state(now + DAY), State::Bad);
        assert_eq!(state(now), State::Good);
    }

    #[test]
    fn the_time_of_a_certificate_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.pem");
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2030, 2, 3);
        params.not_after = rcgen::date_time_ymd(2031, 2, 3);
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&path, params.self_signed(&key).unwrap().pem()).unwrap();
        // 2030-02-03 and 2031-02-03.
        let valid = validity(&path).unwrap();
        assert_eq!(
            (valid.start.as_secs(), valid.end.as_secs()),
            (1_896_307_200, 1_927_843_200)
        );
        std::fs::write(&path, "no certificate").unwrap();
        assert!(
            validity(&path)
                .unwrap_err()
                .to_string()
                .contains("no certificate in PEM")
        );
    }

    #[test]
    fn a_clock_and_a_disk_that_a_server_can_not_go_by_are_told() {
        let now = Duration::from_secs(MADE_S + 1);
        assert_eq!(clock(Duration::ZERO, true).state(), State::Bad);
        assert_eq!(clock(now, false).state(), State::Warning);
        assert_eq!(clock(now, true).state(), State::Good);
        let room = |free| room("models", Path::new("/srv"), free, "").state();
        assert_eq!(room(DISK_BYTES_MIN), State::Good);
        assert_eq!(room(DISK_BYTES_MIN - 1), State::Warning);
        assert_eq!(folder_of(Path::new("rempart.db")), Path::new("."));
        assert_eq!(folder_of(Path::new("/srv/rempart.db")), Path::new("/srv"));
        // What is not there yet will be on its parent's disk.
        let folder = tempfile::tempdir().unwrap();
        assert!(!disk("models", &folder.path().join("not/there/yet"), "").is_bad());
    }
}
