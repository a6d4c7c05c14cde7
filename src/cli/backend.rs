//! `backend`: what can train here. And the hidden commands that are the built-in backend and the guard of all.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::failure::Failure;
use super::session::Session;
use crate::backend::{self, Backend as Found, BackendSettings, Guard};
use crate::error::Error;
use crate::pipeline::project::Project;

/// List, describe and check training backends
#[derive(Debug, Args)]
pub(super) struct Backend {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List every backend that is known, and why one cannot be used
    List,
    /// Print what a backend says of itself, as JSON
    Describe(Name),
    /// Check that a backend can be used, and with `--spec` that it takes a spec
    Check(Check),
}

#[derive(Debug, Args)]
struct Name {
    /// Its name, or a path [default: the project's]
    name: Option<String>,
}

#[derive(Debug, Args)]
struct Check {
    /// Its name, or a path [default: the project's]
    name: Option<String>,
    /// A spec to check: `spec.json` of a stage
    #[arg(long, value_name = "FILE")]
    spec: Option<PathBuf>,
}

pub(super) fn run(arguments: &Backend, session: &Session) -> Result<(), Failure> {
    match &arguments.verb {
        Verb::List => list(session),
        Verb::Describe(Name { name }) => {
            let settings = settings(name.as_ref())?;
            session.print_json(&Found::find(&settings)?.describe(&settings)?)
        }
        Verb::Check(arguments) => check(arguments, session),
    }
}

/// The backend settings of the project, if there is one. A project that cannot be read is an error, not an absence.
fn of_project() -> Result<Option<BackendSettings>, Failure> {
    Ok(Project::find()?.map(|loaded| loaded.project.backend.settings()))
}

fn settings(name: Option<&String>) -> Result<BackendSettings, Failure> {
    let of_project = of_project()?;
    match (name, of_project) {
        (Some(name), Some(settings)) => Ok(BackendSettings { name: name.clone(), ..settings }),
        (Some(name), None) => {
            Ok(BackendSettings { name: name.clone(), ..BackendSettings::default() })
        }
        (None, Some(settings)) => Ok(settings),
        (None, None) => Err(Failure::usage(
            "no backend is named, and there is no `elo.yaml` here or above",
            "`elo-surgery backend describe builtin`",
        )),
    }
}

fn list(session: &Session) -> Result<(), Failure> {
    let listings = backend::list(of_project()?.as_ref());
    if session.json {
        let all: Vec<_> = listings
            .iter()
            .map(|listing| {
                json!({
                    "name": listing.name,
                    "origin": listing.origin.to_string(),
                    "version": listing.version,
                    "problems": listing.problems,
                })
            })
            .collect();
        return session.print_json(&json!({ "command": "backend list", "backends": all }));
    }
    let width = listings.iter().map(|listing| listing.name.len()).max().unwrap_or(0);
    for listing in listings {
        let name = &listing.name;
        let version = listing.version.as_deref().unwrap_or("-");
        let state = match listing.problems.first() {
            None => "usable".to_owned(),
            Some(_) => listing.problems.join("; "),
        };
        session.print(&format!("{name:width$}  {version:10}  {}  {state}\n", listing.origin))?;
        for other in &listing.shadows {
            session.print(&format!("{:width$}  hides {}\n", "", other.display()))?;
        }
    }
    Ok(())
}

fn check(arguments: &Check, session: &Session) -> Result<(), Failure> {
    let settings = settings(arguments.name.as_ref())?;
    let found = Found::find(&settings)?;
    let description = found.describe(&settings)?;
    if !description.problems.is_empty() {
        return Err(Error::Unsupported {
            what: format!("backend `{}`", found.name()),
            reason: description.problems.join("; "),
            hint: "install what is missing".into(),
        }
        .into());
    }
    if let Some(path) = &arguments.spec {
        let text = std::fs::read(path).map_err(|source| Error::Io {
            action: "read",
            path: path.clone(),
            source,
        })?;
        let spec = serde_json::from_slice(&text)
            .map_err(|e| Error::Json { path: path.clone(), message: e.to_string() })?;
        found.check(path, &spec, &settings)?;
    }
    let (name, version) = (&description.name, &description.version);
    if session.json {
        let answer = json!({ "command": "backend check", "name": name, "version": version });
        return session.print_json(&answer);
    }
    session.say(&format!("{name} {version} can be used"));
    Ok(())
}

/// The built-in backend, as the protocol has it.
#[derive(Debug, Args)]
pub(super) struct Builtin {
    /// Always `builtin`.
    name: String,
    /// `describe`, `check` or `run`.
    verb: String,
    #[arg(long)]
    spec: Option<PathBuf>,
    #[arg(long, env = "ELO_THREADS", default_value_t = 0)]
    threads: usize,
}

#[cfg(feature = "trainer")]
pub(super) fn builtin(arguments: &Builtin, session: &Session) -> Result<(), Failure> {
    use crate::backend::protocol::exit;

    let settings = BackendSettings::default();
    let found = Found::find(&settings)?;
    match (arguments.verb.as_str(), &arguments.spec) {
        ("describe", _) => session.print_json(&found.describe(&settings)?),
        ("check", Some(path)) => {
            check(&Check { name: Some("builtin".into()), spec: Some(path.clone()) }, session)
        }
        ("run", Some(path)) => {
            let stop = super::process::cancellation();
            match backend::serve(path, arguments.threads, &stop) {
                Ok(0) => Ok(()),
                Ok(code) => Err(Failure::Told(u8::try_from(code).unwrap_or(1))),
                Err(error) => {
                    let status = match &error {
                        Error::Data { .. } => exit::DATA,
                        Error::Unsupported { .. } | Error::Config { .. } | Error::Usage { .. } => {
                            exit::CONFIG
                        }
                        _ => 1,
                    };
                    session.fail(&Failure::from(error));
                    Err(Failure::Told(u8::try_from(status).unwrap_or(1)))
                }
            }
        }
        _ => Err(Failure::usage(
            format!("`{} {}` is not in the protocol", arguments.name, arguments.verb),
            "describe, check --spec FILE, run --spec FILE",
        )),
    }
}

#[cfg(not(feature = "trainer"))]
pub(super) fn builtin(arguments: &Builtin, _session: &Session) -> Result<(), Failure> {
    let Builtin { name, verb, spec, threads } = arguments;
    Err(Failure::usage(
        format!("`{name} {verb}` ({spec:?}, {threads} threads): this build has no trainer"),
        "build with the feature `trainer`",
    ))
}

/// Runs a backend so that it does not outlive its driver.
#[derive(Debug, Args)]
pub(super) struct Guarded {
    #[arg(long)]
    driver: u32,
    #[arg(long)]
    pid_file: PathBuf,
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

pub(super) fn guard(arguments: &Guarded) -> Result<(), Failure> {
    let Guarded { driver, pid_file, program } = arguments;
    let request = Guard { pid_file: pid_file.clone(), driver: *driver, program: program.clone() };
    match backend::guard(&request)? {
        0 => Ok(()),
        code => Err(Failure::Told(code)),
    }
}
