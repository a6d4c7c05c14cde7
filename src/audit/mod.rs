//! Reading checkpoints to report on them: what they hold, whether they are sound, how two differ.
//!
//! Every report is plain data that serialises, beside a rendering for people. Writes nothing, prints nothing.
//! Headers answer most questions; data is streamed tile by tile where values or digests are asked for.

mod diff;
mod distance;
#[cfg(test)]
mod fixture;
mod grid;
mod heatmap;
mod inspect;
mod ledger;
mod scale;
mod scan;
mod structure;
pub(crate) mod table;
mod tree;
mod units;
mod verdict;
mod verify;
pub(crate) mod viridis;

pub use diff::{Change, Diff, DiffOptions, TensorDiff, TensorForm, TensorState, diff};
pub use grid::{Aggregate, Grid, Labelled};
pub use heatmap::Heatmap;
pub use inspect::{
    DtypeUse, Group, GroupKind, Inspection, LayerCount, Parameters, ProvenanceSummary,
    ShardSummary, TensorSummary, VocabularySize, inspect,
};
pub use ledger::{DiffView, render_diff};
pub use scan::ReadObserver;
pub use tree::{TreeOptions, render_tensors, render_tree};
pub use units::{Bytes, Elements, Grouped, Ratio, Seconds, Short};
pub use verdict::{FileCheck, FileState, NonFiniteTensor, Verification};
pub use verify::{VerifyOptions, examine, verify};
