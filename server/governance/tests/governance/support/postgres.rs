//! A PostgreSQL server for one test, in a folder of its own, on a socket there and on no port.

use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where Debian has the programs, which it puts into no PATH.
const DEBIAN: &str = "/usr/lib/postgresql";
const START_MAX: Duration = Duration::from_mins(1);

pub(crate) struct Cluster {
    folder: tempfile::TempDir,
    server: Child,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (programs, user) = (programs(), user());
        if let Some((uid, gid)) = user {
            chown(folder.path(), Some(uid), Some(gid)).unwrap();
        }
        let place = folder.path().to_owned();
        let program = |name: &str| {
            let mut command = Command::new(programs.join(name));
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command.current_dir(&place).stdin(Stdio::null());
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let made = program("initdb")
            .args([
                "--pgdata",
                "data",
                "--username",
                "postgres",
                "--auth",
                "trust",
                "--no-sync",
            ])
            .args(["--encoding", "UTF8", "--locale", "C"])
            .status()
            .unwrap();
        assert!(made.success(), "initdb: {made}");
        let mut server = program("postgres");
        server.args(["-D", "data", "-c", "listen_addresses=", "-c", "fsync=off", "-k"]);
        server.arg(folder.path());
        let server = server.spawn().unwrap();
        let cluster = Self { folder, server };
        let ready = || {
            program("pg_isready")
                .arg("-qh")
                .arg(cluster.folder())
                .status()
                .unwrap()
        };
        let begun = Instant::now();
        while !ready().success() {
            assert!(begun.elapsed() < START_MAX, "the server does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        cluster
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!(
            "postgres://postgres@localhost/{name}?host={}",
            self.folder().display()
        )
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // At once, and with what it holds of the system's memory given back, which a kill would leave.
        let id = self.server.id().to_string();
        let _ = Command::new("kill").args(["-QUIT", &id]).status();
        let _ = self.server.wait();
    }
}

/// The folder of the server's programs.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    folders.sort();
    folders.push(PathBuf::from("/usr/bin"));
    folders.push(PathBuf::from("/usr/local/bin"));
    let found = folders.into_iter().find(|folder| folder.join("initdb").is_file());
    found.expect("PostgreSQL is needed: Debian and Ubuntu have it in the package postgresql")
}

/// Whom it runs as, where this is root, as which it does not run.
fn user() -> Option<(u32, u32)> {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let mut fields = line.expect("the user postgres").split(':').skip(2);
    let mut number = || fields.next().unwrap().parse().unwrap();
    Some((number(), number()))
}
