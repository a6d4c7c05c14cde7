//! Bytes of a file to an address that the Hub named: one PUT, watched.
//!
//! The storage is another host than the Hub, so no token goes there: only the headers that came with the address. The request
//! runs on a thread of its own, which can be given up: when nothing moves for too long, or when the run is cancelled, nobody
//! waits for it any more. What is sent is hashed on its way out.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use reqwest::Url;
use reqwest::blocking::{Body, Client, Response};
use reqwest::header::HeaderMap;
use sha2::{Digest as _, Sha256};

use super::super::http::{Http, broken, causes, corrupt, is_later, retry_after};
use crate::error::{Error, HubFailure, Result};

/// A request may take this long if it keeps moving.
const LONGEST: Duration = Duration::from_hours(24);
/// How often a request at work is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What is sent where.
pub(super) struct Piece<'a> {
    /// The file in words, for errors.
    pub(super) what: &'a str,
    pub(super) url: &'a Url,
    pub(super) headers: &'a HeaderMap,
    pub(super) file: &'a Arc<File>,
    pub(super) range: Range<u64>,
}

/// What the storage said.
pub(super) enum Stored {
    /// It has the bytes. `hasher` has gone over them.
    Done { etag: Option<String>, hasher: Sha256 },
    /// It does not take them.
    Refused {
        error: Error,
        /// Whether another address may help.
        expired: bool,
        /// Has gone over the bytes, if all of them went out.
        hasher: Option<Sha256>,
    },
}

/// Sends a piece, again where that helps. `sent` is told how many bytes of the piece have gone out.
pub(super) fn put(
    http: &Http,
    piece: &Piece<'_>,
    before: &Sha256,
    sent: &dyn Fn(u64),
) -> Result<Stored> {
    let mut failures = 0;
    loop {
        http.check_cancelled()?;
        let outgoing = Arc::new(Outgoing::new(before.clone()));
        let (problem, asked) = match once(http, piece, &outgoing, sent)? {
            Ok(answer) => {
                let status = answer.status();
                if status.is_success() {
                    let etag = answer.headers().get("etag").and_then(|e| e.to_str().ok());
                    let etag = etag.map(str::to_owned);
                    let hasher = outgoing.hasher();
                    return Ok(Stored::Done { etag, hasher });
                }
                let wait = retry_after(answer.headers());
                let problem = format!("the storage answered {status}");
                if !is_later(status) {
                    let size = piece.range.end - piece.range.start;
                    let whole = outgoing.read.load(Ordering::Relaxed) == size;
                    return Ok(Stored::Refused {
                        error: refused(piece.what, problem),
                        // Signed addresses are good for a while.
                        expired: matches!(status.as_u16(), 400 | 401 | 403 | 404 | 410),
                        hasher: whole.then(|| outgoing.hasher()),
                    });
                }
                (problem, wait)
            }
            Err(problem) => (problem, None),
        };
        if failures >= http.settings().retries {
            return Err(broken(piece.what, &problem));
        }
        let wait = asked.unwrap_or_else(|| http.pause(failures));
        failures += 1;
        http.wait(wait.min(http.settings().longest_wait))?;
    }
}

/// One request. The inner error is worth another try.
fn once(
    http: &Http,
    piece: &Piece<'_>,
    outgoing: &Arc<Outgoing>,
    sent: &dyn Fn(u64),
) -> Result<Result<Response, String>> {
    let client: Client = http.client()?.clone();
    let (url, headers) = (piece.url.clone(), piece.headers.clone());
    let size = piece.range.end - piece.range.start;
    let reader = Reader {
        file: Arc::clone(piece.file),
        range: piece.range.clone(),
        outgoing: Arc::clone(outgoing),
    };
    let (give, answer) = sync_channel(1);
    let request = move || {
        let request = client.put(url).headers(headers).timeout(LONGEST);
        let sent = request.body(Body::sized(reader, size)).send();
        // Nobody listens any more: the request was given up.
        let _ = give.send(sent);
    };
    let spawned = thread::Builder::new().name("upload".into()).spawn(request);
    spawned.map_err(|error| broken(piece.what, &format!("no thread can be made: {error}")))?;
    let silence = http.settings().silence;
    let (mut seen, mut since) = (0, Instant::now());
    loop {
        match answer.recv_timeout(LOOK) {
            Ok(Ok(answer)) => {
                sent(size);
                return Ok(Ok(answer));
            }
            Ok(Err(error)) => {
                if let Some(problem) = outgoing.problem() {
                    return Err(broken(piece.what, &problem));
                }
                let host = piece.url.host_str().unwrap_or("the storage").to_owned();
                return Ok(Err(format!("the connection to `{host}` broke: {}", causes(&error))));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(corrupt(piece.what, "the upload ended without an answer".into()));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = outgoing.read.load(Ordering::Relaxed);
        if now > seen {
            (seen, since) = (now, Instant::now());
            sent(now);
        }
        // The storage may need a while to look at what it got.
        let patience = if seen < size { silence } else { silence.saturating_mul(4) };
        let stalled = since.elapsed() > patience;
        let stopped = http.check_cancelled();
        if stalled || stopped.is_err() {
            outgoing.given_up.store(true, Ordering::Relaxed);
            stopped?;
            let host = piece.url.host_str().unwrap_or("the storage");
            let seconds = patience.as_secs_f64();
            return Ok(Err(format!("`{host}` took nothing for {seconds:.0} seconds")));
        }
    }
}

fn refused(what: &str, problem: String) -> Error {
    Error::Hub {
        what: what.to_owned(),
        kind: HubFailure::Refused,
        problem,
        hint: "run the same command again: it asks the Hub for a new address".into(),
    }
}

/// What is known of bytes on their way out.
struct Outgoing {
    read: AtomicU64,
    given_up: AtomicBool,
    hasher: Mutex<Sha256>,
    problem: Mutex<Option<String>>,
}

impl Outgoing {
    fn new(hasher: Sha256) -> Self {
        let (read, given_up) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { read, given_up, hasher: Mutex::new(hasher), problem: Mutex::new(None) }
    }

    fn hasher(&self) -> Sha256 {
        self.hasher.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the file could not be read.
    fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A range of a file, read in order.
struct Reader {
    file: Arc<File>,
    range: Range<u64>,
    outgoing: Arc<Outgoing>,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.outgoing.given_up.load(Ordering::Relaxed) {
            return Err(io::Error::other("given up"));
        }
        let left = usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX);
        let len = buffer.len().min(left);
        let read = self.file.read_at(&mut buffer[..len], self.range.start);
        let read = match read {
            Ok(0) if len > 0 => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"))
            }
            read => read,
        };
        match read {
            Ok(n) => {
                let mut hasher =
                    self.outgoing.hasher.lock().unwrap_or_else(PoisonError::into_inner);
                hasher.update(&buffer[..n]);
                self.range.start += n as u64;
                self.outgoing.read.fetch_add(n as u64, Ordering::Relaxed);
                Ok(n)
            }
            Err(error) => {
                let mut problem =
                    self.outgoing.problem.lock().unwrap_or_else(PoisonError::into_inner);
                *problem = Some(format!("it could not be read: {error}"));
                Err(error)
            }
        }
    }
}
