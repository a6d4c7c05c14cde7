//! Runs the program as its users do: arguments, environment, limits, signals.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Path of the program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_elo-surgery");
const PATIENCE: Duration = Duration::from_mins(2);

/// A run that is being described. Limits are set by a shell, which then becomes the program.
#[derive(Clone, Debug)]
pub(crate) struct Elo {
    program: PathBuf,
    args: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    shell: Vec<String>,
    patience: Duration,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) command: String,
    pub(crate) status: Option<ExitStatus>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) elapsed: Duration,
}

/// Starts describing a run; words are split at spaces, paths follow with [`Elo::arg`].
pub(crate) fn elo(words: &str) -> Elo {
    Elo {
        args: words.split_whitespace().map(OsString::from).collect(),
        ..other(Path::new(PROGRAM))
    }
}

/// Starts describing a run of another program.
pub(crate) fn other(program: &Path) -> Elo {
    Elo {
        program: program.to_owned(),
        args: Vec::new(),
        environment: Vec::new(),
        directory: None,
        shell: Vec::new(),
        patience: PATIENCE,
    }
}

impl Elo {
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub(crate) fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// `FLAG PATH`.
    pub(crate) fn with(self, flag: &str, value: impl AsRef<OsStr>) -> Self {
        self.arg(flag).arg(value)
    }

    /// A variable of its environment.
    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    pub(crate) fn within(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.to_owned());
        self
    }

    /// A shell command to run before the program takes its place: `ulimit -n 64`, `umask 022`.
    pub(crate) fn after(mut self, command: &str) -> Self {
        self.shell.push(command.to_owned());
        self
    }

    pub(crate) fn patience(mut self, limit: Duration) -> Self {
        self.patience = limit;
        self
    }

    /// Another run in this one's environment.
    #[cfg_attr(not(feature = "hub"), allow(dead_code, reason = "scripts of the Hub"))]
    pub(crate) fn onto(self, run: Self) -> Self {
        Self { environment: self.environment, patience: self.patience, ..run }
    }

    /// Takes a flag back.
    pub(crate) fn without(mut self, flag: &str) -> Self {
        self.args.retain(|arg| arg != flag);
        self
    }

    pub(crate) fn arguments(&self) -> &[OsString] {
        &self.args
    }

    fn command(&self) -> Command {
        let mut command = if self.shell.is_empty() {
            Command::new(&self.program)
        } else {
            let mut shell = Command::new("bash");
            let script = format!("{}; exec \"$@\"", self.shell.join("; "));
            shell.arg("-c").arg(script).arg("bash").arg(&self.program);
            shell
        };
        command.args(&self.args);
        command.env_remove("RUST_BACKTRACE");
        command.env("NO_COLOR", "1");
        if !self.environment.iter().any(|(name, _)| name == "HF_ENDPOINT") {
            // No test asks the real Hub, or finds what somebody downloaded from it.
            command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", "/nowhere/huggingface");
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command.stdin(Stdio::null());
        command
    }

    /// Starts the program; its output is collected by [`Running`].
    pub(crate) fn start(&self) -> Running {
        let mut child = self
            .command()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("could not start {self}: {e}"));
        let stdout = drain(child.stdout.take().unwrap());
        let stderr = drain(child.stderr.take().unwrap());
        Running { child, stdout, stderr, started: Instant::now(), command: self.to_string() }
    }

    /// Runs to the end, or kills the program when patience is over: then `status` is `None`.
    pub(crate) fn run(&self) -> Outcome {
        self.start().finish(self.patience)
    }

    /// Runs and expects success.
    #[track_caller]
    pub(crate) fn ok(&self) -> Outcome {
        let outcome = self.run();
        assert_eq!(outcome.code(), Some(0), "{outcome}");
        outcome
    }

    /// Runs and expects this exit status.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32) -> Outcome {
        let outcome = self.run();
        assert_eq!(outcome.code(), Some(code), "{outcome}");
        outcome
    }
}

fn drain(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _complete = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl fmt::Display for Elo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.shell {
            write!(f, "{line}; ")?;
        }
        f.write_str(&self.program.file_name().unwrap_or_default().to_string_lossy())?;
        for arg in &self.args {
            write!(f, " {}", arg.to_string_lossy())?;
        }
        Ok(())
    }
}

/// A run under way. Killed when it is dropped, so that a failing test leaves nothing behind.
pub(crate) struct Running {
    child: Child,
    stdout: JoinHandle<String>,
    stderr: JoinHandle<String>,
    started: Instant,
    command: String,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL. The kernel tells nobody in advance.
    pub(crate) fn kill(&mut self) {
        let _gone = self.child.kill();
    }

    /// SIGINT, as Ctrl-C sends it.
    pub(crate) fn interrupt(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    }

    pub(crate) fn is_over(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits, and kills the program when patience is over: then the outcome has no status.
    pub(crate) fn finish(mut self, patience: Duration) -> Outcome {
        let mut pause = Duration::from_micros(500);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break Some(status);
            }
            if self.started.elapsed() > patience {
                self.kill();
                let _reaped = self.child.wait();
                break None;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        let elapsed = self.started.elapsed();
        Outcome {
            command: self.command,
            status,
            stdout: self.stdout.join().unwrap(),
            stderr: self.stderr.join().unwrap(),
            elapsed,
        }
    }
}

impl Outcome {
    /// The exit status; `None` after a signal or a hang.
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.and_then(|s| s.code())
    }

    /// The signal that ended it.
    pub(crate) fn signal(&self) -> Option<i32> {
        self.status.and_then(|s| s.signal())
    }

    /// All it said.
    pub(crate) fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Its `--json` result: the last line of stdout that is an object, or all of stdout.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .or_else(|_| serde_json::from_str(self.stdout.lines().last().unwrap_or_default()))
            .unwrap_or_else(|e| panic!("stdout is not JSON ({e}): {self}"))
    }

    /// A panic, whatever the exit status.
    pub(crate) fn panicked(&self) -> bool {
        let text = self.text();
        ["panicked at", "stack overflow", "RUST_BACKTRACE", "internal error"]
            .iter()
            .any(|sign| text.contains(sign))
    }

    /// Fails unless it ended with this status and says all these words (case aside).
    #[track_caller]
    pub(crate) fn expect(&self, code: i32, words: &[&str]) -> &Self {
        assert_eq!(self.code(), Some(code), "{self}");
        let text = self.text().to_lowercase();
        for word in words {
            assert!(text.contains(&word.to_lowercase()), "`{word}` is not in: {self}");
        }
        assert!(!self.panicked(), "{self}");
        self
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shorten = |text: &str| -> String { text.chars().take(4000).collect() };
        write!(
            f,
            "\n$ {}\nstatus: {:?} after {:.2?}\nstdout: {}\nstderr: {}",
            self.command,
            self.status,
            self.elapsed,
            shorten(&self.stdout),
            shorten(&self.stderr)
        )
    }
}
