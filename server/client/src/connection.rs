//! One connection, which is driven by whoever waits for its answer, and tells when what it reads had come.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::arrival::Arrivals;
use crate::failure::Failure;
use crate::limits::HEAD_BYTES_MAX;
use crate::target::Target;

type Io = TokioIo<Box<dyn Socket>>;

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// An HTTP/1.1 connection. It makes progress within [`Connection::drive`] alone, so that it ends with its request.
pub struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// `None` once it has ended: who waits for a connection learns of its end by that this is dropped.
    driver: Option<http1::Connection<Io, Full<Bytes>>>,
}

/// The side of a connection that takes requests, within [`Connection::drive`].
pub struct Sender<'a>(&'a mut http1::SendRequest<Full<Bytes>>);

impl Connection {
    /// Connects to the first of the addresses that answers. The connection reads again only when what it has read is taken, so
    /// that `on_read` is told when the bytes reached this machine that are taken next.
    ///
    /// # Errors
    /// Where there is no connection, or no such one as the target wants.
    pub async fn open(
        target: &Target,
        addresses: &[SocketAddr],
        on_read: impl Fn(Instant) + Send + Unpin + 'static,
    ) -> Result<Self, Failure> {
        let stream = TcpStream::connect(addresses)
            .await
            .map_err(|error| Failure::connect(&error))?;
        stream
            .set_nodelay(true)
            .map_err(|error| Failure::connect(&error))?;
        let timed = Arrivals::new(stream, on_read);
        let socket: Box<dyn Socket> = match &target.tls {
            None => Box::new(timed),
            Some((config, name)) => {
                let connector = TlsConnector::from(Arc::clone(config));
                let stream = connector.connect(name.clone(), timed).await;
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
        })
    }

    /// Waits for work that needs this connection, which is read and written meanwhile.
    pub async fn drive<'a, T, F: Future<Output = T> + 'a>(
        &'a mut self,
        work: impl FnOnce(Sender<'a>) -> F,
    ) -> T {
        let Self { sender, driver } = self;
        let mut work = pin!(work(Sender(sender)));
        // In its first turn a request is made and written, and not written after all other tasks have made theirs.
        let mut rounds = 2;
        poll_fn(move |cx| {
            for _ in 0..std::mem::replace(&mut rounds, 1) {
                // The work learns of an error from its own side of the connection.
                let ended = driver
                    .as_mut()
                    .is_some_and(|driver| Pin::new(driver).poll(cx).is_ready());
                if ended {
                    *driver = None;
                }
                if let Poll::Ready(done) = work.as_mut().poll(cx) {
                    return Poll::Ready(done);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Whether it can take another request, as far as this side knows.
    pub fn is_open(&self) -> bool {
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

impl Sender<'_> {
    /// Waits until the connection takes another request; `false` where it never will.
    pub async fn is_ready(&mut self) -> bool {
        self.0.ready().await.is_ok()
    }

    /// Sends a request, and waits for the head of its response for so long.
    ///
    /// # Errors
    /// Where none comes.
    pub async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
        idle: Duration,
    ) -> Result<Response<Incoming>, Failure> {
        let sending = async {
            self.0.ready().await?;
            self.0.send_request(request).await
        };
        timeout(idle, sending)
            .await
            .map_err(|_| Failure::IdleTimeout)?
            .map_err(|error| Failure::http(&error))
    }
}

/// The next bytes of a body, none of trailers; `None` at its end.
///
/// # Errors
/// Where nothing comes for so long, or the connection is lost.
pub async fn next(body: &mut Incoming, idle: Duration) -> Result<Option<Bytes>, Failure> {
    let frame = timeout(idle, body.frame())
        .await
        .map_err(|_| Failure::IdleTimeout)?;
    match frame {
        None => Ok(None),
        Some(Ok(frame)) => Ok(Some(frame.into_data().unwrap_or_default())),
        Some(Err(error)) => Err(Failure::http(&error)),
    }
}

/// A whole body.
///
/// # Errors
/// As of [`next`], and where it has more than `bytes_max`.
pub async fn whole(mut body: Incoming, bytes_max: usize, idle: Duration) -> Result<Vec<u8>, Failure> {
    let mut held = Vec::new();
    while let Some(bytes) = next(&mut body, idle).await? {
        if held.len() + bytes.len() > bytes_max {
            return Err(Failure::TooLong);
        }
        held.extend_from_slice(&bytes);
    }
    Ok(held)
}
