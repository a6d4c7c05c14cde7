//! What a training stage will need, before it starts: memory, arithmetic, time.
//!
//! Pure functions of a model's shape and the hyperparameters. Every formula is stated where it is computed, with its
//! source; what is assumed and not computed is told among the notes.

mod flops;
mod host;
mod memory;
mod outlook;
mod request;
mod shape;
mod time;

pub use flops::Flops;
pub use host::Host;
pub use memory::Memory;
pub use outlook::{Alternative, Outlook, StageOutlook, outlook};
pub use request::{Request, Sharded};
pub use shape::Shape;
pub use time::{A100_PEAK, H100_PEAK};

use std::ops::Range;

use serde::Serialize;

/// What a stage will need.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Parameters of the model at work.
    pub parameters: u64,
    /// Parameters that are trained.
    pub trained: u64,
    /// Tokens of the whole stage.
    pub tokens: u64,
    /// Bytes on each GPU; of RAM for the built-in backend.
    pub memory: Memory,
    /// Model FLOPs a token: forward and backward, without what checkpointing computes again.
    pub flops_per_token: f64,
    /// FLOPs of the whole stage, as `flops_per_token`.
    pub flops: f64,
    /// From the fastest to the slowest that is likely.
    pub seconds: Option<Range<f64>>,
    /// Whether it fits in the memory that was named.
    pub fits: Option<bool>,
    /// What was assumed, and what is worth knowing.
    pub notes: Vec<String>,
}

/// What a stage will need.
pub fn estimate(request: &Request<'_>) -> Estimate {
    let memory = Memory::of(request);
    let flops = Flops::of(request);
    let per_token = flops.model();
    Estimate {
        parameters: request.shape.parameters,
        trained: request.trained(),
        tokens: request.tokens,
        fits: request.gpu_memory.map(|limit| memory.total <= limit),
        seconds: time::seconds(request, &flops),
        flops_per_token: per_token,
        flops: per_token * amount(request.tokens),
        notes: request.notes(),
        memory,
    }
}

/// A count as a factor.
#[expect(clippy::cast_precision_loss, reason = "estimates have two or three digits")]
fn amount(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests;
