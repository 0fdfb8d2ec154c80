//! A connection that fails when the other side stops reading: without it, an answer that nobody takes would hold its
//! memory and its place for ever. And one that is closed with care: when bytes arrive at a closed socket, or lie in it
//! unread, the kernel resets the connection, and a client that still sends may never see the answer it was given.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// The most that is read and thrown away after an answer that ends its connection.
const LINGER_BYTES_MAX: usize = 64 << 20;
/// How long that may take in all.
const LINGER_TIME: Duration = Duration::from_secs(10);
/// How long the other side may be silent meanwhile.
const LINGER_SILENCE: Duration = Duration::from_secs(1);

/// Reads and writes through; a write, or a flush, that waits longer than the timeout is an error.
pub struct TimeoutIo<S> {
    stream: S,
    timeout: Duration,
    /// Whether the other side may still be sending what nobody reads.
    unread: Arc<AtomicBool>,
    lingering: Option<Lingering>,
    /// Armed while the other side does not take anything.
    stuck: Pin<Box<Sleep>>,
    armed: bool,
}

/// After the own side was closed: what still comes is thrown away until one of these limits, or the end.
struct Lingering {
    bytes_left: usize,
    until: Instant,
    silence: Pin<Box<Sleep>>,
}

impl Lingering {
    fn new() -> Self {
        Self {
            bytes_left: LINGER_BYTES_MAX,
            until: Instant::now() + LINGER_TIME,
            silence: Box::pin(sleep(LINGER_SILENCE)),
        }
    }

    /// Ready when it is time to let go. What goes wrong ends it as well: there is nobody to tell.
    fn poll<S: AsyncRead + Unpin>(&mut self, stream: &mut S, context: &mut Context<'_>) -> Poll<()> {
        let mut rest = [0; 16 << 10];
        loop {
            let mut buffer = ReadBuf::new(&mut rest);
            let Poll::Ready(read) = Pin::new(&mut *stream).poll_read(context, &mut buffer) else {
                // Not before: what came while this process was kept waiting was no silence.
                return self.silence.as_mut().poll(context);
            };
            let bytes = buffer.filled().len();
            let over = bytes >= self.bytes_left || Instant::now() >= self.until;
            if read.is_err() || bytes == 0 || over {
                return Poll::Ready(());
            }
            self.bytes_left -= bytes;
            let silence = Instant::now() + LINGER_SILENCE;
            self.silence.as_mut().reset(silence.min(self.until));
        }
    }
}

impl<S> TimeoutIo<S> {
    /// `unread` is asked when the connection is shut down.
    pub fn new(stream: S, timeout: Duration, unread: Arc<AtomicBool>) -> Self {
        Self {
            stream,
            timeout,
            unread,
            lingering: None,
            stuck: Box::pin(sleep(timeout)),
            armed: false,
        }
    }

    fn watch<T>(&mut self, context: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.armed = false;
            return poll;
        }
        if !self.armed {
            self.armed = true;
            self.stuck.as_mut().reset(Instant::now() + self.timeout);
        }
        ready!(self.stuck.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimeoutIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TimeoutIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(context, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            let poll = Pin::new(&mut this.stream).poll_shutdown(context);
            ready!(this.watch(context, poll))?;
            if !this.unread.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
        }
        let lingering = this.lingering.get_or_insert_with(Lingering::new);
        lingering.poll(&mut this.stream, context).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn a_write_that_nobody_takes_is_an_error() {
        let (near, mut far) = duplex(4);
        let mut io = TimeoutIo::new(near, Duration::from_millis(20), Arc::default());
        io.write_all(b"1234").await.unwrap();
        let stuck = io.write_all(b"5").await.unwrap_err();
        assert_eq!(stuck.kind(), io::ErrorKind::TimedOut);
        let mut taken = [0; 4];
        far.read_exact(&mut taken).await.unwrap();
        io.write_all(b"5").await.unwrap();
    }

    #[tokio::test]
    async fn a_careful_end_lets_go_of_what_is_silent_or_gone() {
        let unread = Arc::new(AtomicBool::new(true));
        let io = || {
            let (near, far) = duplex(1 << 10);
            (
                TimeoutIo::new(near, Duration::from_mins(1), Arc::clone(&unread)),
                far,
            )
        };
        let (mut closing, mut silent) = io();
        let began = Instant::now();
        closing.shutdown().await.unwrap();
        assert!(began.elapsed() >= LINGER_SILENCE && began.elapsed() < LINGER_TIME);
        assert_eq!(silent.read(&mut [0; 4]).await.unwrap(), 0, "it was told the end");

        let mut took: Vec<Duration> = Vec::new();
        // The machine may stop in one of three.
        while took.last().is_none_or(|took| *took >= LINGER_SILENCE) {
            assert!(took.len() < 3, "nothing to wait for: {took:?}");
            let began = Instant::now();
            unread.store(true, Ordering::Relaxed);
            let (mut closing, gone) = io();
            drop(gone);
            closing.shutdown().await.unwrap();
            unread.store(false, Ordering::Relaxed);
            let (mut closing, _far) = io();
            closing.shutdown().await.unwrap();
            took.push(began.elapsed());
        }
    }

    #[tokio::test]
    async fn a_careful_end_has_its_limits() {
        let (mut near, mut far) = duplex(1 << 10);
        let mut send = JoinSet::new();
        send.spawn(async move { while far.write_all(b"0123456789").await.is_ok() {} });
        let mut full = Lingering {
            bytes_left: 100_000,
            ..Lingering::new()
        };
        poll_fn(|context| full.poll(&mut near, context)).await;
        assert!(full.bytes_left <= 1 << 10, "{}", full.bytes_left);
        let mut late = Lingering {
            bytes_left: usize::MAX,
            until: Instant::now() + Duration::from_millis(50),
            ..Lingering::new()
        };
        poll_fn(|context| late.poll(&mut near, context)).await;
        // A machine that stops may delay this by seconds.
        assert!(late.until.elapsed() < LINGER_TIME / 2);
        send.shutdown().await;
    }
}
