//! What a server may make a client hold, and how long a client waits.

use std::time::Duration;

/// Of one server-sent event, over all its lines.
pub(crate) const EVENT_BYTES_MAX: usize = 1 << 20;
/// Of one read of a socket.
pub(crate) const READ_BYTES_MAX: usize = 4 << 10;
/// Of the lines of a response's head, as hyper reads them.
pub(crate) const HEAD_BYTES_MAX: usize = 64 << 10;
/// Of the body that comes with an error status.
pub const ERROR_BYTES_MAX: usize = 64 << 10;
/// Of all bytes of one stream.
pub const STREAM_BYTES_MAX: u64 = 1 << 30;
/// Of a certificate file.
pub(crate) const CA_BYTES_MAX: u64 = 16 << 20;
/// Of everything that is waited for.
const TIMEOUT_MAX: Duration = Duration::from_hours(24);

/// How long one request may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the connection and its TLS handshake.
    pub connect: Duration,
    /// For the head of the response, and then between two reads.
    pub idle: Duration,
    /// For the whole request.
    pub request: Duration,
}

/// A duration that was typed in seconds.
///
/// # Errors
/// Where it is no time to wait for; the message names the option.
pub fn seconds(option: &str, seconds: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| !duration.is_zero() && *duration <= TIMEOUT_MAX)
        .ok_or_else(|| {
            anyhow::anyhow!(
                "{option} {seconds}: must be more than 0 and at most {} seconds",
                TIMEOUT_MAX.as_secs()
            )
        })
}
