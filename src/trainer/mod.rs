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

#![allow(clippy::many_single_char_names, reason = "formulas are written as in the papers")]
#![allow(clippy::inline_always, reason = "what `wide` compiles must be inlined into it")]
#![allow(clippy::cast_precision_loss, reason = "counts and sizes in formulas of f32 and f64")]
#![allow(clippy::needless_for_each, reason = "one line for one thought")]
#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        clippy::float_cmp,
        clippy::single_range_in_vec_init,
        reason = "tests on small numbers that are exact"
    )
)]

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

use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// Whether a model can be trained exactly. If not, the error has all reasons.
pub fn supports(model: &Checkpoint) -> Result<()> {
    load::design(model).map(drop)
}

/// The tokens of prompts, by the tokenizer in a directory: the text of its beginning-of-sequence token stands in front of
/// each, no other special tokens are added.
///
/// # Errors
/// No `tokenizer.json`, or one that is not understood.
pub fn prompt_tokens(tokenizer: &Path, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
    let opened = data::TextTokenizer::open(tokenizer, usize::MAX)?;
    opened.prompts(texts).map_err(|reason| Error::Unsupported {
        what: format!("the tokenizer in `{}`", tokenizer.display()),
        reason,
        hint: "give a directory with the `tokenizer.json` of a fast tokenizer".to_owned(),
    })
}
