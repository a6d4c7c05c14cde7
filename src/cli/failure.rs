//! Why a command ends early, and how that is told: `error:`, where it comes from, `hint:` last.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::path::{Path, absolute};
use std::process::ExitCode;

use serde_json::json;

use crate::checkpoint::SelectorProblem;
use crate::error::{Error, printable};

/// Why a command ends early.
#[derive(Debug)]
pub(super) enum Failure {
    /// The library, or the command itself, refuses or fails.
    Refused {
        /// What and why.
        error: Box<Error>,
        /// The flag or the line of `elo.yaml` behind it.
        from: Option<String>,
        /// The way out, where the command knows a better one than the library.
        hint: Option<String>,
    },
    /// Whoever reads our output has seen enough.
    Pipe,
    /// What was found, already told in full, ends the command with this status.
    Told(u8),
    /// A bug, already reported.
    Panicked,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused { error: Box::new(error), from: None, hint: None }
    }
}

impl Failure {
    /// A command that is incomplete or contradicts itself, and its full form.
    pub(super) fn usage(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::from(Error::Usage { problem: problem.into(), hint: hint.into() })
    }

    /// The exit status.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { error, .. } => error.exit_code(),
            Self::Pipe => 0,
            Self::Told(code) => *code,
            Self::Panicked => 1,
        }
    }

    /// For programs.
    pub(super) fn to_json(&self) -> Option<serde_json::Value> {
        let Self::Refused { error, from, .. } = self else {
            return None;
        };
        let mut object = json!({ "code": error.exit_code(), "message": error.to_string() });
        if let Some(from) = from {
            object["from"] = json!(from);
        }
        if let Some(hint) = self.hint() {
            object["hint"] = json!(hint);
        }
        Some(json!({ "error": object }))
    }

    /// The way out.
    pub(super) fn hint(&self) -> Option<String> {
        match self {
            Self::Refused { error, hint, .. } => hint.clone().or_else(|| error.hint()),
            Self::Pipe | Self::Told(_) | Self::Panicked => None,
        }
    }
}

/// Where the values of a command come from: the flags and lines of `elo.yaml`, to be named in errors.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins(Vec<Origin>);

#[derive(Clone, Debug)]
struct Origin {
    value: OsString,
    shown: String,
    /// Whether it says where the result goes.
    is_output: bool,
}

impl Origins {
    /// A value given by a flag. Positional arguments need none: messages name them already.
    pub(super) fn flag(&mut self, name: &str, value: impl AsRef<OsStr>) {
        let value = value.as_ref().to_owned();
        let shown = format!("`{name} {}`", printable(&value.to_string_lossy()));
        let is_output = matches!(name, "--out" | "--save-vector");
        self.push(value, shown, is_output);
    }

    /// A value given by a line of a project file.
    pub(super) fn project(&mut self, file: &Path, key: &str, value: impl AsRef<OsStr>) {
        let value = value.as_ref().to_owned();
        let shown = format!("`{key}` in `{}`", printable(&file.to_string_lossy()));
        self.push(value, shown, key == "out");
    }

    fn push(&mut self, value: OsString, shown: String, is_output: bool) {
        self.0.push(Origin { value, shown, is_output });
    }

    /// The same failure with the value that it is about.
    pub(super) fn explain(&self, mut failure: Failure) -> Failure {
        if let Failure::Refused { error, from, .. } = &mut failure
            && from.is_none()
        {
            *from = self.behind(error).map(|origin| origin.shown.clone());
        }
        failure
    }

    fn behind(&self, error: &Error) -> Option<&Origin> {
        let find = |wanted: &dyn Fn(&str) -> bool| {
            let mut origins = self.0.iter();
            origins.find(|origin| wanted(&origin.value.to_string_lossy()))
        };
        let whole = |text: &str| find(&|value| value == text);
        // `--layers 1,33`, `--layer-scale 1-33=0.5`.
        let layers = |item: &str| {
            find(&|value| {
                let selector = value.split('=').next().unwrap_or_default();
                let is_item = |c: &str| c.trim() == item;
                selector.split(',').any(is_item) || selector.split('-').any(is_item)
            })
        };
        match error {
            Error::Selector { problem } => match problem {
                SelectorProblem::Syntax { text, .. } | SelectorProblem::Twice { text, .. } => {
                    find(&|value| value.split('=').next() == Some(text))
                }
                SelectorProblem::NoSuchLayer { layer, .. } => layers(layer),
                SelectorProblem::EmptyRange { item } => layers(item),
                SelectorProblem::Glob { glob, .. }
                | SelectorProblem::MatchesNothing { glob, .. } => whole(glob),
            },
            Error::OutputExists { .. } | Error::OutputIsInput { .. } => {
                self.0.iter().find(|origin| origin.is_output)
            }
            Error::Io { path, .. }
            | Error::NotACheckpoint { path, .. }
            | Error::PickleOnly { path, .. } => {
                // The engine names outputs by their absolute paths.
                let is_path = |value: &OsString| absolute(value).is_ok_and(|v| v == *path);
                let mut origins = self.0.iter();
                origins.find(|origin| origin.value == path.as_os_str() || is_path(&origin.value))
            }
            Error::Device { device, .. } => whole(device),
            _ => None,
        }
    }
}

/// Answers what clap has to say: help and version on stdout, refusals on stderr.
pub(super) fn refuse(refusal: &clap::Error, json: bool) -> ExitCode {
    if !refusal.use_stderr() {
        return match refusal.print() {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
            _ => ExitCode::SUCCESS,
        };
    }
    if json {
        let text = refusal.render().to_string();
        let (message, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
        let message = message.trim().trim_start_matches("error: ");
        let error = json!({ "code": 2, "message": message, "hint": rest.trim() });
        let _ = writeln!(io::stderr().lock(), "{}", json!({ "error": error }));
    } else {
        let _ = refusal.print();
    }
    ExitCode::from(2)
}
