//! `elo.lock.json`: what a run has done. The driver writes it, `status` and the report read it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Name of the record in the output directory.
pub const RECORD_FILE: &str = "elo.lock.json";

/// What a run has done, stage by stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Version of this format.
    pub format: u32,
    /// Version of the tool that wrote it.
    pub tool: String,
    /// The project as it was read, defaults left out.
    pub project: Value,
    /// Facts about the base model.
    pub model: ModelFacts,
    /// Facts about the data.
    pub data: Vec<DataFacts>,
    /// Held-out measurements of the models that the run starts from: `base`, `instruct`.
    pub baselines: BTreeMap<String, Vec<Measured>>,
    /// Benchmark scores of the models that the run starts from.
    pub baseline_scores: BTreeMap<String, Vec<Score>>,
    /// Stages in the order of the run. Controls follow, as `control/NAME/STAGE`.
    pub stages: Vec<StageRecord>,
}

/// Facts about a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelFacts {
    /// As the project names it.
    pub path: PathBuf,
    /// `model_type`.
    pub family: String,
    /// Decoder layers.
    pub layers: u64,
    /// Parameters.
    pub parameters: u64,
    /// The layers that are trained, counting from 1.
    pub chosen: Vec<u64>,
}

/// Facts about a prepared file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataFacts {
    /// `pretrain`, `align`, `sft`, `held-out/ko`.
    pub name: String,
    /// Records.
    pub records: u64,
    /// UTF-8 bytes of text.
    pub bytes: u64,
    /// blake3 of the file.
    pub digest: String,
    /// Bytes by language.
    pub languages: BTreeMap<String, u64>,
}

/// What became of a stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StageRecord {
    /// `extract`, `pretrain`, ..; `control/align-only/align`.
    pub name: String,
    /// Fingerprint over everything that shapes its result.
    pub key: String,
    /// What the fingerprint is made of, so that a change can be named.
    pub inputs: BTreeMap<String, String>,
    /// Where it stands.
    pub state: State,
    /// Seconds since the epoch when it was first started.
    pub started: u64,
    /// Seconds of work, over all attempts.
    pub seconds: f64,
    /// How often it was started.
    pub attempts: u32,
    /// Its model, relative to the output directory.
    pub output: Option<PathBuf>,
    /// Digest over the output's files.
    pub digest: Option<String>,
    /// Names, sizes and times of the output's files when it was recorded.
    pub stamp: Option<String>,
    /// Name and version of the backend.
    pub backend: Option<String>,
    /// Versions the backend names.
    pub versions: BTreeMap<String, String>,
    /// The command that was run.
    pub command: Vec<String>,
    /// The events file, relative to the output directory: its loss curve.
    pub events: Option<PathBuf>,
    /// The backend's log, relative to the output directory.
    pub log: Option<PathBuf>,
    /// Steps made.
    pub steps: Option<u64>,
    /// Steps of the whole stage.
    pub steps_total: Option<u64>,
    /// Tokens trained on.
    pub tokens: Option<u64>,
    /// Tokens a second.
    pub tokens_per_second: Option<f64>,
    /// Loss of the first step that was told.
    pub first_loss: Option<f64>,
    /// Loss of the last step.
    pub final_loss: Option<f64>,
    /// Trained parameters.
    pub trained_parameters: Option<u64>,
    /// What the driver checked of the result.
    pub checks: Vec<Check>,
    /// Held-out measurements of its model.
    pub measured: Vec<Measured>,
    /// Benchmark scores of its model.
    pub scores: Vec<Score>,
    /// Why it failed.
    pub error: Option<String>,
    /// What is worth knowing.
    pub notes: Vec<String>,
}

/// Where a stage stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not started.
    #[default]
    Waiting,
    /// At work, or killed while it was.
    Running,
    /// Stopped; can go on.
    Interrupted,
    /// Ended with an error.
    Failed,
    /// Complete and checked.
    Done,
    /// Not part of this project.
    Skipped,
}

/// A check of the driver on a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Check {
    /// What was checked: `frozen tensors are unchanged`.
    pub what: String,
    /// Whether it holds; a doubt where not.
    pub ok: bool,
    /// In figures: `27 tensors`.
    pub detail: String,
}

/// A held-out measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Measured {
    /// The slice: a language, or `chat/` and a language.
    pub slice: String,
    /// Nats a token.
    pub loss: f64,
    /// Its exponential.
    pub perplexity: f64,
    /// Bits a byte of UTF-8: compares across tokenizers.
    pub bits_per_byte: f64,
    /// Tokens it is a mean of.
    pub tokens: u64,
}

/// A benchmark score.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Score {
    /// The task.
    pub task: String,
    /// The metric: `acc`, `f1`.
    pub metric: String,
    /// Its value.
    pub value: f64,
    /// Its standard error.
    pub error: Option<f64>,
    /// Examples in the prompt.
    pub shots: Option<u64>,
}
