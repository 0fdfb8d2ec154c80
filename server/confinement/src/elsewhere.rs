//! Systems without Landlock and seccomp, where nothing can be promised.

use std::net::SocketAddrV4;

use crate::{Attempt, Confined, Error, Inspected, Reach};

/// Refuses.
///
/// # Errors
/// Always.
pub fn confine(_reach: Reach) -> Result<Confined, Error> {
    Err(Error::System)
}

/// Refuses.
///
/// # Errors
/// Always.
pub fn inspect(_process: u32) -> Result<Inspected, Error> {
    Err(Error::System)
}

/// Refuses.
///
/// # Errors
/// Always.
pub fn try_everything(_reach: Reach, _elsewhere: SocketAddrV4) -> Result<(Confined, Vec<Attempt>), Error> {
    Err(Error::System)
}
