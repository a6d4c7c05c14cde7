//! Intents: each operation turns checkpoints into a [`crate::plan::Plan`]. Headers and configs are read; of tensor data, only
//! embeddings and heads where rows must be made up.
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
mod invented;
mod layers;
mod lora;
mod matrix;
#[cfg(feature = "merge")]
pub mod merge;
mod operand;
mod quantised;
mod relayout;
mod rows;
mod stack;
mod sums;
mod tokenizer_files;
mod transplant;
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
pub use transplant::{Approximation, Transplant, transplant};
pub use vector::save_vector;
pub use vocabulary::VocabularyPolicy;
