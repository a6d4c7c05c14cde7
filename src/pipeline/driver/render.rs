//! What a stage would be told, without doing it: native configurations, the script that publishes.

use std::path::PathBuf;

use super::Driver;
use super::spec::{self, Tensors};
use crate::backend::NativeFile;
use crate::backend::protocol::{DataFile, DataFormat, Spec, TrainingStage};
use crate::error::{IoContext as _, Result};
use crate::pipeline::data;
use crate::pipeline::graph::{Action, Input, Node};
use crate::pipeline::project::StageTraining;

/// The native configuration of a stage.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// The stage.
    pub name: String,
    /// Where its files go.
    pub dir: PathBuf,
    /// The files.
    pub files: Vec<NativeFile>,
    /// The command that would be run.
    pub command: Vec<String>,
    /// What is worth knowing.
    pub notes: Vec<String>,
}

impl Driver<'_> {
    /// The native configuration of a training stage, or of all.
    ///
    /// # Errors
    /// What the backend refuses.
    pub fn render(&mut self, stage: Option<&str>) -> Result<Vec<Rendered>> {
        self.prepared = data::current(self.loaded, &self.data_dir())?;
        let mut all = Vec::new();
        for node in self.nodes.clone() {
            let Action::Train { input, training } = &node.action else { continue };
            if stage.map_or(node.is_control(), |stage| stage != node.name) {
                continue;
            }
            let spec = self.foreseen(&node, input, training)?;
            let dir = self.store.out().join(&node.dir);
            let spec_path = dir.join("spec.json");
            let mut files = vec![NativeFile {
                name: "spec.json".into(),
                content: serde_json::to_string_pretty(&spec).unwrap_or_default(),
            }];
            files.extend(self.backend.native(&spec, &self.settings)?);
            let launch = self.backend.launch(&spec_path, &spec, &self.settings)?;
            let command = launch.program.iter().map(|a| a.to_string_lossy().into_owned()).collect();
            let notes = self.backend.notes(&spec, &self.settings)?;
            all.push(Rendered { name: node.name, dir, files, command, notes });
        }
        Ok(all)
    }

    /// The spec of a stage whose input may not be there yet.
    pub(super) fn foreseen(
        &mut self,
        node: &Node,
        input: &Input,
        training: &StageTraining,
    ) -> Result<Spec> {
        let (path, extract) = match input {
            Input::Base => (self.base.root().to_owned(), None),
            Input::Stage(name) => {
                let before = self.node(name)?.clone();
                let plan = match before.action {
                    Action::Extract { .. } => Some(self.plan(&before)?),
                    _ => None,
                };
                (self.model(&before), plan)
            }
        };
        let project = &self.loaded.project.layers;
        let tensors = match &extract {
            Some(plan) => Tensors::planned(plan, &self.base),
            None => Tensors::of(&self.base),
        };
        let trainable = spec::trainable(&tensors, training, project)?;
        let (layers, parameters) = (tensors.layers, tensors.parameters(|_| true));
        let data = self.dataset(training.stage).unwrap_or_else(|_| DataFile {
            path: self.data_dir().join(format!("{}.jsonl", training.stage.as_str())),
            format: match training.stage {
                TrainingStage::Sft => DataFormat::Messages,
                _ => DataFormat::Text,
            },
            records: 0,
            bytes: 0,
            digest: String::new(),
        });
        let tokenizer = match (&self.instruct, training.stage) {
            (Some(instruct), TrainingStage::Sft) => instruct.root().to_owned(),
            _ => path.clone(),
        };
        let mut spec = spec::spec(spec::Parts {
            run: self.run_name(),
            model: &self.base,
            model_digest: String::new(),
            tokenizer: &tokenizer,
            tokenizer_digest: String::new(),
            training,
            trainable,
            data: vec![data],
            settings: &self.settings,
            dir: &self.store.out().join(&node.dir),
            attempt: 1,
        })?;
        spec.model.dir = std::path::absolute(&path).at("find", &path)?;
        (spec.model.layers, spec.model.parameters) = (layers, parameters);
        Ok(spec)
    }

    /// A script that publishes the finished model, where the project says where to.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn publish_script(&self) -> Result<Option<PathBuf>> {
        let (Some(publish), Some(node)) = (&self.loaded.project.publish, self.last_model()) else {
            return Ok(None);
        };
        let model = std::path::absolute(self.model(node)).at("find", self.store.out())?;
        let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
        let private = if publish.private { " --private" } else { "" };
        let message =
            format!("{} of an ELO run, elo-surgery {}", node.name, env!("CARGO_PKG_VERSION"));
        let script = format!(
            "#!/bin/sh\n# Publishes the finished model; arguments are handed on: `--dry-run` shows what would be sent. Sign in first: hf auth login\n\
             set -eu\nexec \"${{ELO_SURGERY:-elo-surgery}}\" push {} {}{private} --message {} \"$@\"\n",
            quoted(&model.to_string_lossy()),
            quoted(&publish.repo),
            quoted(&message),
        );
        let path = self.store.out().join("publish.sh");
        std::fs::write(&path, script).at("write", &path)?;
        Ok(Some(path))
    }
}
