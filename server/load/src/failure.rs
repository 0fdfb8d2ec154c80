//! Why a request failed, in words that hold nothing of what was asked or answered.

use rempart_client::TooLong;

/// Why a request failed. Its text is the reason that results count by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Http(#[from] rempart_client::Failure),
    #[error("more events than the answer can have tokens")]
    TooManyEvents,
    #[error("the answer held no token")]
    NoToken,
    #[error("more than --in-flight-max requests in flight")]
    InFlight,
}

impl From<TooLong> for Failure {
    fn from(error: TooLong) -> Self {
        Self::Http(error.into())
    }
}
