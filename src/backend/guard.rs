//! The process between the driver and a backend, so that no backend outlives its driver.
//!
//! It runs the backend in a process group of its own. SIGTERM is passed on to the backend's leader (a launcher passes it
//! to its workers); a second one kills the group. When the driver dies, by whatever signal, the system sends SIGHUP:
//! the backend gets a moment to end, then the group is killed. When the leader ends, what is left of its group is
//! killed too.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, getppid, kill_process, kill_process_group, set_parent_process_death_signal,
    test_kill_process_group,
};
use serde::{Deserialize, Serialize};
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM};

use crate::error::{Error, IoContext as _, Result};

/// How long a backend gets after its driver has died.
const LAST_MOMENT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// What to guard.
#[derive(Clone, Debug)]
pub struct Guard {
    /// Where the processes are written down, for a later driver to find.
    pub pid_file: PathBuf,
    /// The driver. When it is gone already, nothing is started.
    pub driver: u32,
    /// Program and arguments.
    pub program: Vec<OsString>,
}

/// The processes of a guarded backend. A process id alone may be another process's by now; with its start time it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pids {
    guard: (i32, u64),
    leader: (i32, u64),
}

/// Runs the backend to its end; its exit status, or 128 and the signal that killed it.
///
/// # Errors
/// A program that cannot be started.
pub fn guard(request: &Guard) -> Result<u8> {
    let flag = |signal| {
        let raised = Arc::new(AtomicBool::new(false));
        let registered = signal_hook::flag::register(signal, Arc::clone(&raised));
        registered.at("handle signals for", &request.pid_file).map(|_| raised)
    };
    let (terminated, orphaned) = (flag(SIGTERM)?, flag(SIGHUP)?);
    flag(SIGINT)?;
    set_parent_process_death_signal(Some(Signal::HUP)).at("watch the parent of", "/proc/self")?;
    if getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs()) != Some(request.driver) {
        return Err(Error::Interrupted { resumable: true });
    }
    let (name, arguments) = request.program.split_first().ok_or_else(|| Error::Usage {
        problem: "no program is given".into(),
        hint: "give the backend's command".into(),
    })?;
    let mut leader =
        Command::new(name).args(arguments).process_group(0).spawn().at("start", Path::new(name))?;
    let pid = Pid::from_child(&leader);
    let raw = pid.as_raw_nonzero().get();
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let pids = Pids { guard: (own, start_time(own)), leader: (raw, start_time(raw)) };
    fs::write(&request.pid_file, serde_json::to_string(&pids).unwrap_or_default())
        .at("write", &request.pid_file)?;
    let status = watch(&mut leader, pid, &terminated, &orphaned)?;
    finish_group(pid);
    // Whoever looks for it later finds no such process, with or without the file.
    let _ = fs::remove_file(&request.pid_file);
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(u8::try_from(code).unwrap_or(1))
}

fn watch(
    leader: &mut Child,
    pid: Pid,
    terminated: &AtomicBool,
    orphaned: &AtomicBool,
) -> Result<ExitStatus> {
    let mut told = false;
    let mut deadline: Option<Instant> = None;
    loop {
        if let Some(status) = leader.try_wait().at("wait for", "the backend")? {
            return Ok(status);
        }
        if terminated.swap(false, Ordering::Relaxed) {
            if told {
                // It may have ended in this moment: then there is nothing to kill.
                let _ = kill_process_group(pid, Signal::KILL);
            } else {
                told = true;
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        if orphaned.swap(false, Ordering::Relaxed) && deadline.is_none() {
            let _ = kill_process(pid, Signal::TERM);
            deadline = Some(Instant::now() + LAST_MOMENT);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        sleep(POLL);
    }
}

/// Workers that their leader left behind.
fn finish_group(pid: Pid) {
    if test_kill_process_group(pid).is_err() {
        return;
    }
    let _ = kill_process_group(pid, Signal::TERM);
    let deadline = Instant::now() + Duration::from_secs(1);
    while Instant::now() < deadline && test_kill_process_group(pid).is_ok() {
        sleep(POLL);
    }
    let _ = kill_process_group(pid, Signal::KILL);
}

/// Ends the backend that an earlier driver left, if there is one. True if there was.
pub fn end_left_over(pid_file: &Path) -> bool {
    let Some(pids) =
        fs::read(pid_file).ok().and_then(|bytes| serde_json::from_slice::<Pids>(&bytes).ok())
    else {
        return false;
    };
    let mut found = false;
    for (raw, started) in [pids.guard, pids.leader] {
        let Some(pid) = Pid::from_raw(raw).filter(|_| is_same(raw, started)) else { continue };
        found = true;
        let _ = kill_process(pid, Signal::TERM);
        let deadline = Instant::now() + LAST_MOMENT;
        while Instant::now() < deadline && is_same(raw, started) {
            sleep(POLL);
        }
        if raw == pids.leader.0 {
            finish_group(pid);
        } else if is_same(raw, started) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
    let _ = fs::remove_file(pid_file);
    found
}

fn is_same(pid: i32, started: u64) -> bool {
    started != 0 && start_time(pid) == started
}

/// When a process was started, in clock ticks since the system was; 0 for one that is not there or is only waited for.
fn start_time(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name is in parentheses and may hold anything.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map_or(Vec::new(), |(_, rest)| rest.split_whitespace().collect());
    if fields.first() == Some(&"Z") {
        return 0;
    }
    fields.get(19).and_then(|field| field.parse().ok()).unwrap_or(0)
}
