//! One fetch of a file at a time, on this machine: the others wait, and find it done.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::Watch;
use super::http::Http;
use crate::error::{Error, IoContext, Result, printable};
use crate::format::record_of;

/// Another process that brings nothing for so long is not waited for any longer. It ends its own waits much earlier.
const MOST_PATIENCE: Duration = Duration::from_mins(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A lock, held until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "open is locked")] File);

impl Lock {
    /// Waits until nobody else fetches `partial`. Whoever does is given up if it brings nothing for ten minutes.
    pub(super) fn of(partial: &Path, what: &str, http: &Http, watch: &dyn Watch) -> Result<Self> {
        let path = lock_of(partial);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.at("create", &path)?;
        let mut seen = (brought(partial), Instant::now());
        let mut told = false;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                // Some network filesystems have no locks: two fetches of a file then write the same bytes.
                Err(
                    rustix::io::Errno::NOLCK
                    | rustix::io::Errno::NOSYS
                    | rustix::io::Errno::OPNOTSUPP,
                ) => {
                    return Ok(Self(file));
                }
                Err(error) => return Err(error).at("lock", &path),
            }
            if !told {
                watch.note(&format!(
                    "waiting for another process that fetches `{}`",
                    printable(what)
                ));
                told = true;
            }
            http.wait(LOOK_EVERY)?;
            let now = brought(partial);
            if now != seen.0 {
                seen = (now, Instant::now());
            }
            if seen.1.elapsed() > MOST_PATIENCE {
                let holder =
                    "another process, which has brought nothing for ten minutes".to_owned();
                return Err(Error::Locked { path: partial.to_owned(), holder });
            }
        }
    }
}

fn lock_of(partial: &Path) -> PathBuf {
    let mut name = partial.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// What changes while somebody fetches.
fn brought(partial: &Path) -> Option<u64> {
    fs::metadata(record_of(partial)).ok().map(|meta| meta.len())
}
