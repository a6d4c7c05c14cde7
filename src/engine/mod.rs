//! Carries plans out: streams tiles from sources to an output that appears whole or not at all.
//!
//! Knows bytes, elements and files, never models or intents. What it promises (resume, locking, atomic publishing,
//! bounded memory, the same bytes for any thread count) is written down in `docs/architecture.md`.

mod auto;
mod bracket;
mod chain;
mod codes;
#[cfg(feature = "cuda")]
pub mod cuda;
mod device;
mod digest;
mod execute;
mod extents;
mod float;
mod gather;
mod in_place;
mod journal;
mod made;
mod mean;
mod noise;
mod observer;
mod options;
mod output;
mod random;
mod reference;
mod run;
mod sidecar;
mod simd;
mod sink;
mod solve;
mod staging;
pub mod statistics;
pub mod sweep;
mod tile;
mod whole;

pub use auto::{Auto, Verdict};
pub use device::{BlendTile, Device, Edge, Health, HostMemory, Mask, Operand, Rules, TermRule};
pub use digest::{TreeDigest, digest_file};
pub use execute::{execute, execute_into, execute_on};
pub use in_place::{inject_in_place, undo};
pub use observer::{NoObserver, Observer, Progress};
pub use options::{Execution, Link, Report};
pub use reference::Reference;
pub use simd::Simd;
pub use sink::Sink;
pub use staging::{LeftOver, left_overs, remove_staging, stagings};
