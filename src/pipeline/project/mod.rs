//! The project file `elo.yaml`: reading, checking, defaults, schema.

mod check;
mod defaults;
mod load;
mod model;
mod schema;
mod shape;
mod template;
#[cfg(test)]
mod tests;
mod yaml;

pub use load::{Loaded, PROJECT_FILE};
pub use model::*;
pub use schema::schema;
pub use template::{Template, TemplateSource};
