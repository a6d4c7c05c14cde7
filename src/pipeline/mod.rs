//! The ELO pipeline: one project file, stages from a base model to an adapted, instruction-following one.

pub mod benchmarks;
pub mod estimate;
pub mod project;
pub mod record;
pub mod report;
