//! The integration tests: one binary, one module a subject.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failing test should say where")]

#[cfg(feature = "pipeline")]
mod backends;
#[cfg(feature = "cli")]
mod chain;
#[cfg(feature = "cli")]
mod cli;
mod conformance;
#[cfg(feature = "cli")]
mod crash;
#[cfg(all(feature = "cli", feature = "cuda"))]
mod cuda;
mod devices;
#[cfg(feature = "cli")]
mod extension;
#[cfg(feature = "cli")]
mod faults;
mod floors;
#[cfg(feature = "cli")]
mod golden;
#[cfg(feature = "cli")]
mod growth;
#[cfg(feature = "cli")]
mod hostile;
#[cfg(all(feature = "cli", feature = "hub"))]
mod hub;
#[cfg(feature = "cli")]
mod importance;
mod kernels;
mod lora;
mod lowrank;
#[cfg(feature = "cli")]
mod merge;
#[cfg(feature = "cli")]
mod modules;
#[cfg(all(feature = "cli", feature = "trainer"))]
mod pipeline;
mod props;
mod quantised;
#[cfg(feature = "cli")]
mod randoms;
mod solved;
mod sparse;
mod streaming;
mod support;
#[cfg(feature = "trainer")]
mod trainer;
#[cfg(feature = "cli")]
mod trim;
mod vectors;
#[cfg(feature = "cli")]
mod vocabulary;
