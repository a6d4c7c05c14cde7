//! The one place that writes: data to stdout, talk to stderr, colour where it is wanted.

use std::env;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::ColorChoice;
use serde::Serialize;

use super::arguments::Opening;
use super::failure::Failure;
use super::hub::Access;
use super::project::Project;
use crate::checkpoint::{Adapter, Checkpoint, OpenOptions};
use crate::error::{Error, printable};
use crate::ops::merge::Reference;

/// How this run talks.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) json: bool,
    pub(super) verbose: bool,
    pub(super) quiet: bool,
    colour: bool,
    /// Models of the Hub.
    pub(super) hub: Access,
}

/// What kind of line it is.
#[derive(Clone, Copy)]
enum Tone {
    Error,
    Warning,
    Note,
    Hint,
}

impl Session {
    pub(super) fn new(
        color: ColorChoice,
        json: bool,
        verbose: u8,
        quiet: bool,
        offline: bool,
    ) -> Self {
        let colour = !json && wants_colour(color);
        Self { json, verbose: verbose > 0, quiet, colour, hub: Access::new(offline) }
    }

    /// Whether a progress bar can be drawn.
    pub(super) fn has_bar(&self) -> bool {
        !self.quiet && !self.json && io::stderr().is_terminal()
    }

    /// Whether talk may be coloured.
    pub(super) fn has_colour(&self) -> bool {
        self.colour
    }

    /// Data, as it is.
    #[expect(clippy::unused_self, reason = "who has a session may write")]
    pub(super) fn print(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(text.as_bytes());
        match written.and_then(|()| stdout.flush()) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(Failure::Pipe),
            Err(source) => {
                Err(Failure::from(Error::Io { action: "write to", path: "stdout".into(), source }))
            }
        }
    }

    /// Data as one JSON object on one line.
    pub(super) fn print_json(&self, data: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(data)
            .map_err(|e| Error::Json { path: "stdout".into(), message: e.to_string() })?;
        self.print(&format!("{text}\n"))
    }

    /// A line for people.
    pub(super) fn say(&self, line: &str) {
        if !self.quiet && !self.json {
            Self::talk(line);
        }
    }

    /// A line for people who asked for more.
    pub(super) fn detail(&self, line: &str) {
        if self.verbose && !self.json {
            Self::talk(line);
        }
    }

    /// A decision worth knowing.
    pub(super) fn note(&self, text: &str) {
        self.say(&self.toned(Tone::Note, text));
    }

    /// A doubt.
    pub(super) fn warn(&self, text: &str) {
        self.say(&self.toned(Tone::Warning, text));
    }

    /// Something for programs, on stderr.
    pub(super) fn event(event: &serde_json::Value) {
        Self::talk(&event.to_string());
    }

    /// Nobody may be listening on stderr; that is no reason to stop.
    fn talk(line: &str) {
        let _ = writeln!(io::stderr().lock(), "{line}");
    }

    /// Tells why a command failed and gives the exit status.
    pub(super) fn fail(&self, failure: &Failure) -> ExitCode {
        if let Failure::Refused { error, from, .. } = failure {
            if let (true, Some(object)) = (self.json, failure.to_json()) {
                Self::event(&object);
            } else {
                Self::talk(&self.toned(Tone::Error, &error.to_string()));
                if let Some(from) = from {
                    Self::talk(&format!("  from {from}"));
                }
                if let Some(hint) = failure.hint() {
                    Self::talk(&self.toned(Tone::Hint, &hint));
                }
            }
        }
        ExitCode::from(failure.exit_code())
    }

    fn toned(&self, tone: Tone, text: &str) -> String {
        let (label, style) = match tone {
            Tone::Error => ("error", "1;31"),
            Tone::Warning => ("warning", "1;33"),
            Tone::Note => ("note", "1;34"),
            Tone::Hint => ("hint", "1;36"),
        };
        if self.colour {
            format!("\x1b[{style}m{label}:\x1b[0m {text}")
        } else {
            format!("{label}: {text}")
        }
    }

    /// Opens a checkpoint that the user named.
    pub(super) fn open(&self, path: &Path, opening: &Opening) -> Result<Checkpoint, Failure> {
        self.open_with(opening.options(), path)
    }

    /// Opens a model with the adapter that a reference names.
    pub(super) fn open_adapted(
        &self,
        named: &Reference,
        opening: &Opening,
    ) -> Result<Checkpoint, Failure> {
        let model = self.open(&named.path, opening)?;
        match &named.lora {
            None => Ok(model),
            Some(lora) => {
                let adapter = self.open_adapter(lora, opening)?;
                Ok(model.with_adapters(&[(&adapter, 1.0)])?)
            }
        }
    }

    /// Opens a LoRA adapter.
    pub(super) fn open_adapter(&self, path: &Path, opening: &Opening) -> Result<Adapter, Failure> {
        let placed = self.hub.place(path, self)?;
        let adapter = opening.options().open_adapter(&placed.path);
        let adapter = adapter.map_err(|error| missing_model(path, placed.name.is_some(), error))?;
        Ok(match placed.name {
            Some(name) => adapter.named(name),
            None => adapter,
        })
    }

    /// Opens a checkpoint with options of its own: an existing path, else a model of the Hub.
    pub(super) fn open_with(
        &self,
        options: OpenOptions,
        path: &Path,
    ) -> Result<Checkpoint, Failure> {
        let placed = self.hub.place(path, self)?;
        let checkpoint = options.open(&placed.path);
        let checkpoint =
            checkpoint.map_err(|error| missing_model(path, placed.name.is_some(), error))?;
        Ok(match placed.name {
            Some(name) => checkpoint.named(name),
            None => checkpoint,
        })
    }

    /// The project that the working directory belongs to, if there is one.
    pub(super) fn project(&self) -> Result<Option<Project>, Failure> {
        let found = Project::find()?;
        if let Some(project) = &found {
            self.detail(&format!("project: `{}`", project.file.display()));
        }
        Ok(found)
    }
}

/// A name that is no path but looks like one of the Hub's deserves a better hint than "no such file".
fn missing_model(path: &Path, on_hub: bool, error: Error) -> Failure {
    let missing =
        matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound);
    let mut failure = Failure::from(error);
    if let (true, Failure::Refused { hint, .. }) = (missing, &mut failure)
        && let Some(better) = hint_of_missing(path, on_hub)
    {
        *hint = Some(better);
    }
    failure
}

fn hint_of_missing(path: &Path, on_hub: bool) -> Option<String> {
    let text = path.to_string_lossy();
    let shown = printable(&text);
    if on_hub {
        return Some(format!(
            "the cache lacks files of `{shown}`: run without `--offline`, or fetch them with `elo-surgery pull`"
        ));
    }
    if path.is_absolute() || text.split('/').count() != 2 || text.starts_with('.') {
        return None;
    }
    Some(if !cfg!(feature = "hub") {
        format!(
            "this build knows no Hub: fetch the model with `hf download {shown}`, which prints its directory, or build with the feature `hub`"
        )
    } else if path.parent().is_some_and(Path::exists) {
        format!("if a model of the Hub is meant, say so with a revision: `{shown}@main`")
    } else {
        "it is no path here, and no name that a model of the Hub can have".to_owned()
    })
}

fn wants_colour(choice: ColorChoice) -> bool {
    let set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto if set("NO_COLOR") => false,
        ColorChoice::Auto if env::var_os("CLICOLOR_FORCE").is_some_and(|v| v != "0") => true,
        ColorChoice::Auto => {
            io::stderr().is_terminal() && env::var_os("TERM").is_none_or(|term| term != "dumb")
        }
    }
}
