//! The keys of `elo.yaml`. Doc comments are the descriptions of the published JSON Schema.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backend::protocol::{
    Lora, Method, Optimizer, Packing, Precision, Schedule, TrainingStage,
};
use crate::backend::{BackendChoice, Size};

/// A project of elo-surgery: one model adapted to a language by the ELO method (arXiv 2601.03648).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Project {
    /// The base model: a directory with `config.json` and safetensors.
    #[schemars(extend("format" = "path"))]
    pub model: Option<PathBuf>,
    /// The instruction-tuned relative of the base model. `instruct - model` is the chat vector; SFT takes its tokenizer and chat template.
    #[schemars(extend("format" = "path"))]
    pub instruct: Option<PathBuf>,
    /// The decoder layers that are detached and trained, counting from 1: `first,last`, `1,32`, `[1, 32]`.
    pub layers: Layers,
    /// Where results go.
    #[schemars(extend("format" = "path"))]
    pub out: PathBuf,
    /// Seed of every shuffle and of training.
    pub seed: u64,
    /// What trains.
    pub backend: BackendChoice,
    /// The text and chats, by stage.
    pub data: Data,
    /// Pretraining of the detached layers.
    pub pretrain: Pretrain,
    /// The short fine-tune after the layers are back.
    pub align: Align,
    /// Adding `instruct - model`.
    pub chat_vector: ChatVectorStage,
    /// Supervised fine-tuning.
    pub sft: Sft,
    /// Held-out loss after every stage, and benchmarks.
    pub evaluate: Evaluate,
    /// What the run is compared with: other ways to spend the same data.
    pub controls: Vec<Control>,
    /// Where the finished model is published.
    pub publish: Option<Publish>,
}

impl Default for Project {
    fn default() -> Self {
        Self {
            model: None,
            instruct: None,
            layers: Layers::default(),
            out: PathBuf::from("work"),
            seed: 42,
            backend: BackendChoice::default(),
            data: Data::default(),
            pretrain: Pretrain::default(),
            align: Align::default(),
            chat_vector: ChatVectorStage::default(),
            sft: Sft::default(),
            evaluate: Evaluate::default(),
            controls: Vec::new(),
            publish: None,
        }
    }
}

/// A selection of layers, counting from 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Layers {
    /// `1,32`, `first,last`, `1-4`
    Text(String),
    /// `7`
    One(i64),
    /// `[1, 32]`, `[first, last]`
    List(Vec<LayerItem>),
}

/// An item of a list of layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum LayerItem {
    /// `1`, `-1`
    Number(i64),
    /// `first`, `last`, `1-4`
    Text(String),
}

impl Default for Layers {
    fn default() -> Self {
        Self::Text("first,last".into())
    }
}

impl std::fmt::Display for Layers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::One(number) => write!(f, "{number}"),
            Self::List(items) => {
                let items: Vec<String> = items
                    .iter()
                    .map(|item| match item {
                        LayerItem::Number(number) => number.to_string(),
                        LayerItem::Text(text) => text.clone(),
                    })
                    .collect();
                f.write_str(&items.join(","))
            }
        }
    }
}

/// The text and chats, by stage. Documents of `pretrain`, `align` and the held-out slices are disjoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// Text for pretraining. The paper: English to target 1:9 by bytes.
    pub pretrain: Mix,
    /// Text for alignment: 1 GB in the paper. Without sources: those of `pretrain`, other documents.
    pub align: Mix,
    /// Chats. The paper: English to target 1:1.
    pub sft: Mix,
    /// What is held out for evaluation.
    pub held_out: HeldOut,
    /// What a record that cannot be used does: `error` ends the preparation with a list, `skip` leaves it out and counts it.
    pub on_bad: OnBad,
}

/// What a record that cannot be used does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnBad {
    /// It ends the preparation; the first ten are listed.
    #[default]
    Error,
    /// It is left out and counted.
    Skip,
}

/// Sources and their shares.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Mix {
    /// Where records come from.
    pub sources: Vec<Source>,
    /// Bytes of text in all; as much as the shares allow without it. `align`: 1 GB.
    pub bytes: Option<Size>,
}

/// A source of records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// A file, a directory, or a pattern (`data/ko-*.jsonl`): plain text (`.txt`, `.md`), JSON lines (`.jsonl`, `.json`), Parquet (`.parquet`); `.gz` and `.zst` are not read.
    #[schemars(extend("format" = "path"))]
    pub path: PathBuf,
    /// Its language, as reports name it: `en`, `ko`.
    pub language: String,
    /// Its share of the bytes, against those of the others.
    #[serde(default = "one")]
    pub weight: f64,
    /// The field with the text or the chat. Without it: `text`; `messages` or `conversations` for chats.
    #[serde(default)]
    pub field: Option<String>,
    /// How plain text is cut into documents.
    #[serde(default)]
    pub documents: Documents,
}

fn one() -> f64 {
    1.0
}

/// How a plain text file is cut into documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Documents {
    /// At empty lines.
    #[default]
    Paragraphs,
    /// A line is a document.
    Lines,
    /// The file is one document.
    File,
}

/// What is held out for evaluation, of every language, before anything else is chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HeldOut {
    /// Bytes of text of each language.
    pub bytes: Size,
    /// Largest part of a language's text that may be held out.
    pub fraction: f64,
}

impl Default for HeldOut {
    fn default() -> Self {
        Self { bytes: Size::Text("1MB".into()), fraction: 0.05 }
    }
}

/// Hyperparameters that every training stage has. Without a value: the paper's (Table 7).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Training {
    /// Passes over the data: 1, 1 and 10.
    pub epochs: Option<u32>,
    /// Steps after which to stop before the epochs are over.
    pub max_steps: Option<u64>,
    /// Peak learning rate: 5e-6.
    pub learning_rate: Option<f64>,
    /// Course of the learning rate: cosine.
    pub schedule: Option<Schedule>,
    /// Part of the steps over which it rises: 0 (the paper is silent).
    pub warmup_ratio: Option<f64>,
    /// Tokens of a sequence: 8192.
    pub sequence_length: Option<u32>,
    /// Sequences of one forward pass on one device: 4, 1 and 1.
    pub batch: Option<u32>,
    /// Forward passes of one step: 1.
    pub accumulation: Option<u32>,
    /// Optimizer: adamw8bit.
    pub optimizer: Option<Optimizer>,
    /// Decoupled weight decay: 0.
    pub weight_decay: Option<f64>,
    /// Global norm to which gradients are clipped: 1.
    pub max_grad_norm: Option<f64>,
    /// How documents share sequences: doc-mask.
    pub packing: Option<Packing>,
    /// Dtype of activations: bf16 (the built-in backend computes in fp32 whatever is said here).
    pub compute: Option<Precision>,
    /// Dtype in which trained weights are kept: fp32 for learning rates under 2e-5, where bf16 would round small steps away.
    pub master: Option<Precision>,
    /// Whether activations are computed again instead of being kept: true.
    pub checkpointing: Option<bool>,
    /// Steps between two checkpoints: 500.
    pub save_every: Option<u64>,
    /// Native keys of the backend, merged last into the configuration of this stage.
    pub extra: serde_json::Map<String, Value>,
}

/// Pretraining of the detached layers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Pretrain {
    /// Hyperparameters.
    #[serde(flatten)]
    pub training: Training,
}

/// The short fine-tune after the layers are back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Align {
    /// `full` trains everything, as the paper does, and needs the memory for it; `layers` trains some decoder layers; `lora` low-rank adapters.
    pub method: Method,
    /// For `method: layers`: which, counting from 1. The project's layers without it.
    pub layers: Option<Layers>,
    /// For `method: lora`.
    pub lora: Lora,
    /// Hyperparameters.
    #[serde(flatten)]
    pub training: Training,
}

/// Supervised fine-tuning.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Sft {
    /// Whether it is done; when there are chats without it.
    pub enabled: Option<bool>,
    /// `full`, `layers` or `lora`.
    pub method: Method,
    /// For `method: layers`: which, counting from 1. The project's layers without it.
    pub layers: Option<Layers>,
    /// For `method: lora`.
    pub lora: Lora,
    /// Hyperparameters.
    #[serde(flatten)]
    pub training: Training,
}

/// Adding `instruct - model`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ChatVectorStage {
    /// Whether it is done; when there is an `instruct` model without it.
    pub enabled: Option<bool>,
    /// The factor of the difference.
    pub scale: f64,
    /// Leave embedding and head as they are.
    pub skip_embeddings: bool,
    /// Where vocabularies differ: `error`, `overlap`, `extend`, `skip`.
    pub vocab: String,
}

impl Default for ChatVectorStage {
    fn default() -> Self {
        Self { enabled: None, scale: 1.0, skip_embeddings: false, vocab: "error".into() }
    }
}

/// Evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Evaluate {
    /// Held-out perplexity after every stage: `auto` where the built-in backend can compute the model in reasonable time, `always`, `never`.
    pub perplexity: Perplexity,
    /// Tokens of a sequence of held-out text.
    pub sequence_length: u32,
    /// Benchmarks of lm-evaluation-harness: `[mmlu, kobest]`.
    pub tasks: Vec<Task>,
    /// The models that benchmarks run on: stages by name, and `base`. The first and the last without it.
    pub task_stages: Vec<String>,
    /// The harness's command. `{model}` `{tasks}` `{shots}` `{out}` `{seed}` are put in.
    pub command: Vec<String>,
    /// Commands to run after a stage, `{model}` put in. Their failure is a warning.
    pub after: BTreeMap<String, Vec<Vec<String>>>,
}

impl Default for Evaluate {
    fn default() -> Self {
        Self {
            perplexity: Perplexity::Auto,
            sequence_length: 2048,
            tasks: Vec::new(),
            task_stages: Vec::new(),
            command: Vec::new(),
            after: BTreeMap::new(),
        }
    }
}

/// When held-out perplexity is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Perplexity {
    /// Where the built-in backend can compute the model in reasonable time.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// A benchmark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Task {
    /// By the harness's name.
    Name(String),
    /// With its number of examples.
    Shots {
        /// The harness's name.
        name: String,
        /// Examples in the prompt.
        shots: u32,
    },
}

/// A comparison that gives the run's figures meaning.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// The base model trained on the alignment data alone.
    AlignOnly,
    /// The base model, all of it, trained on the pretraining data.
    FullFineTuning,
    /// The same method with the two middle layers.
    MiddleLayers,
}

/// Where the finished model is published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// Repository on the Hugging Face Hub: `org/name`.
    pub repo: String,
    /// Whether it is private.
    #[serde(default)]
    pub private: bool,
}

/// Everything a training stage needs to know, defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct StageTraining {
    /// The stage.
    pub stage: TrainingStage,
    /// What of the model is trained.
    pub method: Method,
    /// For [`Method::Layers`].
    pub layers: Option<Layers>,
    /// For [`Method::Lora`].
    pub lora: Lora,
    /// Hyperparameters.
    pub train: crate::backend::protocol::Hyperparameters,
    /// Steps between two checkpoints.
    pub save_every: u64,
    /// Native keys of this stage.
    pub extra: serde_json::Map<String, Value>,
}
