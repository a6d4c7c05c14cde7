//! Room on a disk: how much there is, and errors that say that there is none.

use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::error::Error;

/// Why `needed` more bytes could not be written: a full disk, a quota or a limit on files with the numbers, everything else as the
/// system says it.
pub(crate) fn unwritten(error: io::Error, action: &'static str, path: &Path, needed: u64) -> Error {
    let free = match Errno::from_io_error(&error) {
        Some(Errno::NOSPC | Errno::DQUOT) => free_bytes(path),
        Some(Errno::FBIG) => getrlimit(Resource::Fsize).current.unwrap_or(0),
        _ => return Error::Io { action, path: path.to_owned(), source: error },
    };
    Error::NoSpace { path: path.to_owned(), needed, free }
}

/// Bytes that can still be written to the filesystem of `path` without privileges.
pub(crate) fn free_bytes(path: &Path) -> u64 {
    let existing = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
    rustix::fs::statvfs(existing).map_or(u64::MAX, |fs| fs.f_bavail.saturating_mul(fs.f_frsize))
}
