//! The integration tests: one binary, one module a subject.

mod conformance;
mod floors;
#[cfg(feature = "cli")]
mod golden;
#[cfg(feature = "cli")]
mod hostile;
mod props;
mod support;
