//! Listening: how many connections may wait to be accepted.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

use super::accept::{ADMIN_CONNECTIONS_MAX, REFUSALS_MAX};

/// Files that a server opens beside its connections: models, database, log.
const OTHER_FILES: u64 = 128;

/// Connections that have room to wait for the accept loop of a server that may have so many open: as many, and those that are
/// told that they are too many.
pub(crate) fn waiting_max(connections_max: usize) -> usize {
    connections_max.saturating_add(REFUSALS_MAX)
}

/// Files of a server that may have so many connections open: these, those of administration, those of either that are told that they
/// are too many, and what else it opens.
pub(crate) fn files_max(connections_max: usize) -> u64 {
    let connections = waiting_max(connections_max).saturating_add(waiting_max(ADMIN_CONNECTIONS_MAX));
    (connections as u64).saturating_add(OTHER_FILES)
}

/// Connections that the system lets wait, of any listener; `None` where it does not say.
pub(crate) fn waiting_max_of_system() -> Option<usize> {
    let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok()?;
    most.trim().parse().ok()
}

/// Listens there, for a server that may have so many connections open. As many have room to wait for it (listen(2)), and those
/// that are told that they are too many; Linux holds that to `net.core.somaxconn`. A client without room tries again a
/// second later. What tokio asks for by itself, 128, is fewer than may come while a machine stops for a moment.
///
/// # Errors
///
/// Those of the system, such as an address that another process has.
pub fn listen(address: SocketAddr, connections_max: usize) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // A server that starts again is not kept waiting by connections of the one before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(u32::try_from(waiting_max(connections_max)).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_wait_for_an_accept_loop_that_is_busy() {
        const CONNECTIONS: usize = 400;
        let listener = listen("127.0.0.1:0".parse().unwrap(), CONNECTIONS).unwrap();
        let address = listener.local_addr().unwrap();
        // Nobody accepts: one without a place would try again, in vain.
        let connecting = async {
            let mut connected = Vec::new();
            for _ in 0..CONNECTIONS {
                connected.push(tokio::net::TcpStream::connect(address).await.unwrap());
            }
            connected.len()
        };
        let patience = std::time::Duration::from_secs(30);
        let connected = tokio::time::timeout(patience, connecting).await;
        let expected = "a place for each, where net.core.somaxconn allows as many";
        assert_eq!(connected.expect(expected), CONNECTIONS);
    }
}
