//! The integration tests: one binary, one module a subject.

mod conformance;
#[cfg(feature = "cli")]
mod crash;
mod floors;
#[cfg(feature = "cli")]
mod golden;
#[cfg(feature = "cli")]
mod hostile;
mod props;
mod support;
