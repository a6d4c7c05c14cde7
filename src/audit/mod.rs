//! Reading checkpoints to report on them: what they hold, whether they are sound, how two differ.
//!
//! Every report is plain data that serialises, beside a rendering for people. Writes nothing, prints nothing.
//! Headers answer most questions; data is streamed tile by tile where values or digests are asked for.

#[cfg(test)]
mod fixture;
mod inspect;
mod structure;
mod table;
mod tree;
mod units;

pub use inspect::{
    DtypeUse, Group, GroupKind, Inspection, LayerCount, Parameters, ProvenanceSummary,
    ShardSummary, TensorSummary, VocabularySize, inspect,
};
pub use tree::{TreeOptions, render_tensors, render_tree};
pub use units::{Bytes, Elements, Grouped};
