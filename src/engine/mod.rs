//! Carries plans out: streams tiles from sources to an output that appears whole or not at all.
//!
//! Knows bytes, elements and files, never models or intents. What it promises (resume, locking, atomic publishing,
//! bounded memory, the same bytes for any thread count) is written down in `docs/architecture.md`.

mod execute;
mod observer;
mod options;

pub use execute::execute;
pub use observer::{NoObserver, Observer, Progress};
pub use options::{Execution, Link, Report};
