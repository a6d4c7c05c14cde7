//! The ELO pipeline: one project file, stages from a base model to an adapted, instruction-following one.

pub mod benchmarks;
pub mod data;
pub mod driver;
pub mod estimate;
pub mod fingerprint;
pub mod graph;
pub mod project;
pub mod record;
pub mod report;
pub mod store;
