//! Operands whose rows are put together from several matrices: vocabularies brought into one order.

use serde::{Deserialize, Serialize};

use super::Slice;
use crate::format::{Dtype, Shape};

/// The rows of an operand, in order.
///
/// Matrix 0 is the operand's own slice, the others are [`further`](Self::further); a row has as many elements in all of them.
/// If rows are computed ([`Rows::Mix`], [`Rows::Constant`]) or the matrices differ in dtype, elements are f32 (f64 if a matrix is
/// `F64`), else they are what they are in the matrices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gather {
    /// Dimensions of the rows together.
    pub shape: Shape,
    /// More matrices that rows come from, numbered from 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<Slice>,
    /// Rows that are in no matrix, numbered from 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constants: Vec<Vec<f32>>,
    /// The rows, run by run.
    pub runs: Vec<Rows>,
}

/// A run of rows.
///
/// In JSON: `{"take": [0, 17, 200]}`, `{"zero": 3}`, `{"mix": [[0, 5, 0.5], [1, 7, 0.5]]}`, `{"constant": [0, 2]}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Rows {
    /// Of this matrix, from this row on, so many.
    Take(u32, u64, u64),
    /// So many rows of zeros.
    Zero(u64),
    /// One row: the weighted sum of rows of matrices, in order, in f64, rounded once. Each is matrix, row, weight.
    Mix(Vec<(u32, u64, f64)>),
    /// Of these elements, so many rows.
    Constant(u32, u64),
}

impl Rows {
    /// How many rows it is.
    pub const fn count(&self) -> u64 {
        match self {
            Self::Take(_, _, count) | Self::Zero(count) | Self::Constant(_, count) => *count,
            Self::Mix(_) => 1,
        }
    }

    /// Whether its elements are computed, not taken from a file.
    const fn is_computed(&self) -> bool {
        matches!(self, Self::Mix(_) | Self::Constant(..))
    }
}

impl Gather {
    /// Elements of a row.
    pub fn columns(&self) -> u64 {
        self.shape.with_rows(1).elements().unwrap_or(0)
    }

    /// What the elements are, if the first matrix has these.
    pub(super) fn dtype<'a>(&'a self, own: &'a Dtype) -> &'a Dtype {
        let mut others = self.further.iter().map(|slice| &slice.dtype);
        if !self.runs.iter().any(Rows::is_computed) && others.clone().all(|other| other == own) {
            return own;
        }
        let wide = *own == Dtype::F64 || others.any(|other| *other == Dtype::F64);
        if wide { &Dtype::F64 } else { &Dtype::F32 }
    }

    /// Bytes that are read from its matrices.
    pub(super) fn bytes(&self, own: &Slice) -> u64 {
        let row = |matrix: u32| {
            let width = self.matrix(own, matrix).and_then(|slice| slice.dtype.bytes()).unwrap_or(0);
            width.saturating_mul(self.columns())
        };
        let sum = |of: &mut dyn Iterator<Item = u64>| of.fold(0, u64::saturating_add);
        let bytes = |run: &Rows| match run {
            Rows::Take(matrix, _, count) => count.saturating_mul(row(*matrix)),
            Rows::Mix(of) => sum(&mut of.iter().map(|(matrix, ..)| row(*matrix))),
            Rows::Zero(_) | Rows::Constant(..) => 0,
        };
        sum(&mut self.runs.iter().map(bytes))
    }

    /// A matrix by its number.
    pub fn matrix<'a>(&'a self, own: &'a Slice, number: u32) -> Option<&'a Slice> {
        match number {
            0 => Some(own),
            number => self.further.get(number as usize - 1),
        }
    }

    /// Whether every row exists.
    pub(super) fn check(&self, own: &Slice) -> Result<(), String> {
        let columns = self.columns();
        if columns == 0 {
            return Err("rows of no elements are put together".into());
        }
        let mut rows = Vec::new();
        for slice in std::iter::once(own).chain(&self.further) {
            if !slice.dtype.is_float() {
                return Err(format!("rows of {} cannot be put together", slice.dtype));
            }
            let elements = slice.shape.elements().ok_or("its size overflows 64 bits")?;
            if elements % columns != 0 {
                return Err(format!("{} has no rows of {columns} elements", slice.shape));
            }
            rows.push(elements / columns);
        }
        let within = |matrix: u32, first: u64, count: u64| {
            let end = first.checked_add(count);
            match (rows.get(matrix as usize), end) {
                (Some(rows), Some(end)) if end <= *rows => Ok(()),
                _ => Err(format!("{count} rows from {first} of matrix {matrix} do not exist")),
            }
        };
        for run in &self.runs {
            match run {
                Rows::Take(matrix, first, count) => within(*matrix, *first, *count)?,
                Rows::Mix(of) => {
                    for (matrix, row, weight) in of {
                        within(*matrix, *row, 1)?;
                        if !weight.is_finite() {
                            return Err(format!("row {row} weighs {weight}"));
                        }
                    }
                }
                Rows::Constant(which, _) => {
                    let values = self.constants.get(*which as usize).map(Vec::len);
                    if values.is_none_or(|len| len as u64 != columns) {
                        return Err(format!("constant {which} is no row"));
                    }
                }
                Rows::Zero(_) => {}
            }
        }
        let count = self.runs.iter().try_fold(0_u64, |sum, run| sum.checked_add(run.count()));
        if count != Some(self.shape.rows()) || self.shape.elements().is_none() {
            return Err(format!("{} runs of rows do not make up {}", self.runs.len(), self.shape));
        }
        Ok(())
    }
}
