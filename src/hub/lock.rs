//! One fetch of a file at a time, on this machine: the others do something else or wait, and find it done.
//!
//! A process touches the files of the locks that it holds while it gets on, whatever it is at just then. Who waits sees by
//! that how long the other has brought nothing.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, flock, futimens};

use super::Watch;
use super::http::Http;
use crate::error::{Error, IoContext, Result, printable};

/// Another process that brings nothing for so long is not waited for any longer. It ends its own waits much earlier.
const MOST_PATIENCE: Duration = Duration::from_mins(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// How often a folder that others remove is made again.
const MOST_TRIES: u32 = 100;

/// A lock, held until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "open is locked")] Arc<File>);

impl Lock {
    /// Waits until nobody else has the lock beside `partial`, or until there is nothing left to do, as `done` tells: then there is none.
    /// Whoever has it is given up after ten minutes that bring nothing.
    pub(super) fn of(
        partial: &Path,
        what: &str,
        (http, watch): (&Http, &dyn Watch),
        done: &dyn Fn() -> Result<bool>,
    ) -> Result<Option<Self>> {
        let mut door = Door::of(partial);
        let mut told = false;
        loop {
            if done()? {
                return Ok(None);
            }
            if let Some(lock) = door.enter(http)? {
                // Whoever was waited for may have done it.
                return Ok(if done()? { None } else { Some(lock) });
            }
            if !told {
                watch.note(&waiting(what));
                told = true;
            }
            http.wait(LOOK_EVERY)?;
        }
    }
}

/// What is said of a wait.
pub(super) fn waiting(what: &str) -> String {
    format!("waiting for another process that fetches `{}`", printable(what))
}

/// The way to a lock that somebody else may have.
#[derive(Debug)]
pub(super) struct Door {
    partial: PathBuf,
    path: PathBuf,
    file: Option<Arc<File>>,
    /// The last sign of life of whoever has it, and since when there was no other.
    seen: Option<(SystemTime, Instant)>,
}

impl Door {
    pub(super) fn of(partial: &Path) -> Self {
        let mut path = partial.as_os_str().to_owned();
        path.push(".lock");
        Self { partial: partial.to_owned(), path: path.into(), file: None, seen: None }
    }

    /// The lock, unless somebody else has it now, who fails this after ten minutes without a sign of life.
    pub(super) fn enter(&mut self, http: &Http) -> Result<Option<Lock>> {
        loop {
            let file = match self.file.take() {
                Some(file) => file,
                None => Arc::new(create(&self.path).at("create", &self.path)?),
            };
            match flock(&*file, FlockOperation::NonBlockingLockExclusive) {
                // Whoever had it may have removed the file, and others have one of their own then.
                Ok(()) if !is_at(&self.path, &file) => continue,
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {
                    let beat = file.metadata().and_then(|meta| meta.modified());
                    self.file = Some(file);
                    let silent = self.silence(beat.at("read", &self.path)?, Instant::now());
                    return if silent > MOST_PATIENCE { Err(self.given_up()) } else { Ok(None) };
                }
                // Some network filesystems have no locks: two fetches of a file then write the same bytes.
                Err(
                    rustix::io::Errno::NOLCK
                    | rustix::io::Errno::NOSYS
                    | rustix::io::Errno::OPNOTSUPP,
                ) => {}
                Err(error) => return Err(error).at("lock", &self.path),
            }
            http.heart().hold(&file);
            return Ok(Some(Lock(file)));
        }
    }

    /// How long the other has given no sign of life.
    fn silence(&mut self, beat: SystemTime, now: Instant) -> Duration {
        let since = match self.seen {
            Some((last, since)) if last == beat => since,
            _ => now,
        };
        self.seen = Some((beat, since));
        now.saturating_duration_since(since)
    }

    fn given_up(&self) -> Error {
        let holder = "another process, which has brought nothing for ten minutes".to_owned();
        Error::Locked { path: self.partial.clone(), holder }
    }
}

/// Opens a file, made if it is not there, in a folder that somebody may remove meanwhile.
fn create(path: &Path) -> io::Result<File> {
    let mut tries = 0;
    loop {
        let made = path.parent().map_or(Ok(()), fs::create_dir_all);
        let opened =
            made.and_then(|()| File::options().create(true).truncate(false).write(true).open(path));
        match opened {
            Err(error)
                if tries < MOST_TRIES
                    && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) =>
            {
                tries += 1;
            }
            opened => return opened,
        }
    }
}

/// Whether `path` is the name of this very file.
fn is_at(path: &Path, file: &File) -> bool {
    match (fs::metadata(path), file.metadata()) {
        (Ok(named), Ok(open)) => (named.dev(), named.ino()) == (open.dev(), open.ino()),
        _ => false,
    }
}

/// The locks that this process holds, and when it last said that it gets on.
#[derive(Debug, Default)]
pub(super) struct Heart(Mutex<(Vec<Weak<File>>, Option<Instant>)>);

impl Heart {
    fn hold(&self, file: &Arc<File>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.0.retain(|file| file.strong_count() > 0);
        held.0.push(Arc::downgrade(file));
    }

    /// Says that something was done: at most once a second, all locks that are held are touched.
    pub(super) fn beat(&self) {
        // Another thread that is at it says the same.
        let Ok(mut held) = self.0.try_lock() else { return };
        if held.1.is_some_and(|last| last.elapsed() < BEAT_EVERY) {
            return;
        }
        held.1 = Some(Instant::now());
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        for file in held.0.iter().filter_map(Weak::upgrade) {
            // Who waits is the more impatient if it cannot be done, no more.
            let _ = futimens(&*file, &times);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Quiet;
    use crate::hub::settings::Settings;

    fn http() -> Http {
        let settings = Settings {
            endpoint: "http://127.0.0.1:9".into(),
            token: None,
            cache: PathBuf::new(),
            offline: true,
            connect: Duration::from_secs(1),
            silence: Duration::from_secs(1),
            retries: 0,
            first_wait: Duration::ZERO,
            longest_wait: Duration::ZERO,
        };
        Http::new(settings, Arc::new(|| false)).unwrap()
    }

    #[test]
    fn one_at_a_time_unless_it_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let (partial, http) = (dir.path().join("x"), http());
        let never = || Ok(false);
        let lock = Lock::of(&partial, "x", (&http, &Quiet), &never).unwrap().unwrap();
        assert!(Door::of(&partial).enter(&http).unwrap().is_none());
        let looks = std::cell::Cell::new(0);
        let soon = || Ok(looks.replace(looks.get() + 1) > 2);
        assert!(Lock::of(&partial, "x", (&http, &Quiet), &soon).unwrap().is_none());
        drop(lock);
        assert!(Door::of(&partial).enter(&http).unwrap().is_some());
    }

    #[test]
    fn a_removed_lock_is_nobody_s() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, http) = (dir.path().join("staging"), http());
        let partial = folder.join("x");
        let first = Door::of(&partial).enter(&http).unwrap().unwrap();
        let mut second = Door::of(&partial);
        assert!(second.enter(&http).unwrap().is_none());
        fs::remove_dir_all(&folder).unwrap();
        let third = Door::of(&partial).enter(&http).unwrap().unwrap();
        drop(first);
        assert!(second.enter(&http).unwrap().is_none(), "beside the third");
        drop(third);
        assert!(second.enter(&http).unwrap().is_some());
    }

    #[test]
    fn only_silence_is_given_up() {
        let mut door = Door::of(Path::new("x"));
        let (beat, start) = (SystemTime::UNIX_EPOCH, Instant::now());
        let after = |minutes| start + Duration::from_mins(minutes);
        assert_eq!(door.silence(beat, after(0)), Duration::ZERO);
        assert_eq!(door.silence(beat, after(9)), Duration::from_mins(9));
        let next = beat + Duration::from_secs(1);
        assert_eq!(door.silence(next, after(11)), Duration::ZERO);
        assert!(door.silence(next, after(22)) > MOST_PATIENCE);
    }

    #[test]
    fn whoever_gets_on_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let (partial, http) = (dir.path().join("x"), http());
        let _lock = Door::of(&partial).enter(&http).unwrap().unwrap();
        let path = dir.path().join("x.lock");
        let past = SystemTime::UNIX_EPOCH;
        File::options().write(true).open(&path).unwrap().set_modified(past).unwrap();
        http.count_received(1);
        assert!(fs::metadata(&path).unwrap().modified().unwrap() > past);
    }
}
