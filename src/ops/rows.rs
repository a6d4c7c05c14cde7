//! Rows of vocabularies put together from several models, as runs.

use crate::error::Result;
use crate::format::Shape;
use crate::plan::{Gather, Operand, Rows, Slice};

/// Which row of which model, or which sum of rows, each row of an output is. Models have numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct RowMap {
    runs: Vec<Rows>,
    constants: Vec<Vec<f32>>,
}

/// Where one row comes from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Row {
    /// Row of a model.
    Take(u32, u64),
    /// Zeros.
    Zero,
    /// A weighted sum of rows of models.
    Mix(Vec<(u32, u64, f64)>),
    /// A row of [`RowMap::constant`].
    Constant(u32),
}

impl RowMap {
    /// Appends a row to the run that it continues.
    pub(super) fn push(&mut self, row: Row) {
        match (row, self.runs.last_mut()) {
            (Row::Take(model, at), Some(Rows::Take(of, first, count)))
                if *of == model && *first + *count == at =>
            {
                *count += 1;
            }
            (Row::Zero, Some(Rows::Zero(count))) => *count += 1,
            (Row::Constant(which), Some(Rows::Constant(of, count))) if *of == which => *count += 1,
            (Row::Constant(which), _) => self.runs.push(Rows::Constant(which, 1)),
            (Row::Take(model, at), _) => self.runs.push(Rows::Take(model, at, 1)),
            (Row::Zero, _) => self.runs.push(Rows::Zero(1)),
            (Row::Mix(of), _) => self.runs.push(Rows::Mix(of)),
        }
    }

    /// A row of these elements, to be pushed.
    pub(super) fn constant(&mut self, values: Vec<f32>) -> Row {
        self.constants.push(values);
        // There are one or two.
        Row::Constant(u32::try_from(self.constants.len() - 1).unwrap_or(u32::MAX))
    }

    #[cfg(feature = "merge")]
    pub(super) fn runs(&self) -> &[Rows] {
        &self.runs
    }

    /// Whether it is all `rows` rows of a model as they are.
    pub(super) fn is_identity(&self, model: u32, rows: u64) -> bool {
        self.runs == [Rows::Take(model, 0, rows)]
    }

    /// The operand: matrices are given by models' numbers, `own` comes first.
    pub(super) fn operand(
        &self,
        own: u32,
        shape: Shape,
        mut matrix: impl FnMut(u32) -> Result<Slice>,
    ) -> Result<Operand> {
        let slice = matrix(own)?;
        let mut numbers = vec![own];
        let mut runs = self.runs.clone();
        let mut number = |model: &mut u32| {
            let known = numbers.iter().position(|known| *known == *model);
            let at = known.unwrap_or_else(|| {
                numbers.push(*model);
                numbers.len() - 1
            });
            // Models are few.
            *model = u32::try_from(at).unwrap_or(u32::MAX);
        };
        for run in &mut runs {
            match run {
                Rows::Take(model, ..) => number(model),
                Rows::Mix(of) => of.iter_mut().for_each(|(model, ..)| number(model)),
                _ => {}
            }
        }
        let further = numbers[1..].iter().map(|model| matrix(*model)).collect::<Result<_>>()?;
        let constants = self.constants.clone();
        let gather = Some(Box::new(Gather { shape, further, constants, runs }));
        Ok(Operand { gather, ..slice.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Dtype;
    use crate::plan::SourceId;

    #[test]
    fn neighbours_join_and_models_become_matrices() {
        let mut map = RowMap::default();
        for row in [Row::Take(2, 5), Row::Take(2, 6), Row::Zero, Row::Zero, Row::Take(0, 7)] {
            map.push(row);
        }
        map.push(Row::Mix(vec![(0, 1, 0.5), (2, 3, 0.5)]));
        let constant = map.constant(vec![1.0]);
        map.push(constant.clone());
        map.push(constant);
        let slice = |model: u32| {
            let source = SourceId(model);
            Ok(Slice { source, bytes: 0..40, dtype: Dtype::F32, shape: Shape(vec![10, 1]) })
        };
        let operand = map.operand(2, Shape(vec![8, 1]), slice).unwrap();
        assert_eq!(operand.slice.source, SourceId(2));
        let gather = operand.gather.unwrap();
        assert_eq!(gather.further[0].source, SourceId(0));
        let runs = [
            Rows::Take(0, 5, 2),
            Rows::Zero(2),
            Rows::Take(1, 7, 1),
            Rows::Mix(vec![(1, 1, 0.5), (0, 3, 0.5)]),
            Rows::Constant(0, 2),
        ];
        assert_eq!(gather.runs, runs);
        let mut whole = RowMap::default();
        (0..3).for_each(|row| whole.push(Row::Take(1, row)));
        assert!(whole.is_identity(1, 3) && !whole.is_identity(1, 4) && !whole.is_identity(0, 3));
    }
}
