//! An answer's body with something that lives for as long as it does.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};

/// What a body keeps.
pub(super) trait Guard: Unpin {
    /// The body was read to its end, which may be told more than once. One that is dropped before that says nothing.
    fn ended(&mut self) {}
}

/// A body and its guard.
pub(super) struct Guarded<B, G> {
    // Fields are dropped in this order: what makes an answer tells what was used before its account ends.
    pub body: B,
    pub guard: G,
}

impl<B, G> HttpBody for Guarded<B, G>
where
    B: HttpBody<Data = Bytes> + Unpin,
    G: Guard,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        // Nobody asks a body again whose last frame was known to be that.
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.guard.ended();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
