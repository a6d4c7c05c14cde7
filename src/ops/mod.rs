//! Intents: each operation turns checkpoints into a [`crate::plan::Plan`]. Headers and configs are read, never tensor data.
//!
//! Requests say what; plans say how, down to the byte. Whatever can be refused is refused here, all problems at once,
//! before anything is written.

mod chat_vector;
mod draft;
mod expand;
mod experts;
mod extract;
mod filter;
mod inject;
mod layers;
mod lora;
#[cfg(feature = "merge")]
pub mod merge;
mod operand;
mod quantised;
mod relayout;
mod stack;
mod sums;
mod values;
mod vector;
mod vocabulary;

pub use chat_vector::{ChatVector, LayerScale, add_vector, chat_vector};
pub use expand::{Blocks, Expand, expand};
pub use experts::{Choice, OfLayers, SelectExperts, experts};
pub use extract::{Extract, extract};
pub use filter::TensorFilter;
pub use inject::{Inject, inject};
pub use layers::{Layers, Stack, layers};
pub use lora::apply as apply_adapters;
pub use relayout::{Cast, cast, reshard};
pub use vector::save_vector;
pub use vocabulary::VocabularyPolicy;
