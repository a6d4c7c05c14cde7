//! The built-in training backend: forward, backward, optimizer, tokenizer and data, on the CPU in f32.
//!
//! Knows nothing of the pipeline: it trains what it is told on the records it is given.

mod math;
mod model;
