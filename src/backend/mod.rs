//! Training backends: separate programs behind one protocol.
//!
//! A [`Backend`] is found by name, says what it can do, writes its native configuration beside the spec, and says how it
//! is started; [`supervise()`] runs it under its [`guard()`] and follows its events. The driver judges the result.

mod axolotl;
mod builtin;
mod checkpoints;
mod command;
mod discovery;
mod event;
mod external;
mod guard;
mod interpreter;
mod launch;
mod layers;
mod llama_factory;
mod measure;
mod merge;
mod native;
pub mod protocol;
mod refusal;
#[cfg(feature = "trainer")]
mod serve;
mod settings;
mod sharding;
mod size;
mod supervise;
#[cfg(test)]
mod tests;
mod trl;
mod yaml;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::Result;
pub use discovery::{Listing, list};
pub use event::{NativeEvents, parse as parse_event};
pub use guard::{Guard, end_left_over, guard};
pub use launch::{Launch, Stop};
pub use measure::{Loss, MeasureRequest, MeasureSlice, measure};
use native::Native;
pub use native::NativeFile;
use protocol::{Description, Outcome, Spec};
#[cfg(feature = "trainer")]
pub use serve::serve;
pub use settings::{BackendChoice, BackendSettings};
pub use size::{Size, parse_size};
pub use supervise::{Ended, Supervised, Watch, log_tail, read_events, supervise};

/// What trains a stage.
pub struct Backend {
    name: String,
    origin: Origin,
    adapter: Box<dyn Adapter>,
}

/// Where a backend was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An adapter of this program.
    BuiltIn,
    /// `elo-backend-NAME` on PATH.
    OnPath(PathBuf),
    /// Named by its path.
    Path(PathBuf),
    /// The command of the settings.
    Command,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built in"),
            Self::OnPath(path) | Self::Path(path) => write!(f, "{}", path.display()),
            Self::Command => f.write_str("command of the project"),
        }
    }
}

/// What differs from backend to backend.
trait Adapter: Send + Sync {
    /// What it can do, in under a second and without a GPU.
    fn describe(&self, settings: &BackendSettings) -> Result<Description>;

    /// Its configuration for a spec: a pure function of its arguments. Refuses what the backend cannot do.
    fn native(&self, spec: &Spec, settings: &BackendSettings) -> Result<Native>;

    /// What is left to check once the native files lie beside the spec.
    fn check(&self, _spec: &Path, _settings: &BackendSettings) -> Result<()> {
        Ok(())
    }

    /// How many arguments of its command stand before the settings' `prefix`: a script that starts the rest.
    fn wrapper(&self, _spec: &Spec) -> usize {
        0
    }

    /// Its command, with the environment of its own.
    fn launch(&self, path: &Path, spec: &Spec, settings: &BackendSettings) -> Result<Launch>;

    /// A reader of its progress, for a backend that does not write `out.events`.
    fn events(&self, _spec: &Spec) -> Option<Box<dyn NativeEvents>> {
        None
    }

    /// How it ended, by what it left on disk.
    fn outcome(&self, spec: &Spec) -> Result<Option<Outcome>> {
        checkpoints::read_result(&spec.out.result)
    }
}

impl Backend {
    /// Finds the backend that the settings name: a path, a built-in adapter, then `elo-backend-NAME` on PATH.
    pub fn find(settings: &BackendSettings) -> Result<Self> {
        discovery::find(settings)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it was found.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// What it can do. `problems` say why it cannot be used here, and what to do about it.
    pub fn describe(&self, settings: &BackendSettings) -> Result<Description> {
        self.adapter.describe(settings)
    }

    /// The configuration it would be given, file by file: what `render` prints. They belong beside the spec.
    pub fn native(&self, spec: &Spec, settings: &BackendSettings) -> Result<Vec<NativeFile>> {
        Ok(self.adapter.native(spec, settings)?.files)
    }

    /// What is worth knowing about that configuration, one sentence each.
    pub fn notes(&self, spec: &Spec, settings: &BackendSettings) -> Result<Vec<String>> {
        Ok(self.adapter.native(spec, settings)?.notes)
    }

    /// Writes the native files beside the spec and validates what can be validated without training.
    pub fn check(&self, path: &Path, spec: &Spec, settings: &BackendSettings) -> Result<()> {
        let native = self.adapter.native(spec, settings)?;
        native::write(launch::stage_directory(path), &native.files)?;
        self.adapter.check(path, settings)
    }

    /// The command that trains. Clears leftovers in `out.work` that would keep the backend from starting; never a whole
    /// checkpoint.
    pub fn launch(&self, path: &Path, spec: &Spec, settings: &BackendSettings) -> Result<Launch> {
        let mut launch = self.adapter.launch(path, spec, settings)?;
        let mut env = launch::mirrored(path, spec)?;
        env.append(&mut launch.env);
        launch::add_environment(&mut env, settings);
        launch.env = env;
        let wrapper = self.adapter.wrapper(spec);
        if !settings.command.is_empty() {
            let config = self.adapter.native(spec, settings)?.main;
            let command = launch::fill(&settings.command, path, spec, config.as_deref())?;
            launch.program.splice(wrapper.., command);
        }
        let prefix = launch::fill(&settings.prefix, path, spec, None)?;
        launch.program.splice(wrapper..wrapper, prefix);
        Ok(launch)
    }

    /// A reader of its progress; `None` where it writes `out.events` itself.
    pub fn events(&self, spec: &Spec) -> Option<Box<dyn NativeEvents>> {
        self.adapter.events(spec)
    }

    /// How it ended, by what it left on disk and never by an exit status. `None` where nothing tells.
    ///
    /// Where a complete model lies among a backend's checkpoints it is moved to `out.model` in one step.
    pub fn outcome(&self, spec: &Spec) -> Result<Option<Outcome>> {
        self.adapter.outcome(spec)
    }
}
