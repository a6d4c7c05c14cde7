//! One range of a file, to its last byte: what breaks off is gone on with, what is not what was asked for is refused.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use reqwest::header;

use super::http::{Answer, Call, Http, broken, corrupt};
use super::listing::Hash;
use super::lock::Lock;
use super::target::{Source, Target};
use crate::error::{Error, HubFailure, Result};
use crate::format::{Fetched, unwritten};

/// A try that brought as much is no failure.
const PROGRESS: u64 = 64 << 10;
/// Fewer bytes a second, over the time of silence that is borne, are a stall.
const SLOWEST: u64 = 1000;
/// A server that brings nothing for so long, over all tries, is given up.
const MOST_SILENCE: Duration = Duration::from_secs(90);
/// What a killed run loses on each connection.
const KEEP_EVERY: Duration = Duration::from_secs(1);
const BUFFER: usize = 256 << 10;

/// What a range is brought by, and to.
pub(super) struct Bringer<'a> {
    pub(super) http: &'a Http,
    pub(super) target: &'a Target,
    pub(super) fetched: &'a Fetched,
    pub(super) data: &'a File,
    /// None once others may have the file.
    pub(super) lock: &'a RwLock<Option<Lock>>,
    /// Counts bytes as they arrive.
    pub(super) arrived: &'a AtomicU64,
    /// Raised when the others failed.
    pub(super) stop: &'a AtomicBool,
}

/// What of a range has been recorded, and when.
struct Kept {
    until: u64,
    since: Instant,
}

/// Why a try ended early.
enum Broke {
    /// It may go on.
    Off(String),
    /// It must not.
    Failed(Error),
}

impl From<Error> for Broke {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Bringer<'_> {
    /// Brings and records the bytes of `range`. What has arrived is recorded even if it fails.
    pub(super) fn bring(&self, range: &Range<u64>) -> Result<()> {
        let mut at = range.start;
        let mut kept = Kept { until: range.start, since: Instant::now() };
        let (mut failures, mut since) = (0, Instant::now());
        let outcome = loop {
            if at >= range.end {
                break Ok(());
            }
            let before = at;
            let problem = match self.attempt(&mut at, range.end, &mut kept) {
                Ok(()) => continue,
                Err(Broke::Failed(error)) => break Err(error),
                Err(Broke::Off(problem)) => problem,
            };
            if at - before >= PROGRESS {
                (failures, since) = (0, Instant::now());
            }
            if failures >= self.http.settings().retries || since.elapsed() > MOST_SILENCE {
                break Err(broken(&self.target.what, &problem));
            }
            if let Err(error) = self.http.wait(self.http.pause(failures)) {
                break Err(error);
            }
            failures += 1;
        };
        self.keep(&mut kept, at)?;
        outcome
    }

    /// Records what has arrived up to `at`, as long as the file is ours.
    fn keep(&self, kept: &mut Kept, at: u64) -> Result<()> {
        if at > kept.until {
            let held = self.lock.read().unwrap_or_else(PoisonError::into_inner);
            if held.is_none() {
                return Err(Error::Interrupted { resumable: true });
            }
            self.fetched.record(self.data, kept.until..at)?;
        }
        *kept = Kept { until: at, since: Instant::now() };
        Ok(())
    }

    /// One request. `at` moves as bytes are written.
    fn attempt(&self, at: &mut u64, end: u64, kept: &mut Kept) -> Result<(), Broke> {
        let (answer, fresh) = self.answer(&(*at..end))?;
        let tag = answer.header("etag").filter(|tag| tag.starts_with('"')).map(str::to_owned);
        if let Some(tag) = &tag {
            self.target.check_tag(answer.url(), tag)?;
        }
        if fresh {
            self.target.set_source(Source { url: answer.url().clone(), tag });
        }
        self.read(answer, at, end, kept)
    }

    /// The answer to the request, and whether it came by way of the Hub. An address that the Hub led to before may have
    /// expired, or be good for one range only: if it is refused, that is no failure, and the Hub is asked at once.
    fn answer(&self, range: &Range<u64>) -> Result<(Answer, bool), Broke> {
        if let Some(source) = self.target.source()
            && let Some(answer) = self.ask(Some(&source), range)?
        {
            return Ok((answer, false));
        }
        match self.ask(None, range)? {
            Some(answer) => Ok((answer, true)),
            None => Err(Broke::Off("it is refused".into())),
        }
    }

    /// Sends the request and checks what the answer says of itself. None if the address, which the Hub led to before, is refused.
    fn ask(&self, source: Option<&Source>, range: &Range<u64>) -> Result<Option<Answer>, Broke> {
        let Target { what, url, size, .. } = self.target;
        let mut call =
            Call::get(source.map_or(url, |source| &source.url).clone(), what).range(range);
        if let Some(tag) = source.and_then(|source| source.tag.as_ref()) {
            call.headers.push((header::IF_RANGE, tag.clone()));
        }
        // The Hub itself is asked before anything that came from elsewhere is given up.
        let forget = || source.iter().for_each(|source| self.target.forget(source));
        let again = |problem: String| {
            forget();
            Broke::Off(problem)
        };
        let answer = match self.http.send(&call) {
            Ok(answer) => answer,
            Err(Error::Hub { kind: HubFailure::Refused | HubFailure::Missing, .. })
                if source.is_some() =>
            {
                forget();
                return Ok(None);
            }
            Err(Error::Hub { kind: HubFailure::Network, problem, .. }) if source.is_some() => {
                return Err(again(problem));
            }
            Err(error) => return Err(error.into()),
        };
        self.check_named(&answer)?;
        let wrong = |problem: String| match source {
            Some(_) => again(problem),
            None => Broke::Failed(corrupt(what, problem)),
        };
        let length = answer.header("content-length").and_then(|length| length.parse::<u64>().ok());
        match answer.status {
            StatusCode::PARTIAL_CONTENT => {
                let sent = answer.header("content-range").and_then(content_range);
                if sent != Some((range.clone(), *size)) {
                    let sent =
                        answer.header("content-range").unwrap_or("nothing it says").to_owned();
                    let asked = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                    let sent = crate::error::printable(&sent);
                    return Err(wrong(format!("`{asked}` was asked for, `{sent}` came")));
                }
                let due = range.end - range.start;
                if length.is_some_and(|length| length != due) {
                    return Err(wrong(format!(
                        "{due} bytes were asked for, {} are announced",
                        length.unwrap_or(0)
                    )));
                }
                Ok(Some(answer))
            }
            // The whole file: its start is the start of what comes.
            StatusCode::OK if range.start == 0 && length.is_none_or(|length| length == *size) => {
                Ok(Some(answer))
            }
            StatusCode::OK if range.start == 0 => {
                Err(wrong(format!("it has {} bytes, the Hub lists {size}", length.unwrap_or(0))))
            }
            StatusCode::OK => Err(match source {
                Some(_) => again("the whole file was sent for a range of it".into()),
                None => Broke::Failed(no_ranges(what)),
            }),
            StatusCode::RANGE_NOT_SATISFIABLE => Err(wrong(format!(
                "bytes {}-{} are refused: another file is there",
                range.start,
                range.end - 1
            ))),
            status => Err(wrong(format!("the answer has status {}", status.as_u16()))),
        }
    }

    /// The Hub's own names of the file and its commit, where it gives them, must be those that it listed.
    fn check_named(&self, answer: &Answer) -> Result<(), Broke> {
        let Target { what, commit, hash, .. } = self.target;
        if let Some(other) = answer.first_header("x-repo-commit").filter(|other| other != commit) {
            let other = crate::error::printable(other);
            return Err(corrupt(
                what,
                format!("the answer is of commit `{other}`, not of {commit}"),
            )
            .into());
        }
        let Hash::Sha256(listed) = hash else { return Ok(()) };
        match answer.first_header("x-linked-etag").map(|tag| tag.trim_matches('"')) {
            Some(tag) if tag != listed => {
                let tag = crate::error::printable(tag);
                Err(corrupt(
                    what,
                    format!("the answer is of the file `{tag}`, the Hub lists {listed}"),
                )
                .into())
            }
            _ => Ok(()),
        }
    }

    /// Writes the body where it belongs.
    fn read(&self, answer: Answer, at: &mut u64, end: u64, kept: &mut Kept) -> Result<(), Broke> {
        let silence = self.http.settings().silence;
        let start = *at;
        let mut body = answer.body();
        let mut buffer = vec![0; BUFFER];
        let mut window = (Instant::now(), *at);
        while *at < end {
            self.http.check_cancelled()?;
            if self.stop.load(Ordering::Relaxed) {
                return Err(Broke::Failed(Error::Interrupted { resumable: true }));
            }
            let most = usize::try_from(end - *at).unwrap_or(BUFFER).min(BUFFER);
            let asked = Instant::now();
            let read = body.read(buffer.get_mut(..most).unwrap_or_default());
            let n = read.map_err(|_| {
                let stalled = asked.elapsed() >= silence;
                Broke::Off(if stalled {
                    format!("nothing came for {} seconds", silence.as_secs_f64())
                } else {
                    format!("it broke off after {} bytes", *at - start)
                })
            })?;
            if n == 0 {
                return Err(Broke::Off(format!("it broke off after {} bytes", *at - start)));
            }
            let bytes = buffer.get(..n).unwrap_or_default();
            let written = self.data.write_all_at(bytes, *at);
            written.map_err(|error| unwritten(error, "write", &self.target.partial, end - *at))?;
            *at += n as u64;
            self.http.count_received(n as u64);
            self.arrived.fetch_add(n as u64, Ordering::Relaxed);
            if kept.since.elapsed() >= KEEP_EVERY {
                self.keep(kept, *at)?;
            }
            let time = window.0.elapsed();
            if time >= silence && *at < end {
                if *at - window.1 < SLOWEST.saturating_mul(time.as_secs()) {
                    return Err(Broke::Off("fewer than 1 kB came a second".into()));
                }
                window = (Instant::now(), *at);
            }
        }
        Ok(())
    }
}

/// The error of a server that knows no ranges.
fn no_ranges(what: &str) -> Error {
    Error::Hub {
        what: what.to_owned(),
        kind: HubFailure::Corrupt,
        problem: NO_RANGES.into(),
        hint: "a mirror or proxy does not serve ranges; `elo-surgery pull` fetches whole files from it".into(),
    }
}

const NO_RANGES: &str = "the whole file was sent where a range of it was asked for";

/// Whether a fetch failed only because ranges are not served.
pub(super) fn is_no_ranges(error: &Error) -> bool {
    matches!(error, Error::Hub { problem, .. } if problem == NO_RANGES)
}

/// `bytes 0-9/100` as a range and the whole.
fn content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if digits { text.parse::<u64>().ok() } else { None }
    };
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first..last.checked_add(1)?, number(total)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_strictly() {
        assert_eq!(content_range("bytes 0-9/100"), Some((0..10, 100)));
        for wrong in
            ["bytes 9-0/100", "bytes */100", "bytes 0-9/*", "bytes 0-9", "0-9/10", "bytes +1-2/3"]
        {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }
}
