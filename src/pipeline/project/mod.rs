//! The project file `elo.yaml`: reading, checking, defaults, schema.

mod model;

pub use model::*;
