//! One connection, which is driven by whoever waits for its answer, and stamps the time of each read of its socket.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::clock::{Clock, Nanos};
use crate::failure::Failure;
use crate::limits::HEAD_BYTES_MAX;
use crate::target::Target;

type Io = TokioIo<Box<dyn Socket>>;

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// An HTTP/1.1 connection. It makes progress within [`Connection::drive`] alone, so that it ends with its request.
pub(crate) struct Connection {
    pub sender: http1::SendRequest<Full<Bytes>>,
    /// `None` once it has ended: who waits for a connection learns of its end by that this is dropped.
    driver: Option<http1::Connection<Io, Full<Bytes>>>,
    pub stamp: Stamp,
    /// Whether a request was answered on it before.
    pub reused: bool,
}

/// When a socket last gave bytes.
///
/// The connection reads again only when what it has read is taken, so that this is when the bytes came that were taken last.
#[derive(Clone)]
pub(crate) struct Stamp {
    clock: Clock,
    last: Arc<AtomicU64>,
}

impl Stamp {
    pub(crate) fn last(&self) -> Nanos {
        self.last.load(Ordering::Relaxed)
    }
}

impl Connection {
    /// Connects to the first of the addresses that answers.
    pub(crate) async fn open(
        target: &Target,
        addresses: &[SocketAddr],
        clock: Clock,
    ) -> Result<Self, Failure> {
        let stream = TcpStream::connect(addresses)
            .await
            .map_err(|error| Failure::connect(&error))?;
        stream
            .set_nodelay(true)
            .map_err(|error| Failure::connect(&error))?;
        let stamp = Stamp {
            clock,
            last: Arc::new(AtomicU64::new(0)),
        };
        let stamped = Stamped {
            stream,
            stamp: stamp.clone(),
        };
        let socket: Box<dyn Socket> = match &target.tls {
            None => Box::new(stamped),
            Some((config, name)) => {
                let connector = TlsConnector::from(Arc::clone(config));
                let stream = connector.connect(name.clone(), stamped).await;
                Box::new(stream.map_err(|error| Failure::Tls(tls_reason(&error)))?)
            }
        };
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(|error| Failure::http(&error))?;
        Ok(Self {
            sender,
            driver: Some(driver),
            stamp,
            reused: false,
        })
    }

    /// Waits for work that needs this connection, which is read and written meanwhile.
    pub(crate) async fn drive<'a, T, F: Future<Output = T> + 'a>(
        &'a mut self,
        work: impl FnOnce(&'a mut http1::SendRequest<Full<Bytes>>, Stamp) -> F,
    ) -> T {
        let Self {
            sender,
            driver,
            stamp,
            ..
        } = self;
        let mut work = pin!(work(sender, stamp.clone()));
        poll_fn(move |cx| {
            // The work learns of an error from its own side of the connection.
            let ended = driver
                .as_mut()
                .is_some_and(|driver| Pin::new(driver).poll(cx).is_ready());
            if ended {
                *driver = None;
            }
            work.as_mut().poll(cx)
        })
        .await
    }

    /// Whether it can take another request, as far as this side knows.
    pub(crate) fn is_open(&self) -> bool {
        self.driver.is_some() && !self.sender.is_closed()
    }
}

/// What rustls says of a certificate is fixed words and names; of other errors the kind is told.
fn tls_reason(error: &io::Error) -> String {
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<tokio_rustls::rustls::Error>())
    {
        Some(error) => error.to_string(),
        None => error.kind().to_string(),
    }
}

struct Stamped {
    stream: TcpStream,
    stamp: Stamp,
}

impl AsyncRead for Stamped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.stamp.last.store(self.stamp.clock.now(), Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stamped {
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
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
