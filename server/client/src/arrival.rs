//! A socket that tells when what it gives had come.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::limits::READ_BYTES_MAX;

/// A connection whose reads are told with the moment at which the last of their bytes reached this machine. That is the kernel's time for
/// it (`SO_TIMESTAMPNS`, socket(7)), so that a program that reads late does not measure itself.
pub(crate) struct Arrivals<F> {
    stream: TcpStream,
    on_read: F,
    latest: Instant,
}

impl<F: Fn(Instant)> Arrivals<F> {
    pub(crate) fn new(stream: TcpStream, on_read: F) -> Self {
        // Where the kernel tells no times, those of the reads are taken.
        let _ = setsockopt(&stream, sockopt::ReceiveTimestampns, &true);
        Self {
            stream,
            on_read,
            latest: Instant::now(),
        }
    }

    fn told(&mut self, stamp: Option<Duration>) {
        // The system's clock is read first: a pause behind it makes an arrival late, and never early. Where it was set in between, what is
        // told goes forward all the same.
        let age = stamp.and_then(|stamp| (SystemTime::UNIX_EPOCH + stamp).elapsed().ok());
        let now = Instant::now();
        let came = now.checked_sub(age.unwrap_or_default()).unwrap_or(now);
        self.latest = self.latest.max(came);
        (self.on_read)(self.latest);
    }
}

/// Bytes that were there, how many, and since when by the system's clock, as far as the kernel tells.
fn receive(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, Option<Duration>)> {
    let mut parts = [IoSliceMut::new(buffer)];
    let mut space = cmsg_space!(TimeSpec);
    let got = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::empty(),
    )?;
    let stamp_of = |message| match message {
        ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
        _ => None,
    };
    // Bytes were taken: that their time can't be read is no reason to lose them.
    let stamp = got
        .cmsgs()
        .ok()
        .and_then(|mut messages| messages.find_map(stamp_of));
    Ok((got.bytes, stamp))
}

/// Reads once from a stream that is ready, and marks it as drained where less came than there is room for.
fn read_ready(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, Option<Duration>)> {
    let mut received = None;
    let drained = stream.try_io(Interest::READABLE, || {
        let room = buffer.len();
        let (count, stamp) = receive(stream, buffer)?;
        received = Some((count, stamp));
        // As tokio's own reads do it: they ask no second time to hear that there is no more.
        let left = count == 0 || count == room;
        left.then_some(()).ok_or_else(|| io::ErrorKind::WouldBlock.into())
    });
    match received {
        Some(received) => Ok(received),
        None => Err(drained.err().unwrap_or_else(|| io::ErrorKind::WouldBlock.into())),
    }
}

impl<F: Fn(Instant) + Unpin> AsyncRead for Arrivals<F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Memory that is in the cache: the reader's own would have to be filled with zeros, which for hundreds of streams it is not.
        let mut held = [0; READ_BYTES_MAX];
        let room = buf.remaining().min(held.len());
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match read_ready(&self.stream, &mut held[..room]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok((count, stamp)) => {
                    buf.put_slice(&held[..count]);
                    if count > 0 {
                        self.told(stamp);
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl<F: Unpin> AsyncWrite for Arrivals<F> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_is_read_late_came_when_it_came() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let told: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let times = Arc::clone(&told);
        let mut near = Arrivals::new(stream, move |at| times.lock().unwrap().push(at));
        far.set_nodelay(true).unwrap();
        // The kernel begins to tell times some moments after it was asked to.
        for tries in 0.. {
            far.write_all(&[1]).await.unwrap();
            near.stream.readable().await.unwrap();
            if receive(&near.stream, &mut [0]).unwrap().1.is_some() {
                break;
            }
            assert!(tries < 1000, "the kernel tells no times");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let before = Instant::now();
        far.write_all(&vec![7; READ_BYTES_MAX + 1]).await.unwrap();
        // What is tested: a program that comes late to read.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let late = Instant::now();
        let mut whole = vec![0; 2 * READ_BYTES_MAX];
        for count in [READ_BYTES_MAX, 1] {
            assert_eq!(near.read(&mut whole).await.unwrap(), count);
        }
        // The system's clock may be slewed meanwhile.
        let off = Duration::from_millis(100);
        for at in &*told.lock().unwrap() {
            assert!(*at + off > before && *at < late, "{:?}", at.elapsed());
        }
        far.shutdown().await.unwrap();
        assert_eq!(near.read(&mut whole).await.unwrap(), 0);
        assert_eq!(told.lock().unwrap().len(), 2, "the end brings nothing");
    }
}
