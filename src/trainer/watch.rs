//! What a training run tells while it works, and what comes out of it.

use std::path::{Path, PathBuf};

/// Told of progress; asked whether to stop. Calls come one after another, though not from the thread that called.
pub trait Watch: Sync {
    /// Work begins: optimizer steps in all, and how many an earlier run has done.
    fn started(&self, _steps_total: u64, _resumed_at: u64) {}
    /// An optimizer step is done.
    fn step(&self, step: &Step);
    /// A checkpoint is complete.
    fn checkpoint(&self, _step: u64, _dir: &Path) {}
    /// Something to know that is no error.
    fn warn(&self, message: &str);
    /// Asked before each micro batch; once true, the run saves a checkpoint and ends.
    fn stop(&self) -> bool {
        false
    }
}

/// One optimizer step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Its number, from 1.
    pub step: u64,
    /// Mean loss of the predicted tokens, in nats.
    pub loss: f64,
    /// The learning rate it was taken with.
    pub learning_rate: f64,
    /// Norm of all gradients before they were scaled down.
    pub grad_norm: f64,
    /// Tokens that went through the model since the first step.
    pub tokens: u64,
    /// Tokens a second in this step.
    pub tokens_per_second: f64,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The trained model is in place.
    Complete,
    /// It was told to stop; the same call continues.
    Interrupted,
}

/// What came out of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// How it ended.
    pub status: Status,
    /// Optimizer steps done, those of earlier runs included.
    pub steps: u64,
    /// Optimizer steps in all.
    pub steps_total: u64,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Mean loss of the last step.
    pub final_loss: Option<f64>,
    /// The checkpoint from which the same call continues.
    pub resume: Option<PathBuf>,
}
