//! A connection that keeps the time at which what it read last had come.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rempart_client::{Connection, Failure, Sender, Target};

use crate::clock::{Clock, Nanos};

/// An HTTP/1.1 connection, which makes progress within [`Stamped::drive`] alone.
pub(crate) struct Stamped {
    connection: Connection,
    stamp: Stamp,
    /// Whether a request was answered on it before.
    pub reused: bool,
}

/// When the bytes that a socket gave last had reached this machine.
///
/// The connection reads again only when what it has read is taken, so that this is when the bytes came that were taken last.
#[derive(Clone)]
pub(crate) struct Stamp(Arc<AtomicU64>);

impl Stamp {
    pub(crate) fn last(&self) -> Nanos {
        self.0.load(Ordering::Relaxed)
    }
}

impl Stamped {
    /// Connects to the first of the addresses that answers.
    pub(crate) async fn open(
        target: &Target,
        addresses: &[SocketAddr],
        clock: Clock,
    ) -> Result<Self, Failure> {
        let stamp = Stamp(Arc::new(AtomicU64::new(0)));
        let last = Arc::clone(&stamp.0);
        let on_read = move |at| last.store(clock.at(at), Ordering::Relaxed);
        Ok(Self {
            connection: Connection::open(target, addresses, on_read).await?,
            stamp,
            reused: false,
        })
    }

    /// Waits for work that needs this connection, which is read and written meanwhile.
    pub(crate) async fn drive<'a, T, F: Future<Output = T> + 'a>(
        &'a mut self,
        work: impl FnOnce(Sender<'a>, Stamp) -> F,
    ) -> T {
        let stamp = self.stamp.clone();
        self.connection.drive(|sender| work(sender, stamp)).await
    }

    /// Whether it can take another request, as far as this side knows.
    pub(crate) fn is_open(&self) -> bool {
        self.connection.is_open()
    }
}
