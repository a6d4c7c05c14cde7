//! A model directory: its shards, config, architecture and layers.

mod config;
mod selector;
pub use config::ConfigProblem;
pub use selector::SelectorProblem;
