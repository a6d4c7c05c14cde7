//! A model directory: its shards, config, architecture and layers.

mod architecture;
mod config;
mod selector;
pub use architecture::{Anatomy, Role};
pub use config::{
    ConfigProblem, Kept, is_tied, keep_layers, quantization, set_dtype, set_vocab_size, vocab_size,
};
pub use selector::SelectorProblem;
