//! The ELO pipeline: one project file, stages from a base model to an adapted, instruction-following one.

pub mod data;
pub mod project;
pub mod record;
