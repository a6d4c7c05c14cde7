//! Training backends: separate programs behind one protocol.

mod guard;
mod launch;
pub mod protocol;
mod settings;
mod supervise;

pub use guard::{Guard, end_left_over, guard};
pub use launch::{Launch, Stop};
pub use settings::{BackendChoice, BackendSettings, Size};
pub use supervise::{Ended, NativeEvents, Supervised, Watch, log_tail, read_events, supervise};
