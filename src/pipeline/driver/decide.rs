//! What would be done, and why: fingerprints of stages, and the answer to `--dry-run`.

use serde::Serialize;
use serde_json::Value;

use super::Driver;
use super::spec::Tensors;
use super::training::joined;
use super::witness::Eyes;
use crate::audit::{VerifyOptions, examine};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::pipeline::data;
use crate::pipeline::fingerprint::{self, Inputs, changes, flatten, key};
use crate::pipeline::graph::{Action, Input, Node};
use crate::pipeline::project::StageTraining;
use crate::pipeline::record::{StageRecord, State};

/// What would be done about a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "decision", rename_all = "kebab-case")]
pub enum Decision {
    /// Nothing.
    UpToDate,
    /// It would be done.
    Run {
        /// Why.
        why: String,
    },
    /// It would go on.
    Resume {
        /// From where.
        why: String,
    },
    /// It depends on what an earlier stage gives.
    After {
        /// The stage.
        #[serde(rename = "after")]
        stage: String,
    },
}

/// A stage and what would be done about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Intent {
    /// The stage.
    pub stage: String,
    /// What would be done.
    #[serde(flatten)]
    pub decision: Decision,
}

impl Driver<'_> {
    /// What a run would do. Writes nothing and reads no weights.
    ///
    /// # Errors
    /// Records that cannot be read.
    pub fn preview(&mut self) -> Result<Vec<Intent>> {
        let current = data::current(self.loaded, &self.data_dir())?;
        let fresh = current.is_some();
        self.prepared = current;
        let mut open: Vec<String> = Vec::new();
        let mut intents = Vec::new();
        for node in self.selected() {
            let waits = node.needs().into_iter().find(|name| open.iter().any(|o| o == name));
            let waits = waits.map(str::to_owned);
            let old = self.store.stage(&node.dir)?;
            let trains = matches!(node.action, Action::Train { .. });
            let decision = match (waits, &old) {
                (_, Some(old)) if unfinished(old) => Decision::Resume { why: describe(old) },
                (Some(stage), _) => Decision::After { stage },
                (None, None) => Decision::Run { why: "it has not been done yet".into() },
                (None, Some(_)) if self.options.force => {
                    Decision::Run { why: "it was asked for again".into() }
                }
                (None, Some(_)) if trains && !fresh => {
                    Decision::Run { why: "the data has changed".into() }
                }
                (None, Some(_)) if node.action == Action::Evaluate && !open.is_empty() => {
                    Decision::After { stage: open.last().cloned().unwrap_or_default() }
                }
                (None, Some(old)) => self.compare(&node, old)?,
            };
            if decision != Decision::UpToDate {
                open.push(node.name.clone());
            }
            intents.push(Intent { stage: node.name, decision });
        }
        Ok(intents)
    }

    fn compare(&mut self, node: &Node, old: &StageRecord) -> Result<Decision> {
        let inputs = self.inputs(node)?;
        if key(&inputs) != old.key {
            return Ok(Decision::Run { why: changes(&old.inputs, &inputs).join("; ") });
        }
        if !self.is_intact(node, old)? {
            return Ok(Decision::Run { why: "its model is gone or was changed".into() });
        }
        Ok(Decision::UpToDate)
    }

    /// Everything that shapes a stage's result.
    pub(super) fn inputs(&mut self, node: &Node) -> Result<Inputs> {
        let mut inputs = Inputs::new();
        let mut add = |name: &str, value: String| inputs.insert(name.to_owned(), value);
        add("tool", env!("CARGO_PKG_VERSION").to_owned());
        match &node.action {
            Action::Extract { layers } => {
                add("layers", layers.clone());
                add("model", self.digest_of(&Input::Base)?);
            }
            Action::Inject { part, layers } => {
                add("layers", layers.clone());
                add("model", self.digest_of(&Input::Base)?);
                add("part", self.digest_of(&Input::Stage(part.clone()))?);
            }
            Action::ChatVector { into } => {
                add("into", self.digest_of(into)?);
                add("model", self.digest_of(&Input::Base)?);
                if let Some(instruct) = &self.instruct {
                    let root = instruct.root().to_owned();
                    let stop = || self.witness.stop();
                    add("instruct", self.store.digest(&root, &stop)?);
                }
                let stage = &self.loaded.project.chat_vector;
                add("scale", stage.scale.to_string());
                add("skip_embeddings", stage.skip_embeddings.to_string());
                add("vocab", stage.vocab.clone());
            }
            Action::Train { input, training } => {
                let model = self.open_input(input)?;
                add("model", self.digest_of(input)?);
                add("data", self.dataset(training.stage)?.digest);
                self.add_training(&mut inputs, &model, training)?;
            }
            Action::Evaluate => {
                let stages: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
                for name in stages {
                    if name != node.name {
                        let input = Input::Stage(name.clone());
                        if self.model(self.node(&name)?).exists() {
                            inputs.insert(format!("model.{name}"), self.digest_of(&input)?);
                        }
                    }
                }
                let evaluate = serde_json::to_value(&self.loaded.project.evaluate);
                flatten("evaluate", &evaluate.unwrap_or_default(), &mut inputs);
            }
        }
        Ok(inputs)
    }

    fn add_training(
        &self,
        inputs: &mut Inputs,
        model: &Checkpoint,
        training: &StageTraining,
    ) -> Result<()> {
        let project = &self.loaded.project;
        let trainable = super::spec::trainable(&Tensors::of(model), training, &project.layers)?;
        let tokenizer = self.tokenizer(model, training.stage);
        let digest = fingerprint::digest_of_files(&tokenizer, &super::surgery::SPEECH)?;
        inputs.insert("tokenizer".into(), digest);
        inputs.insert("trained".into(), short_list(&joined(&trainable.tensors)));
        flatten("train", &json(&training.train), inputs);
        flatten("method", &json(&trainable.method), inputs);
        flatten("lora", &json(&trainable.lora), inputs);
        flatten("extra", &training.extra.clone().into(), inputs);
        flatten("backend.extra", &self.settings.extra.clone().into(), inputs);
        flatten("backend.command", &json(&self.settings.command), inputs);
        let Self { description, .. } = self;
        inputs.insert("backend".into(), format!("{} {}", description.name, description.version));
        Ok(())
    }

    /// Content digest of a stage's input.
    pub(super) fn digest_of(&mut self, input: &Input) -> Result<String> {
        let path = match input {
            Input::Base => self.base.root().to_owned(),
            Input::Stage(name) => self.model(self.node(name)?),
        };
        let stop = || self.witness.stop();
        self.store.digest(&path, &stop)
    }

    /// Whether a stage's model is the one that was recorded.
    pub(super) fn is_intact(&mut self, node: &Node, record: &StageRecord) -> Result<bool> {
        if node.action == Action::Evaluate {
            return Ok(true);
        }
        let model = self.model(node);
        if !model.is_dir() {
            return Ok(false);
        }
        if record.stamp.as_deref() == Some(&*fingerprint::stamp(&model)?) {
            return Ok(true);
        }
        let stop = || self.witness.stop();
        Ok(record.digest.as_deref() == Some(&*self.store.digest(&model, &stop)?))
    }

    /// A model without a record that this very stage would make: by `elo-surgery extract` in the project, say.
    pub(super) fn adoptable(&self, node: &Node) -> Result<bool> {
        let surgery = matches!(
            node.action,
            Action::Extract { .. } | Action::Inject { .. } | Action::ChatVector { .. }
        );
        if !surgery || !self.model(node).is_dir() {
            return Ok(false);
        }
        let made = Checkpoint::open(self.model(node))?;
        let plan = made.provenance().map(|provenance| provenance.plan.clone());
        if plan != Some(self.plan(node)?.digest()) {
            return Ok(false);
        }
        let options = VerifyOptions { read_data: false, ..VerifyOptions::default() };
        let found = examine(&made, &options, &Eyes::on(self.witness, "checking"))?;
        Ok(found.problems.is_empty())
    }
}

fn unfinished(record: &StageRecord) -> bool {
    matches!(record.state, State::Running | State::Interrupted | State::Failed)
}

fn describe(record: &StageRecord) -> String {
    let state = match record.state {
        State::Failed => "it failed",
        _ => "it was interrupted",
    };
    match (record.steps, record.steps_total) {
        (Some(steps), Some(total)) => format!("{state} at step {steps} of {total}"),
        _ => state.to_owned(),
    }
}

/// Long lists by their digest.
fn short_list(list: &str) -> String {
    if list.len() < 100 {
        list.to_owned()
    } else {
        blake3::hash(list.as_bytes()).to_hex().to_string()
    }
}

fn json(value: &impl Serialize) -> Value {
    // Plain data: serialising to memory cannot fail.
    serde_json::to_value(value).unwrap_or_default()
}
