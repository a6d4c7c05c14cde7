//! `command`: a command of the project, for trainers that no adapter knows. It is given the spec and must write the result
//! file; what it did to the model is verified afterwards like any backend's work.

use std::path::Path;

use super::launch::Launch;
use super::native::Native;
use super::protocol::{Description, PROTOCOL, Spec, TrainingStage, features};
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
            protocol: vec![PROTOCOL],
            name: "command".to_owned(),
            version: "unknown".to_owned(),
            stages: vec![TrainingStage::Pretrain, TrainingStage::Align, TrainingStage::Sft],
            families: vec!["*".to_owned()],
            // Whoever wrote the command vouches for these.
            features: [
                features::FREEZE,
                features::DOCUMENT_MASK,
                features::RESUME,
                features::LORA,
                features::MULTI_GPU,
                features::MULTI_NODE,
                features::ADAMW_8BIT,
            ]
            .map(str::to_owned)
            .to_vec(),
            needs: Vec::new(),
            problems,
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
