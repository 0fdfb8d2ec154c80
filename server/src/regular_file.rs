//! Files that are read while a server runs, whatever somebody has put in their place.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Opens one to be read.
///
/// # Errors
/// What the system says, and where it is no regular file.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // To open a pipe would wait for whoever writes into it, and may take its place between a look and the opening.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::other("it is no regular file"))
}
