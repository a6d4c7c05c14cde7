//! Records to batches: reading JSONL, tokens, chats, packing, order.
//!
//! ```text
//!  JSONL lines -> records -> tokens with a mark for each that is predicted -> pieces -> packed sequences -> batches
//! ```

mod chat;
mod corpus;
mod dumps;
mod packing;
mod record;
mod shuffle;
mod tokenizer;

pub(super) use corpus::Corpus;
pub(super) use packing::Packing;
pub(super) use tokenizer::TextTokenizer;
