//! What goes through the model at once: documents laid end to end.

use std::ops::Range;

/// The target of a token after which nothing is predicted.
pub(in crate::trainer) const IGNORED: u32 = u32::MAX;

/// Tokens of a micro batch. Each span attends to itself alone and counts its positions from 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::trainer) struct Batch {
    /// Token ids of all spans.
    pub(in crate::trainer) ids: Vec<u32>,
    /// For each token the one that follows it, or [`IGNORED`].
    pub(in crate::trainer) targets: Vec<u32>,
    /// The documents or pieces, in order; together all tokens.
    pub(in crate::trainer) spans: Vec<Range<usize>>,
}

impl Batch {
    /// Adds a document; `trained` says which of its tokens are to be predicted (the first never is).
    pub(in crate::trainer) fn push(&mut self, ids: &[u32], trained: &[bool]) {
        let start = self.ids.len();
        self.ids.extend_from_slice(ids);
        let next = ids.iter().zip(trained).skip(1);
        self.targets.extend(next.map(|(id, trained)| if *trained { *id } else { IGNORED }));
        self.targets.extend((!ids.is_empty()).then_some(IGNORED));
        self.spans.push(start..self.ids.len());
    }

    /// How many tokens are predicted.
    pub(in crate::trainer) fn predicted(&self) -> usize {
        self.targets.iter().filter(|t| **t != IGNORED).count()
    }
}
