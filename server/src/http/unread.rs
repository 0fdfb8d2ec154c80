//! What is left of a request's body when its answer is made before it was read, as that of a key that nobody knows.
//!
//! hyper closes a connection on which the rest has not come by then, without a word: a client that has sent all of it
//! takes the connection for its next request, and loses that. So a short rest is read and thrown away before the answer
//! is sent, and with any other the answer says that it is the connection's last (RFC 9112, section 9.6). Go's
//! `net/http` has a similar rule.
//!
//! The time of such an answer that metrics and logs tell is without that of the rest; it is in flight until it is sent.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderValue, Version, header};
use axum::response::Response;
use futures::StreamExt as _;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::sync::oneshot;
use tower::ServiceExt as _;

/// The longest rest, in bytes, for which a connection stays open.
const REST_BYTES_MAX: usize = 256 << 10;

/// Has a request of a connection answered; its rest may take as long as `patience`. Whether its body is unread, in all or
/// in part, is told by `unread`.
pub(super) async fn answer(
    router: Router,
    request: Request<Incoming>,
    unread: Arc<AtomicBool>,
    patience: Duration,
) -> Response {
    unread.store(!request.body().is_end_stream(), Ordering::Relaxed);
    let version = request.version();
    // Who waits to be asked for a body is not asked for one that nobody wants, and few who speak HTTP/1.0 use a connection
    // again.
    let last = version < Version::HTTP_11 || request.headers().contains_key(header::EXPECT);
    let (back, mut rest) = oneshot::channel();
    let request = request.map(|body| {
        Body::new(Watched {
            body: Some(body),
            back: Some(back),
            unread: Arc::clone(&unread),
        })
    });
    let mut response = match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    // Streams of HTTP/2 end one by one.
    if version < Version::HTTP_2 && unread.load(Ordering::Relaxed) {
        let last = last || response.headers().contains_key(header::CONNECTION);
        let read = match rest.try_recv() {
            Ok(rest) if !last => pass_over(rest, patience).await,
            _ => false,
        };
        unread.store(!read, Ordering::Relaxed);
        if !read {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
    }
    if version < Version::HTTP_11 && response.headers().contains_key(header::CONNECTION) {
        // Otherwise hyper writes "keep-alive" behind it, if that was asked for, and closes all the same.
        *response.version_mut() = version;
    }
    response
}

/// Reads a rest to its end. False: it is too long, too slow or broken.
async fn pass_over(rest: Incoming, patience: Duration) -> bool {
    if rest.size_hint().lower() > REST_BYTES_MAX as u64 {
        return false;
    }
    let mut bytes_left = REST_BYTES_MAX;
    let mut frames = Body::new(rest).into_data_stream();
    let whole = async {
        while let Some(frame) = frames.next().await {
            let left = frame.ok().and_then(|frame| bytes_left.checked_sub(frame.len()));
            match left {
                Some(left) => bytes_left = left,
                None => return false,
            }
        }
        true
    };
    tokio::time::timeout(patience, whole).await.unwrap_or(false)
}

/// A request's body, which comes back if nobody has begun to read it. Who began and gave up, for its length or its time,
/// has waited enough.
struct Watched {
    /// Until it goes back.
    body: Option<Incoming>,
    /// Until somebody reads.
    back: Option<oneshot::Sender<Incoming>>,
    unread: Arc<AtomicBool>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        this.back = None;
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        let frame = Pin::new(&mut *body).poll_frame(context);
        // A reader that knows a frame for the last asks for no other.
        if matches!(frame, Poll::Ready(None)) || body.is_end_stream() {
            this.unread.store(false, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(SizeHint::default, Incoming::size_hint)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let (Some(body), Some(back)) = (self.body.take(), self.back.take()) {
            // Where its answer is not waited for any more, neither is the rest.
            let _ = back.send(body);
        }
    }
}
