//! Training backends: separate programs behind one protocol.

pub mod protocol;
mod settings;
mod size;

pub use settings::{BackendChoice, BackendSettings};
pub use size::{Size, parse_size};
