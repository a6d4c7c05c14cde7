//! Runs a backend: starts it under its guard, follows its events, stops it when told to.
//!
//! Output goes straight into a log file, so that neither a flood of it nor the driver's death disturbs the backend.
//! Events are read from their file as they come; lines that are not events are counted and passed over.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::event::{NativeEvents, parse};
use super::launch::{Launch, Stop};
use super::protocol::Event;
use crate::error::{IoContext as _, Result};

const POLL: Duration = Duration::from_millis(50);
/// Longest line of events that is read; the protocol asks for less than 4 KiB.
const LONGEST_LINE: usize = 1 << 16;
/// Bytes of a log's end that are looked at.
const LOG_TAIL: u64 = 1 << 16;

/// What to run, and where what it says goes.
pub struct Supervised<'a> {
    /// The backend.
    pub launch: &'a Launch,
    /// The command of its guard: [`super::guard()`], without the guarded program.
    pub guard: &'a [OsString],
    /// Where it writes events.
    pub events: &'a Path,
    /// Events made from its own files, where it writes none of ours.
    pub native: Option<Box<dyn NativeEvents>>,
    /// Where stdout and stderr go.
    pub log: &'a Path,
    /// How long it gets to write a checkpoint when told to stop.
    pub grace: Duration,
    /// How long it may be silent before that is worth a word.
    pub stall: Duration,
}

/// Watches a backend.
pub trait Watch {
    /// It said something.
    fn event(&mut self, event: &Event);
    /// Whether it shall stop.
    fn stop(&self) -> bool;
    /// Called between two looks.
    fn tick(&mut self) {}
    /// Something worth telling.
    fn note(&mut self, note: &str);
}

/// How a backend ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit status; 128 and the signal for one that was killed.
    pub code: i32,
    /// Whether it was told to stop.
    pub stopped: bool,
    /// Lines of the events file that were none.
    pub bad_lines: u64,
}

/// Runs a backend to its end.
///
/// # Errors
/// A program that cannot be started, files that cannot be written.
pub fn supervise(mut run: Supervised<'_>, watch: &mut dyn Watch) -> Result<Ended> {
    let log = OpenOptions::new().create(true).append(true).open(run.log).at("open", run.log)?;
    let error_log = log.try_clone().at("open", run.log)?;
    let mut command = run.guard.iter().chain(&run.launch.program);
    let program = command.next().cloned().unwrap_or_default();
    let mut child = Command::new(&program)
        .args(command)
        .envs(&run.launch.env)
        .current_dir(&run.launch.directory)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(error_log)
        .process_group(0)
        .spawn()
        .at("start", Path::new(&program))?;
    // Only what this run says counts.
    let mut tail = Tail::at_end(run.events);
    let mut stopping: Option<Stopping> = None;
    let mut heard = Instant::now();
    let ended = loop {
        let ended = child.try_wait().at("wait for", Path::new(&program))?;
        let mut events = tail.read();
        if let Some(native) = &mut run.native {
            // What cannot be read now is read on the next look; the result is judged by itself.
            events.extend(native.poll().unwrap_or_default());
        }
        for event in &events {
            heard = Instant::now();
            if let (Event::Checkpoint { .. }, Some(stopping)) = (event, &mut stopping) {
                stopping.saved = true;
            }
            watch.event(event);
        }
        if let Some(status) = ended {
            break status;
        }
        if heard.elapsed() > run.stall {
            heard = Instant::now();
            let minutes = run.stall.as_secs() / 60;
            watch.note(&format!("the backend has said nothing for {minutes} minutes"));
        }
        match &mut stopping {
            None if watch.stop() => {
                watch.note(&format!(
                    "stopping: the backend gets {} s to write a checkpoint",
                    run.grace.as_secs()
                ));
                stopping = Some(Stopping::begin(&run.launch.stop, &child)?);
            }
            None => {}
            Some(stopping) => stopping.go_on(&child, run.grace),
        }
        watch.tick();
        sleep(POLL);
    };
    // The guard gives an exit status; without one it was itself killed.
    let code = ended.code().unwrap_or(137);
    Ok(Ended { code, stopped: stopping.is_some(), bad_lines: tail.bad_lines })
}

/// A backend on its way to its end.
struct Stopping {
    since: Instant,
    told: bool,
    killed: bool,
    saved: bool,
}

impl Stopping {
    fn begin(how: &Stop, child: &Child) -> Result<Self> {
        let mut stopping = Self { since: Instant::now(), told: false, killed: false, saved: false };
        match how {
            Stop::Terminate => stopping.tell(child),
            Stop::TouchThenTerminate { file } => {
                if let Some(parent) = file.parent() {
                    fs::create_dir_all(parent).at("create", parent)?;
                }
                File::create(file).at("create", file)?;
            }
        }
        Ok(stopping)
    }

    fn tell(&mut self, child: &Child) {
        self.told = true;
        terminate(child);
    }

    /// Half of the grace is for the checkpoint that a file asks for, the other half for the signal's.
    fn go_on(&mut self, child: &Child, grace: Duration) {
        if !self.told && (self.saved || self.since.elapsed() > grace / 2) {
            self.tell(child);
        } else if self.told && !self.killed && self.since.elapsed() > grace {
            self.killed = true;
            terminate(child);
        }
    }
}

/// The guard passes the first one on and kills at the second.
fn terminate(child: &Child) {
    // It may have ended in this moment.
    let _ = kill_process(Pid::from_child(child), Signal::TERM);
}

/// Follows a file of JSON lines.
struct Tail {
    path: std::path::PathBuf,
    at: u64,
    rest: Vec<u8>,
    /// Inside a line that is too long to be an event.
    skipping: bool,
    bad_lines: u64,
}

impl Tail {
    fn at_end(path: &Path) -> Self {
        let at = fs::metadata(path).map_or(0, |m| m.len());
        Self { path: path.to_owned(), at, rest: Vec::new(), skipping: false, bad_lines: 0 }
    }

    fn read(&mut self) -> Vec<Event> {
        // Not there yet, or not readable on this look: the next one will tell.
        let Ok(file) = File::open(&self.path) else { return Vec::new() };
        let mut buffer = vec![0; 1 << 18];
        let mut events = Vec::new();
        while let Ok(n) = file.read_at(&mut buffer, self.at) {
            if n == 0 {
                break;
            }
            self.at += n as u64;
            for piece in buffer[..n].split_inclusive(|byte| *byte == b'\n') {
                self.take(piece, &mut events);
            }
        }
        events
    }

    fn take(&mut self, piece: &[u8], events: &mut Vec<Event>) {
        let complete = piece.ends_with(b"\n");
        if !self.skipping {
            self.rest.extend_from_slice(piece);
        }
        if self.rest.len() > LONGEST_LINE {
            self.skipping = true;
            self.rest.clear();
        }
        if !complete {
            return;
        }
        let line = std::mem::take(&mut self.rest);
        if std::mem::take(&mut self.skipping) {
            self.bad_lines += 1;
        } else if !line.trim_ascii().is_empty() {
            match std::str::from_utf8(&line).ok().and_then(parse) {
                Some(event) => events.push(event),
                None => self.bad_lines += 1,
            }
        }
    }
}

/// All events of a file.
pub fn read_events(path: &Path) -> Vec<Event> {
    let mut tail = Tail::at_end(path);
    tail.at = 0;
    tail.read()
}

/// The last lines of a log, whatever bytes they are of.
pub fn log_tail(path: &Path, lines: usize) -> Vec<String> {
    let Ok(mut file) = File::open(path) else { return Vec::new() };
    let length = file.metadata().map_or(0, |m| m.len());
    let mut bytes = Vec::new();
    // A log that cannot be read is told by its absence from the message.
    let _ = file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)));
    let _ = file.take(LOG_TAIL).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let mut kept = VecDeque::new();
    // Progress bars overwrite their line.
    for line in text.split('\n').filter_map(|line| line.trim_end().rsplit('\r').next()) {
        if !line.trim().is_empty() {
            kept.push_back(crate::error::printable(line));
        }
        if kept.len() > lines {
            kept.pop_front();
        }
    }
    kept.into()
}
