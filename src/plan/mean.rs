//! Operands that are the mean of several tensors, in which every element of each has a weight of its own.

use serde::{Deserialize, Serialize};

use super::Slice;
use crate::format::{Dtype, Shape};

/// The mean of the operand's own slice and [`further`](Self::further) ones, element by element (Fisher-weighted averaging,
/// Matena and Raffel, arXiv 2111.09832):
///
/// `sum(weight * importance * x) / sum(weight * importance)`
///
/// All is f64, in order: `weight * importance` is rounded, its product with `x` is rounded, sums start from the first term; the
/// quotient is rounded once to the type of the operand, f32, or f64 if a value is `F64`. Where every `weight * importance` is zero,
/// nobody has anything to say: it is the plain mean, `sum(weight * x) / sum(weight)`.
///
/// An importance that is negative, infinite or not a number ends the run, with its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mean {
    /// A weight for each tensor, from 0; not all 0.
    pub weights: Vec<f64>,
    /// The importance of each element of each tensor.
    pub importances: Vec<Slice>,
    /// The tensors after the first.
    pub further: Vec<Slice>,
}

impl Mean {
    /// What the elements are, if the first tensor has these.
    pub(super) fn dtype(&self, own: &Dtype) -> &Dtype {
        let wide = *own == Dtype::F64 || self.further.iter().any(|s| s.dtype == Dtype::F64);
        if wide { &Dtype::F64 } else { &Dtype::F32 }
    }

    /// Everything besides the first tensor.
    pub(super) fn slices(&self) -> impl Iterator<Item = &Slice> {
        self.further.iter().chain(&self.importances)
    }

    /// Elements `from..to`.
    pub(super) fn cut(&self, from: u64, to: u64) -> Option<Self> {
        let all = |slices: &[Slice]| -> Option<Vec<Slice>> {
            slices.iter().map(|slice| cut(slice, from, to)).collect()
        };
        let (importances, further) = (all(&self.importances)?, all(&self.further)?);
        Some(Self { weights: self.weights.clone(), importances, further })
    }

    /// Whether all fit together.
    pub(super) fn check(&self, own: &Slice) -> Result<(), String> {
        let count = self.further.len() + 1;
        if self.weights.len() != count || self.importances.len() != count {
            let (weights, importances) = (self.weights.len(), self.importances.len());
            return Err(format!(
                "a mean of {count} tensors with {weights} weights and {importances} importances"
            ));
        }
        let good = |weight: &f64| weight.is_finite() && *weight >= 0.0;
        let sum: f64 = self.weights.iter().sum();
        if !self.weights.iter().all(good) || !sum.is_finite() || sum <= 0.0 {
            return Err(format!("a mean with weights {:?}", self.weights));
        }
        for slice in std::iter::once(own).chain(self.slices()) {
            if !slice.dtype.is_float() {
                return Err(format!("a mean of {}", slice.dtype));
            }
            if slice.shape.elements() != own.shape.elements() {
                return Err(format!("a mean of shapes {} and {}", own.shape, slice.shape));
            }
        }
        Ok(())
    }
}

/// Elements `from..to` of a slice, as a vector; of dtypes of whole bytes only.
pub(super) fn cut(slice: &Slice, from: u64, to: u64) -> Option<Slice> {
    let width = slice.dtype.bytes()?;
    let start = slice.bytes.start + from * width;
    let shape = Shape(vec![to.checked_sub(from)?]);
    let (source, dtype) = (slice.source, slice.dtype.clone());
    Some(Slice { source, bytes: start..start + (to - from) * width, dtype, shape })
}
