//! `command`: a command of the project, for trainers that no adapter knows. It is given the spec and must write the result
//! file; what it did to the model is verified afterwards like any backend's work.

use std::path::Path;

use super::launch::Launch;
use super::native::Native;
use super::protocol::{Description, Spec, features};
use super::refusal::refused;
use super::{Adapter, BackendSettings};
use crate::error::Result;

pub(super) struct Command;

const MISSING: &str = "`command` is empty: give `backend: {name: command, command: [my-trainer, --spec, \"{spec}\"]}`";

impl Adapter for Command {
    fn describe(&self, settings: &BackendSettings) -> Result<Description> {
        let problems =
            if settings.command.is_empty() { vec![MISSING.to_owned()] } else { Vec::new() };
        Ok(Description {
            problems,
            ..Description::adapter(
                "command",
                &[
                    // Whoever wrote the command vouches for these.
                    features::FREEZE,
                    features::DOCUMENT_MASK,
                    features::RESUME,
                    features::LORA,
                    features::MULTI_GPU,
                    features::MULTI_NODE,
                    features::ADAMW_8BIT,
                ],
            )
        })
    }

    fn native(&self, _spec: &Spec, settings: &BackendSettings) -> Result<Native> {
        if settings.command.is_empty() {
            return Err(refused("backend `command`", "no command is given", MISSING));
        }
        Ok(Native::default())
    }

    fn launch(&self, path: &Path, spec: &Spec, settings: &BackendSettings) -> Result<Launch> {
        self.native(spec, settings)?;
        // `Backend::launch` puts the command in.
        Ok(Launch::new(path, Vec::new()))
    }
}
