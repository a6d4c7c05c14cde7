//! The protocol between the driver and a training backend, version 1. `docs/backends.md` tells it to strangers.
//!
//! Three verbs on one executable: `describe` prints a [`Description`], `check --spec F` validates and writes its native
//! configuration beside the spec, `run --spec F` trains. A [`Spec`] goes in as a file; [`Event`]s come back as JSON lines in
//! `out.events`; an [`Outcome`] is written last to `out.result`. Readers ignore what they do not know.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of the protocol.
pub const PROTOCOL: u32 = 1;

/// Exit statuses of a backend. 0 says only that the result file is worth reading.
pub mod exit {
    /// The spec or the configuration is wrong: never retried.
    pub const CONFIG: i32 = 64;
    /// The data is wrong: never retried.
    pub const DATA: i32 = 65;
    /// A dependency or a device is missing: never retried.
    pub const MISSING: i32 = 69;
    /// Interrupted after a checkpoint: running again continues.
    pub const INTERRUPTED: i32 = 75;
}

/// Stages that train.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum TrainingStage {
    /// The detached layers on the target language; all else is frozen.
    Pretrain,
    /// A short fine-tune of the whole model after the layers are back.
    Align,
    /// Supervised fine-tuning on chats.
    Sft,
}

impl TrainingStage {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pretrain => "pretrain",
            Self::Align => "align",
            Self::Sft => "sft",
        }
    }
}

/// What a backend says of itself: `describe`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// Versions of the protocol it speaks.
    pub protocol: Vec<u32>,
    /// Its name.
    pub name: String,
    /// Version of what trains.
    pub version: String,
    /// Stages it can train.
    #[serde(default)]
    pub stages: Vec<TrainingStage>,
    /// Model families: `model_type` values, or `*`.
    #[serde(default)]
    pub families: Vec<String>,
    /// What it can do: [`features`].
    #[serde(default)]
    pub features: Vec<String>,
    /// What it cannot do without: `cuda`.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Why it cannot be used here, if so: `axolotl is not on PATH`.
    #[serde(default)]
    pub problems: Vec<String>,
}

impl Description {
    /// An adapter that trains every stage of every family, with these features; its version is found out later.
    pub(super) fn adapter(name: &str, features: &[&str]) -> Self {
        Self {
            protocol: vec![PROTOCOL],
            name: name.to_owned(),
            version: "unknown".to_owned(),
            stages: vec![TrainingStage::Pretrain, TrainingStage::Align, TrainingStage::Sft],
            families: vec!["*".to_owned()],
            features: features.iter().copied().map(str::to_owned).collect(),
            needs: Vec::new(),
            problems: Vec::new(),
        }
    }
}

/// Names of features in a [`Description`].
pub mod features {
    /// Trains exactly the listed tensors.
    pub const FREEZE: &str = "freeze";
    /// Packs documents without attention from one to the next.
    pub const DOCUMENT_MASK: &str = "doc-mask-packing";
    /// Continues from its own checkpoints.
    pub const RESUME: &str = "resume";
    /// Writes a checkpoint when told to stop.
    pub const SIGNAL_CHECKPOINT: &str = "signal-checkpoint";
    /// Low-rank adapters, merged into the result.
    pub const LORA: &str = "lora";
    /// More than one GPU.
    pub const MULTI_GPU: &str = "multi-gpu";
    /// More than one node.
    pub const MULTI_NODE: &str = "multi-node";
    /// 8-bit `AdamW` states.
    pub const ADAMW_8BIT: &str = "adamw8bit";
    /// The same bytes for the same spec.
    pub const DETERMINISTIC: &str = "deterministic";
    /// Measures held-out loss: the verb `evaluate`.
    pub const EVALUATE: &str = "evaluate";
}

/// What a backend is asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// Name of the run: the project's directory.
    pub run: String,
    /// The stage.
    pub stage: TrainingStage,
    /// How often this stage has been started, from 1.
    pub attempt: u32,
    /// What is trained.
    pub model: ModelSpec,
    /// What turns text into tokens.
    pub tokenizer: TokenizerSpec,
    /// What of the model is trained.
    pub trainable: Trainable,
    /// Records, in the order to take them, before any shuffle.
    pub data: Vec<DataFile>,
    /// Hyperparameters.
    pub train: Hyperparameters,
    /// Over how much hardware.
    pub parallel: Parallel,
    /// Where everything goes. Absolute paths.
    pub out: Destinations,
    /// Steps between two checkpoints.
    pub save_every_steps: u64,
    /// `auto`: continue from the newest whole checkpoint in `out.work`; `never`: start anew.
    pub resume: Resume,
    /// Native keys by backend name, merged last into its configuration.
    #[serde(default)]
    pub extra: BTreeMap<String, Value>,
}

/// The model of a [`Spec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Directory with `config.json`, safetensors, tokenizer.
    pub dir: PathBuf,
    /// `model_type` of its config.
    pub family: String,
    /// Class of its decoder layers in transformers, as FSDP wraps them: `LlamaDecoderLayer`.
    pub layer_class: Option<String>,
    /// Decoder layers.
    pub layers: u64,
    /// Parameters.
    pub parameters: u64,
    /// Dtype of its weights: `bf16`, `f16`, `f32`.
    pub dtype: String,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Digest of its files.
    pub digest: String,
}

/// The tokenizer of a [`Spec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerSpec {
    /// Directory with `tokenizer.json` and, for chats, a chat template.
    pub dir: PathBuf,
    /// Digest of its files.
    pub digest: String,
}

/// What is trained of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trainable {
    /// How.
    pub method: Method,
    /// Patterns over tensor names, for backends that freeze by pattern. They match exactly `tensors`.
    pub regex: Vec<String>,
    /// The closed list of tensors. What is not in it must not change.
    pub tensors: Vec<String>,
    /// The settings of low-rank adapters, where `method` is `lora`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
}

/// How a model is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Every parameter.
    #[default]
    Full,
    /// Some decoder layers.
    Layers,
    /// Low-rank adapters on the linear modules, merged into the weights at the end.
    Lora,
}

/// Low-rank adapters (Hu et al., arXiv 2106.09685).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Lora {
    /// Rank `r`.
    pub rank: u32,
    /// `alpha`; updates are scaled by `alpha / rank`.
    pub alpha: u32,
    /// Dropout on the adapters' input.
    pub dropout: f64,
}

impl Default for Lora {
    fn default() -> Self {
        Self { rank: 64, alpha: 128, dropout: 0.0 }
    }
}

impl Eq for Lora {}

/// A file of records: JSON lines, `{"text": ".."}` or `{"messages": [{"role": "..", "content": ".."}]}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// The file.
    pub path: PathBuf,
    /// What its records are.
    pub format: DataFormat,
    /// Number of records.
    pub records: u64,
    /// UTF-8 bytes of text in them.
    pub bytes: u64,
    /// blake3 of the file.
    pub digest: String,
}

/// What records are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataFormat {
    /// `{"text": ".."}`
    Text,
    /// `{"messages": [..]}`
    Messages,
}

/// Hyperparameters of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hyperparameters {
    /// Passes over the data.
    pub epochs: u32,
    /// Steps after which to stop before the epochs are over.
    pub max_steps: Option<u64>,
    /// Tokens of a sequence.
    pub sequence_length: u32,
    /// How documents share sequences.
    pub packing: Packing,
    /// Sequences of one forward pass on one device.
    pub micro_batch: u32,
    /// Forward passes of one step.
    pub accumulation: u32,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Its course.
    pub schedule: Schedule,
    /// Part of the steps over which it rises from 0.
    pub warmup_ratio: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Global norm to which gradients are clipped.
    pub max_grad_norm: f64,
    /// Seed of every shuffle.
    pub seed: u64,
    /// Dtype of activations and products.
    pub compute: Precision,
    /// Dtype in which the weights are kept while they are trained.
    pub master: Precision,
    /// Which tokens count.
    pub loss_on: LossOn,
    /// Whether activations are computed again in the backward pass instead of being kept.
    pub checkpointing: bool,
}

/// How documents share sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Packing {
    /// Packed; no document sees another.
    #[default]
    DocMask,
    /// Packed; attention runs over document borders.
    Plain,
    /// One document a sequence.
    None,
}

/// Optimizers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// `AdamW` with 8-bit states (bitsandbytes), the paper's.
    #[default]
    AdamW8Bit,
    /// `AdamW` with f32 states.
    AdamW,
}

/// Course of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Half a cosine down to 0.
    #[default]
    Cosine,
    /// A straight line down to 0.
    Linear,
    /// No change.
    Constant,
}

/// Dtypes of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bfloat16.
    Bf16,
    /// IEEE single.
    Fp32,
}

/// Which tokens count in the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// Every token.
    All,
    /// What the assistant says, with its end of turn.
    Assistant,
}

/// Over how much hardware a stage runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parallel {
    /// GPUs of a node.
    pub gpus: u32,
    /// Nodes.
    pub nodes: u32,
    /// How states are spread over them.
    pub sharding: Sharding,
}

/// How states are spread over devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Sharding {
    /// The driver chooses: `zero1` for `pretrain`, `zero3` otherwise, where there is more than one GPU.
    #[default]
    Auto,
    /// Every device holds everything.
    None,
    /// `DeepSpeed`: optimizer states are spread; f32 masters.
    Zero1,
    /// `DeepSpeed`: and gradients.
    Zero2,
    /// `DeepSpeed`: and parameters.
    Zero3,
    /// `PyTorch` FSDP 2.
    Fsdp2,
}

/// Where a stage's files go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destinations {
    /// The trained model: a directory that the backend makes.
    pub model: PathBuf,
    /// Checkpoints and whatever else it needs.
    pub work: PathBuf,
    /// [`Event`]s, one JSON object a line, appended with one write each.
    pub events: PathBuf,
    /// The [`Outcome`], written last.
    pub result: PathBuf,
}

/// Whether earlier checkpoints count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resume {
    /// From the newest whole one.
    Auto,
    /// Start anew.
    Never,
}

/// A line of the events file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// Training begins or goes on.
    Start {
        /// Steps of the whole stage.
        #[serde(default)]
        steps_total: Option<u64>,
        /// The step it goes on from.
        #[serde(default)]
        resumed_at: Option<u64>,
    },
    /// A step, or several.
    Step(StepEvent),
    /// A held-out measurement.
    Eval {
        /// After this step.
        step: u64,
        /// Loss in nats a token.
        loss: f64,
    },
    /// A checkpoint that can be continued from.
    Checkpoint {
        /// After this step.
        step: u64,
        /// Where.
        #[serde(default)]
        dir: Option<PathBuf>,
    },
    /// A doubt.
    Warn {
        /// In words.
        msg: String,
    },
    /// Why it will fail.
    Error {
        /// `oom`, `nan`, `data`, `config`.
        #[serde(default)]
        kind: Option<String>,
        /// In words.
        msg: String,
    },
    /// Training is over.
    End {
        /// How.
        status: Status,
    },
    /// What this version does not know.
    #[serde(other)]
    Unknown,
}

/// A step of training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepEvent {
    /// From 1.
    pub step: u64,
    /// Mean loss in nats a token. Absent when it is not a number.
    #[serde(default)]
    pub loss: Option<f64>,
    /// Learning rate of the step.
    #[serde(default)]
    pub lr: Option<f64>,
    /// Tokens since the start of the stage.
    #[serde(default)]
    pub tokens: Option<u64>,
    /// Tokens a second.
    #[serde(default)]
    pub tok_s: Option<f64>,
    /// Norm of the gradient before clipping.
    #[serde(default)]
    pub grad_norm: Option<f64>,
}

/// How training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Every step was made.
    Complete,
    /// It stopped early and can go on.
    Interrupted,
}

/// What a backend says of its run: the result file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// How it ended.
    pub status: Status,
    /// The trained model.
    #[serde(default)]
    pub model: Option<PathBuf>,
    /// Steps made.
    pub steps: u64,
    /// Steps of the whole stage.
    pub steps_total: u64,
    /// Tokens seen.
    #[serde(default)]
    pub tokens: Option<u64>,
    /// Loss of the last step.
    #[serde(default)]
    pub final_loss: Option<f64>,
    /// The checkpoint to go on from.
    #[serde(default)]
    pub resume: Option<PathBuf>,
    /// Versions of what trained.
    #[serde(default)]
    pub versions: BTreeMap<String, String>,
}
