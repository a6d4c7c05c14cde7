//! The built-in training backend: forward, backward, optimizer, tokenizer and data, on the CPU in f32.
//!
//! Knows nothing of the pipeline: it trains what it is told on the records it is given.
//!
//! ```text
//!  run       settings -> load -> data -> [step: batches -> model -> optimizer] -> save
//!  model     forward and backward by hand; what it cannot do exactly it refuses
//!  data      JSONL -> tokens -> packed sequences in a seeded order
//!  state     checkpoints: an interrupted run ends with the bytes of an undisturbed one
//!  math      matrix products and vector loops with one order of every sum
//! ```
//!
//! The same call gives the same bytes on the same machine, for any number of threads.

mod data;
mod evaluate;
mod files;
mod load;
mod math;
mod model;
mod optimizer;
mod run;
mod save;
mod schedule;
mod settings;
mod state;
mod values;
mod watch;

pub use evaluate::{Perplexity, Slice, evaluate};
pub use run::{MicroBatch, batches, train};
pub use settings::{LossOn, Schedule, Training};
pub use watch::{Status, Step, Trained, Watch};

use crate::checkpoint::Checkpoint;
use crate::error::Result;

/// Whether a model can be trained exactly. If not, the error has all reasons.
pub fn supports(model: &Checkpoint) -> Result<()> {
    load::design(model).map(drop)
}
