//! Training backends: separate programs behind one protocol.

pub mod protocol;
mod settings;

pub use settings::{BackendChoice, BackendSettings, Size};
