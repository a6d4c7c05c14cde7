//! Linear maps `y = x W^T (+ b)` with `W` `[out, in]`, as checkpoints store them.

use rayon::prelude::*;

use super::weights::{Gradients, Weights};
use crate::trainer::math::{ROW_BLOCK, View, add, multiply_parallel, wide};

/// A linear map: where its weight and bias are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linear {
    pub(super) weight: usize,
    pub(super) bias: Option<usize>,
}

impl Linear {
    /// Elements of an output row.
    pub(super) fn outputs(self, weights: &Weights) -> usize {
        weights.at(self.weight).rows
    }

    fn matrix(self, weights: &Weights) -> View<'_> {
        let w = weights.at(self.weight);
        View::new(&w.values, w.rows, w.cols)
    }

    /// Whether anything of it is trained.
    pub(super) fn trains(self, gradients: &Gradients) -> bool {
        gradients.wants(self.weight) || self.bias.is_some_and(|b| gradients.wants(b))
    }

    /// Forward. `x`: `[rows, in]`, `y`: `[rows, out]`.
    pub(super) fn forward(self, weights: &Weights, x: &[f32], y: &mut [f32]) {
        let w = weights.at(self.weight);
        let rows = y.len() / w.rows;
        multiply_parallel(View::new(x, rows, w.cols), self.matrix(weights).t(), false, y);
        if let Some(bias) = self.bias {
            let bias = weights.values(bias);
            y.par_chunks_mut(bias.len() * ROW_BLOCK).for_each(|rows| {
                rows.chunks_mut(bias.len()).for_each(|row| add(row, bias));
            });
        }
    }

    /// The gradient of the input, written to `dx`, or added to it.
    pub(super) fn backward_input(self, weights: &Weights, dy: &[f32], join: bool, dx: &mut [f32]) {
        let w = self.matrix(weights);
        let outputs = self.outputs(weights);
        multiply_parallel(View::new(dy, dy.len() / outputs, outputs), w, join, dx);
    }

    /// Adds the gradients of weight and bias, where they are wanted.
    pub(super) fn backward_weights(
        self,
        gradients: &mut Gradients,
        x: &[f32],
        dy: &[f32],
        outputs: usize,
    ) {
        let rows = dy.len() / outputs;
        if let Some(dw) = gradients.get(self.weight) {
            let inputs = dw.len() / outputs;
            let (dy, x) = (View::new(dy, rows, outputs), View::new(x, rows, inputs));
            multiply_parallel(dy.t(), x, true, dw);
        }
        if let Some(db) = self.bias.and_then(|b| gradients.get(b)) {
            add_column_sums(dy, db);
        }
    }
}

/// Adds the sum of the rows of `dy` to `sum`, in blocks of fixed size.
fn add_column_sums(dy: &[f32], sum: &mut [f32]) {
    let n = sum.len();
    let partial: Vec<Vec<f32>> = dy
        .par_chunks(n * ROW_BLOCK)
        .map(|rows| {
            let mut sum = vec![0.0; n];
            wide(
                #[inline(always)]
                || rows.chunks(n).for_each(|row| add(&mut sum, row)),
            );
            sum
        })
        .collect();
    partial.iter().for_each(|p| add(sum, p));
}

#[cfg(test)]
mod tests {
    use super::super::testing::{numbers, slope};
    use super::super::weights::Weight;
    use super::*;

    #[test]
    fn gradients_agree_with_differences() {
        let (rows, inputs, outputs) = (37, 5, 4);
        let weight = |name: &str, rows, seed| Weight {
            name: name.into(),
            rows,
            cols: if rows == 1 { outputs } else { inputs },
            is_matrix: rows > 1,
            trainable: true,
            values: numbers(if rows == 1 { outputs } else { rows * inputs }, seed),
        };
        let mut weights = Weights::default();
        weights.push(weight("w", outputs, 1));
        weights.push(weight("b", 1, 2));
        let linear = Linear { weight: 0, bias: Some(1) };
        let (x, up) = (numbers(rows * inputs, 3), numbers(rows * outputs, 4));
        let value = |x: &[f32], weights: &Weights| {
            let mut y = vec![0.0; rows * outputs];
            linear.forward(weights, x, &mut y);
            y.iter().zip(&up).map(|(y, u)| f64::from(y * u)).sum::<f64>()
        };
        let mut gradients = Gradients::zeros(&weights);
        let mut dx = vec![f32::NAN; x.len()];
        linear.backward_input(&weights, &up, false, &mut dx);
        linear.backward_weights(&mut gradients, &x, &up, outputs);
        slope(&x, &dx, |x| value(x, &weights));
        for place in 0..2 {
            let gradient = gradients.get(place).unwrap().to_vec();
            slope(weights.values(place), &gradient, |w| {
                let mut changed = weights.clone();
                changed.iter_mut().nth(place).unwrap().values = w.to_vec();
                value(&x, &changed)
            });
        }
    }
}
