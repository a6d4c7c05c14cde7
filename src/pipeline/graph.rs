//! The stages of a project, in the order of the run, and the controls it is compared with.

use std::path::{Path, PathBuf};

use super::project::{Control, Project, StageTraining};
use crate::backend::protocol::{Method, TrainingStage};
use crate::error::{Error, Result};

/// A stage of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// `extract`, `pretrain`, ..; `control/align-only/align`.
    pub name: String,
    /// Where its files go, relative to the output directory: `02-pretrain`.
    pub dir: PathBuf,
    /// What is done.
    pub action: Action,
}

/// What a stage does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Detach layers of the base model.
    Extract {
        /// Which, counting from 1.
        layers: String,
    },
    /// Train a model.
    Train {
        /// The model.
        input: Input,
        /// Data, hyperparameters, what is trained.
        training: Box<StageTraining>,
    },
    /// Put trained layers back into the base model.
    Inject {
        /// The stage that trained them.
        part: String,
        /// Which, counting from 1.
        layers: String,
    },
    /// Add `instruct - base`.
    ChatVector {
        /// To what.
        into: Input,
    },
    /// Benchmarks, tables, report.
    Evaluate,
}

/// A model that a stage starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The base model.
    Base,
    /// The result of a stage.
    Stage(String),
}

/// The stages of the main run, by name and directory.
pub const STAGES: [(&str, &str); 7] = [
    ("extract", "01-extract"),
    ("pretrain", "02-pretrain"),
    ("inject", "03-inject"),
    ("align", "04-align"),
    ("chat-vector", "05-chat-vector"),
    ("sft", "06-sft"),
    ("evaluate", "07-evaluate"),
];

/// Where a stage of the main run keeps its files.
pub fn stage_dir(name: &str) -> Option<&'static str> {
    STAGES.iter().find(|(stage, _)| *stage == name).map(|(_, dir)| *dir)
}

/// Where a stage keeps its model, relative to the output directory.
pub fn model_of(dir: &Path) -> PathBuf {
    dir.join("model")
}

/// The stages of a project.
///
/// `training` gives a training stage's settings, `layers` the number of decoder layers of the base model.
///
/// # Errors
/// A layer selection that the model does not have.
pub fn stages(
    project: &Project,
    training: impl Fn(TrainingStage) -> StageTraining,
    layers: u64,
) -> Result<Vec<Node>> {
    let chosen = project.layers.to_string();
    let main = |name: &str, action| Node {
        name: name.to_owned(),
        dir: stage_dir(name).unwrap_or(name).into(),
        action,
    };
    let after = |name: &str| Input::Stage(name.to_owned());
    let mut nodes = vec![
        main("extract", Action::Extract { layers: chosen.clone() }),
        main("pretrain", train(after("extract"), detached(training(TrainingStage::Pretrain)))),
        main("inject", Action::Inject { part: "pretrain".into(), layers: chosen.clone() }),
        main("align", train(after("inject"), training(TrainingStage::Align))),
    ];
    let mut last = "align";
    if project.chat_vector.enabled.unwrap_or(project.instruct.is_some()) {
        nodes.push(main("chat-vector", Action::ChatVector { into: after(last) }));
        last = "chat-vector";
    }
    if project.sft.enabled.unwrap_or(!project.data.sft.sources.is_empty()) {
        nodes.push(main("sft", train(after(last), training(TrainingStage::Sft))));
    }
    for control in &project.controls {
        nodes.extend(control_stages(*control, &chosen, &training, layers)?);
    }
    nodes.push(main("evaluate", Action::Evaluate));
    Ok(nodes)
}

fn train(input: Input, training: StageTraining) -> Action {
    Action::Train { input, training: Box::new(training) }
}

/// Of a detached model, all decoder layers are trained and nothing else.
fn detached(mut training: StageTraining) -> StageTraining {
    training.method = Method::Layers;
    training.layers = Some(super::project::Layers::Text("all".into()));
    training
}

impl Control {
    /// As files and reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AlignOnly => "align-only",
            Self::FullFineTuning => "full-fine-tuning",
            Self::MiddleLayers => "middle-layers",
        }
    }
}

fn control_stages(
    control: Control,
    chosen: &str,
    training: &impl Fn(TrainingStage) -> StageTraining,
    layers: u64,
) -> Result<Vec<Node>> {
    let full = format!("control/{}", control.name());
    let dir = PathBuf::from("controls").join(control.name());
    let node = |stage: &str, action| Node {
        name: format!("{full}/{stage}"),
        dir: dir.join(stage_dir(stage).unwrap_or(stage)),
        action,
    };
    let after = |stage: &str| Input::Stage(format!("{full}/{stage}"));
    Ok(match control {
        Control::AlignOnly => {
            vec![node("align", train(Input::Base, training(TrainingStage::Align)))]
        }
        Control::FullFineTuning => {
            let mut whole = training(TrainingStage::Pretrain);
            whole.method = Method::Full;
            vec![node("pretrain", train(Input::Base, whole))]
        }
        Control::MiddleLayers => {
            let selector: crate::checkpoint::LayerSelector = chosen.parse()?;
            let count = selector.resolve(layers, "the base model")?.len() as u64;
            let middle = middle(count, layers).ok_or_else(|| Error::Usage {
                problem: format!("there are no {count} middle layers among {layers}"),
                hint: "take `middle-layers` out of `controls`, or choose fewer layers".into(),
            })?;
            vec![
                node("extract", Action::Extract { layers: middle.clone() }),
                node(
                    "pretrain",
                    train(after("extract"), detached(training(TrainingStage::Pretrain))),
                ),
                node("inject", Action::Inject { part: format!("{full}/pretrain"), layers: middle }),
                node("align", train(after("inject"), training(TrainingStage::Align))),
            ]
        }
    })
}

/// As many layers from the middle of the model: `4,5` of 8.
fn middle(count: u64, layers: u64) -> Option<String> {
    let first = layers.checked_sub(count)? / 2;
    let numbers: Vec<String> = (first + 1..=first + count).map(|n| n.to_string()).collect();
    Some(numbers.join(","))
}

impl Node {
    /// The stages whose results it needs.
    pub fn needs(&self) -> Vec<&str> {
        let input = match &self.action {
            Action::Train { input, .. } | Action::ChatVector { into: input } => input,
            Action::Inject { part, .. } => return vec![part],
            Action::Extract { .. } | Action::Evaluate => return Vec::new(),
        };
        match input {
            Input::Base => Vec::new(),
            Input::Stage(name) => vec![name],
        }
    }

    /// Whether it belongs to a comparison, not to the run itself.
    pub fn is_control(&self) -> bool {
        self.name.starts_with("control/")
    }

    /// Which stage of the method it is: `align` for `control/align-only/align`.
    pub fn kind(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_a_model() {
        assert_eq!(middle(2, 8).as_deref(), Some("4,5"));
        assert_eq!(middle(2, 32).as_deref(), Some("16,17"));
        assert_eq!(middle(1, 3).as_deref(), Some("2"));
        assert_eq!(middle(9, 8), None);
    }
}
