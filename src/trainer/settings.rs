//! What a training run is told.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A training run. Read from JSON with the field names as keys; fields left out have the values of [`Training::default`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Training {
    /// Directory of the model to start from.
    pub model: PathBuf,
    /// Directory with `tokenizer.json`, and for chats the template.
    pub tokenizer: PathBuf,
    /// Exact names of the tensors to train. All others keep their bytes.
    pub trainable: Vec<String>,
    /// JSONL files: each line `{"text": ..}` or `{"messages": [{"role", "content"}, ..]}`.
    pub data: Vec<PathBuf>,
    /// How often to go through the data.
    pub epochs: u32,
    /// Stop after so many optimizer steps, if the epochs have more; the schedule ends there too.
    pub max_steps: Option<u64>,
    /// Tokens of a packed sequence; longer documents are cut into pieces.
    pub sequence_length: usize,
    /// Sequences that go through the model at once.
    pub micro_batch: usize,
    /// Micro batches of an optimizer step.
    pub accumulation: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// How the learning rate falls.
    pub schedule: Schedule,
    /// Share of the steps in which the learning rate rises.
    pub warmup_ratio: f64,
    /// Decoupled weight decay, on matrices only: norms and biases are never decayed, as in transformers.
    pub weight_decay: f64,
    /// Decay rates of `AdamW`'s two moments.
    pub betas: (f64, f64),
    /// What `AdamW` adds to the root of the second moment.
    pub epsilon: f64,
    /// Gradients are scaled down to this norm; 0 never scales.
    pub max_grad_norm: f64,
    /// Seed of every shuffle.
    pub seed: u64,
    /// Keep only layer inputs and compute the rest again in the backward pass: less memory, a third more time.
    pub recompute: bool,
    /// Which tokens of chats are predicted. Of texts always all.
    pub loss_on: LossOn,
    /// Model directory to create; must not exist.
    pub out: PathBuf,
    /// Directory for checkpoints.
    pub work: PathBuf,
    /// Steps between checkpoints; 0 makes none but on interruption.
    pub save_every: u64,
    /// Threads; 0 is one a core. The result does not depend on it.
    pub threads: usize,
}

/// How the learning rate falls after the warmup, as in transformers' `optimization.py`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Half a cosine, to 0.
    #[default]
    Cosine,
    /// A line, to 0.
    Linear,
    /// Not at all.
    Constant,
}

/// Which tokens of a chat are predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// Every token.
    #[default]
    All,
    /// What the assistant says, with the token that ends its turn.
    Assistant,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            tokenizer: PathBuf::new(),
            trainable: Vec::new(),
            data: Vec::new(),
            epochs: 1,
            max_steps: None,
            sequence_length: 2048,
            micro_batch: 1,
            accumulation: 1,
            learning_rate: 1e-5,
            schedule: Schedule::Cosine,
            warmup_ratio: 0.0,
            weight_decay: 0.0,
            betas: (0.9, 0.999),
            epsilon: 1e-8,
            max_grad_norm: 1.0,
            seed: 42,
            recompute: false,
            loss_on: LossOn::All,
            out: PathBuf::new(),
            work: PathBuf::new(),
            save_every: 0,
            threads: 0,
        }
    }
}

impl Training {
    /// Refuses settings that make no sense, all at once.
    pub(super) fn check(&self) -> Result<()> {
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let rules = [
            (!self.trainable.is_empty(), "`trainable` names no tensor"),
            (!self.data.is_empty(), "`data` names no file"),
            (self.epochs > 0, "`epochs` is 0"),
            (self.max_steps != Some(0), "`max_steps` is 0"),
            (self.sequence_length > 1, "`sequence_length` is below 2"),
            (self.micro_batch > 0, "`micro_batch` is 0"),
            (self.accumulation > 0, "`accumulation` is 0"),
            (
                self.learning_rate.is_finite() && self.learning_rate > 0.0,
                "`learning_rate` is not positive",
            ),
            ((0.0..=1.0).contains(&self.warmup_ratio), "`warmup_ratio` is not in 0 to 1"),
            (
                self.weight_decay.is_finite() && self.weight_decay >= 0.0,
                "`weight_decay` is negative",
            ),
            (unit(self.betas.0) && unit(self.betas.1), "`betas` are not in 0 to 1"),
            (self.epsilon.is_finite() && self.epsilon >= 0.0, "`epsilon` is negative"),
            (self.max_grad_norm >= 0.0, "`max_grad_norm` is negative"),
            (self.out.file_name().is_some(), "`out` names no directory"),
            (!self.work.as_os_str().is_empty(), "`work` names no directory"),
        ];
        let broken: Vec<&str> = rules.iter().filter(|(ok, _)| !ok).map(|(_, why)| *why).collect();
        if broken.is_empty() {
            return Ok(());
        }
        let hint = "see the fields of a training run".to_owned();
        Err(Error::Usage { problem: format!("cannot train: {}", broken.join("; ")), hint })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_makes_no_sense_is_named_at_once() {
        let training = Training { epochs: 0, learning_rate: f64::NAN, ..Training::default() };
        let text = training.check().unwrap_err().to_string();
        for word in ["epochs", "learning_rate", "trainable", "data", "out", "work"] {
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn json_may_leave_fields_out_but_not_add_any() {
        let read = |text| serde_json::from_str::<Training>(text);
        let training =
            read(r#"{"model": "m", "schedule": "linear", "betas": [0.8, 0.9]}"#).unwrap();
        assert_eq!((training.schedule, training.betas), (Schedule::Linear, (0.8, 0.9)));
        assert!(read(r#"{"sedule": "linear"}"#).is_err());
    }
}
