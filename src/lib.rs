//! Checkpoint surgery for large language models: take sharded safetensors apart and put them back
//! together without loading them.
//!
//! Many intents and many executors meet in one narrow waist, the [`plan::Plan`]:
//!
//! ```text
//!  extract  inject  chat-vector  merge  reshard  cast     intent
//!      \      \         |        /      /      /
//!            ops: intent -> Plan                          reads headers and configs only
//!                    |
//!                   Plan      what every output tensor is made of; every byte's place is known
//!                    |
//!           engine: Plan -> bytes                         streams tiles; never knows why
//!       /            |          |        \
//!     copy       reference    simd     cuda              execution
//! ```
//!
//! * [`format`](mod@format) turns bytes into named tensors and back.
//! * [`checkpoint`] is a model directory: tensors, config, architecture, layer selectors.
//! * [`plan`] is the waist: printable, costable, comparable, serialisable.
//! * [`ops`] makes plans, [`engine`] carries them out; neither knows the other.
//! * [`audit`] reads checkpoints to report on them: inspect, verify, diff.
//! * `hub` reads, fetches and publishes models of the Hugging Face Hub.
//! * `pipeline` drives the ELO method from one project file; `backend` is the protocol of what trains in it, and
//!   `trainer` the training backend that is built in.

pub mod audit;
#[cfg(feature = "pipeline")]
pub mod backend;
pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod cli;
pub mod engine;
pub mod error;
pub mod format;
#[cfg(feature = "hub")]
pub mod hub;
pub mod lowrank;
pub mod ops;
#[cfg(feature = "pipeline")]
pub mod pipeline;
pub mod plan;
#[cfg(feature = "trainer")]
pub mod trainer;

pub use error::{Error, Result};

/// The README's examples are compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
