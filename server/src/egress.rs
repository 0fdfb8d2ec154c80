//! Zero egress: what the server needs of the network beside what it listens on, and the promise that it has no more.

use std::net::ToSocketAddrs as _;

use anyhow::Context as _;
use rempart_confinement::{Confined, Reach};
use rempart_governance::{Database, Way};

/// Confines this process to its database, if that is a server.
///
/// # Errors
/// Where the kernel can't, where threads run already, or where the database's name can't be found without DNS.
pub fn confine(database: Option<&Database>) -> anyhow::Result<Confined> {
    let way = database.and_then(Database::way);
    let reach = reach(database);
    let confined = rempart_confinement::confine(reach)?;
    tracing::info!(
        by = %confined,
        may_connect_to = %reach,
        "the kernel refuses this process every connection to elsewhere"
    );
    if confined.landlock_abi.is_none() {
        tracing::warn!("one wall instead of two: docs/egress.md says what that leaves open");
    }
    look_up(way.as_ref())?;
    Ok(confined)
}

/// Whom a server with this database connects to.
pub fn reach(database: Option<&Database>) -> Reach {
    match database.and_then(Database::way) {
        None => Reach::Nobody,
        Some(Way::Socket) => Reach::UnixSockets,
        Some(Way::Tcp { port, .. }) => Reach::Port(port),
    }
}

/// Finds the database's address as its driver will, which DNS can't help with any more.
fn look_up(way: Option<&Way>) -> anyhow::Result<()> {
    let Some(Way::Tcp { host, port }) = way else {
        return Ok(());
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (host, *port).to_socket_addrs().map(drop).with_context(|| {
        format!(
            "the database's host {host} has no address without DNS, which --zero-egress shuts: give its address in \
             --database, or in a line of /etc/hosts"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_needs_its_database_and_no_more() {
        let of = |place: &str| reach(Some(&place.parse().unwrap()));
        assert_eq!(reach(None), Reach::Nobody);
        assert_eq!(of("/var/lib/rempart.db"), Reach::Nobody);
        assert_eq!(
            of("postgres://a@localhost/a?host=/run/postgresql"),
            Reach::UnixSockets
        );
        assert_eq!(of("postgres://a@%2Frun%2Fpostgresql/a"), Reach::UnixSockets);
        assert_eq!(of("postgres://a@db.example/a"), Reach::Port(5432));
        assert_eq!(
            of("postgres://a@[::1]:6543/a?sslmode=verify-full"),
            Reach::Port(6543)
        );
    }

    #[test]
    fn names_of_hosts_are_found_without_dns() {
        let look_up = |url: &str| super::look_up(url.parse::<Database>().unwrap().way().as_ref());
        for url in [
            "postgres://a@localhost/a",
            "postgres://a@127.0.0.1/a",
            "postgres://a@[::1]:1/a",
        ] {
            look_up(url).unwrap();
        }
        // A name that can't exist (RFC 6761).
        let missing = look_up("postgres://a:hunter2@db.invalid/a")
            .unwrap_err()
            .to_string();
        assert!(
            missing.contains("db.invalid") && missing.contains("/etc/hosts"),
            "{missing}"
        );
        assert!(!missing.contains("hunter2"));
    }
}
