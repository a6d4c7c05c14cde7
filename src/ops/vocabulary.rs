//! What to do when models have vocabularies of different sizes.

use std::str::FromStr;

use serde::Serialize;

use super::draft::as_dtype;
use super::operand::rows_of;
use crate::format::{Dtype, Shape};
use crate::plan::{Blend, Operand, Part, Term};

/// How a chat vector treats embedding and head when their rows differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VocabularyPolicy {
    /// Refuse. The default: nobody else can know which rows mean the same token.
    #[default]
    Error,
    /// Add the rows that all models have; the target keeps its number of rows.
    Overlap,
    /// Like `overlap`, and take the instruct model's rows beyond the target's as they are.
    Extend,
    /// Leave tensors of different shape as they are in the target.
    Skip,
}

impl FromStr for VocabularyPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "error" => Ok(Self::Error),
            "overlap" => Ok(Self::Overlap),
            "extend" => Ok(Self::Extend),
            "skip" => Ok(Self::Skip),
            _ => Err(format!("`{text}` is not one of error, overlap, extend, skip")),
        }
    }
}

/// A vocabulary-sized tensor of the target and its delta.
pub(super) struct Rows {
    /// The target's values.
    pub(super) into: Operand,
    /// The instruct model's values (or the saved difference).
    pub(super) inst: Operand,
    /// The base model's values; none when the difference was saved.
    pub(super) base: Option<Operand>,
    /// Rows of the base model, from where on the instruct rows are no differences.
    pub(super) base_rows: u64,
    /// Where the instruct model's own rows are: `inst`, or the copy beside a saved difference.
    pub(super) further: Operand,
    /// Factor of the difference.
    pub(super) scale: f64,
}

impl Rows {
    /// The output's shape and parts under `overlap` or `extend`.
    ///
    /// Rows that all three have are blended; the target's further rows are copied; under `extend` the instruct
    /// model's rows beyond those follow as they are (target and base count as 0 there).
    pub(super) fn parts(&self, policy: VocabularyPolicy, dtype: &Dtype) -> (Shape, Vec<Part>) {
        let (c, a) = (self.into.shape().rows(), self.inst.shape().rows());
        let shared = c.min(a).min(self.base_rows);
        let total = if policy == VocabularyPolicy::Extend { c.max(a) } else { c };
        let mut parts = Vec::new();
        if shared > 0 {
            let mut terms = vec![Term::new(rows_of(&self.inst, 0, shared), 1.0)];
            if let Some(base) = &self.base {
                terms.push(Term::new(rows_of(base, 0, shared), -1.0));
            }
            let base = Some(rows_of(&self.into, 0, shared));
            parts.push(Part::Blend(Box::new(Blend::sum(base, terms, self.scale))));
        }
        if shared < c {
            parts.push(as_dtype(rows_of(&self.into, shared, c), dtype));
        }
        if c < total {
            parts.push(as_dtype(rows_of(&self.further, c, total), dtype));
        }
        (self.into.shape().with_rows(total), parts)
    }
}
