//! External backends: executables that speak the protocol with three verbs, `describe`, `check --spec F`, `run --spec F`.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::launch::Launch;
use super::native::Native;
use super::protocol::{Description, PROTOCOL, Spec};
use super::refusal::refused;
use super::{Adapter, BackendSettings};
use crate::error::{IoContext as _, Result, printable};

/// How long `describe` and `check` may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much of what they print is read.
const LIMIT: u64 = 1 << 20;

pub(super) struct External {
    pub(super) name: String,
    pub(super) program: PathBuf,
}

impl External {
    fn unusable(&self, problem: String) -> Description {
        Description {
            name: self.name.clone(),
            version: "unknown".to_owned(),
            problems: vec![problem],
            ..Description::default()
        }
    }

    fn run(&self, arguments: &[&OsStr], settings: &BackendSettings) -> Result<Answer> {
        let mut command = Command::new(&self.program);
        command.args(arguments).envs(&settings.env).env("ELO_PROTOCOL", PROTOCOL.to_string());
        answer(command, PATIENCE).at("run", &self.program)
    }
}

impl Adapter for External {
    fn describe(&self, settings: &BackendSettings) -> Result<Description> {
        let told = match self.run(&[OsStr::new("describe")], settings) {
            Ok(told) => told,
            Err(error) => return Ok(self.unusable(error.to_string())),
        };
        Ok(match description(&told) {
            Ok(description) => description,
            Err(problem) => self.unusable(format!("`{} describe` {problem}", self.name)),
        })
    }

    fn native(&self, _spec: &Spec, _settings: &BackendSettings) -> Result<Native> {
        Ok(Native::default())
    }

    fn check(&self, spec: &Path, settings: &BackendSettings) -> Result<()> {
        let arguments = [OsStr::new("check"), OsStr::new("--spec"), spec.as_os_str()];
        let told = self.run(&arguments, settings)?;
        match told.status {
            Some(status) if status.success() => Ok(()),
            Some(_) | None => Err(refused(
                format!("backend `{}`", self.name),
                format!("`check` {}", told.failure()),
                "the backend's own documentation says what it needs",
            )),
        }
    }

    fn launch(&self, path: &Path, _spec: &Spec, _settings: &BackendSettings) -> Result<Launch> {
        let mut program = vec![self.program.clone().into_os_string()];
        program.extend(["run", "--spec"].map(Into::into));
        program.push(path.into());
        Ok(Launch::new(path, program))
    }
}

/// Reads what `describe` printed, or says what is wrong with it.
fn description(told: &Answer) -> Result<Description, String> {
    if !told.status.is_some_and(|status| status.success()) {
        return Err(told.failure());
    }
    let description: Description = serde_json::from_str(told.out.trim())
        .map_err(|error| format!("printed no valid JSON description: {error}"))?;
    if !description.protocol.contains(&PROTOCOL) {
        let spoken: Vec<String> = description.protocol.iter().map(u32::to_string).collect();
        return Err(format!(
            "speaks protocol {}, this program speaks {PROTOCOL}",
            if spoken.is_empty() { "none".to_owned() } else { spoken.join(", ") }
        ));
    }
    Ok(description)
}

/// What a program printed and how it ended.
pub(super) struct Answer {
    /// `None` when it was stopped for taking too long.
    pub(super) status: Option<ExitStatus>,
    pub(super) out: String,
    err: String,
    patience: Duration,
}

impl Answer {
    /// How it failed, in words.
    pub(super) fn failure(&self) -> String {
        let Some(status) = self.status else {
            return format!("took more than {} s and was stopped", self.patience.as_secs());
        };
        let said = self.err.trim().lines().last().unwrap_or_default();
        let said = if said.is_empty() { String::new() } else { format!(": {}", printable(said)) };
        format!("failed ({status}){said}")
    }
}

/// Runs a command in a process group of its own, with limits on time and output.
pub(super) fn answer(mut command: Command, patience: Duration) -> io::Result<Answer> {
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let out = child.stdout.take().map(drain);
    let err = child.stderr.take().map(drain);
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(1);
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if Instant::now() >= deadline => break None,
            None => thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    };
    if status.is_none() {
        stop(&mut child);
    }
    // A grandchild that keeps the pipe open must not keep us.
    let said = |receiver: Option<Receiver<String>>| {
        receiver.and_then(|r| r.recv_timeout(Duration::from_secs(1)).ok()).unwrap_or_default()
    };
    Ok(Answer { status, out: said(out), err: said(err), patience })
}

fn stop(child: &mut Child) {
    if let Ok(id) = i32::try_from(child.id())
        && let Some(group) = Pid::from_raw(id)
    {
        // The group may be gone already.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

fn drain(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut pipe = pipe.take(LIMIT);
        let _ = pipe.read_to_end(&mut bytes);
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}
