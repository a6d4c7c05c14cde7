//! The head and the cross-entropy, by chunks of rows: logits of all tokens are never held at once.

use rayon::prelude::*;

use super::batch::{Batch, IGNORED};
use super::buffers::Buffers;
use super::weights::{Gradients, Weights};
use crate::trainer::math::{View, add, exp_sum, largest, multiply_parallel, wide};

/// Logits held at once, in elements.
const LOGITS: usize = 1 << 24;

/// The head: the place of its matrix `[vocabulary, hidden]`, which is the embedding's if they are tied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) matrix: usize,
}

/// What the backward pass is to give.
pub(super) struct Wanted<'a> {
    pub(super) gradients: &'a mut Gradients,
    /// What each token's loss counts: one over the predicted tokens of the whole step.
    pub(super) share: f32,
    /// Gradient of the head's input `[tokens, hidden]`, to be written.
    pub(super) dy: Option<&'a mut [f32]>,
}

impl Head {
    /// Sum of the losses of all predicted tokens, in nats, and the gradients if wanted. `y`: `[tokens, hidden]`.
    pub(super) fn loss(
        self,
        weights: &Weights,
        batch: &Batch,
        y: &[f32],
        mut wanted: Option<Wanted>,
        b: &mut Buffers,
    ) -> f64 {
        let head = weights.at(self.matrix);
        let (vocabulary, hidden) = (head.rows, head.cols);
        let rows: Vec<usize> =
            (0..batch.ids.len()).filter(|i| batch.targets[*i] != IGNORED).collect();
        let chunk = (LOGITS / vocabulary).clamp(16, 512);
        let matrix = View::new(&head.values, vocabulary, hidden);
        if let Some(dy) = wanted.as_mut().and_then(|w| w.dy.as_deref_mut()) {
            dy.fill(0.0);
        }
        let mut sum = 0.0;
        for rows in rows.chunks(chunk) {
            let mut input = b.take(rows.len() * hidden);
            for (row, to) in rows.iter().zip(input.chunks_mut(hidden)) {
                to.copy_from_slice(&y[row * hidden..(row + 1) * hidden]);
            }
            let x = View::new(&input, rows.len(), hidden);
            let mut logits = b.take(rows.len() * vocabulary);
            multiply_parallel(x, matrix.t(), false, &mut logits);
            let targets = rows.iter().map(|r| batch.targets[*r] as usize).collect::<Vec<_>>();
            let share = wanted.as_ref().map(|w| w.share);
            sum += cross_entropy(&mut logits, &targets, vocabulary, share);
            if let Some(wanted) = &mut wanted {
                let d = View::new(&logits, rows.len(), vocabulary);
                if let Some(dw) = wanted.gradients.get(self.matrix) {
                    multiply_parallel(d.t(), x, true, dw);
                }
                if let Some(dy) = wanted.dy.as_deref_mut() {
                    let mut part = b.take(rows.len() * hidden);
                    multiply_parallel(d, matrix, false, &mut part);
                    for (row, from) in rows.iter().zip(part.chunks(hidden)) {
                        add(&mut dy[row * hidden..(row + 1) * hidden], from);
                    }
                    b.give(part);
                }
            }
            b.give(logits);
            b.give(input);
        }
        sum
    }
}

/// Sum over rows of `ln(sum(e^x)) - x[target]`. With `share`, the logits become their gradients,
/// `(softmax(x) - [target]) share`; otherwise they are spent.
fn cross_entropy(
    logits: &mut [f32],
    targets: &[usize],
    vocabulary: usize,
    share: Option<f32>,
) -> f64 {
    let rows = logits.par_chunks_mut(vocabulary).zip(targets);
    let losses: Vec<f64> = rows
        .map(|(row, target)| {
            wide(
                #[inline(always)]
                || {
                    let score = row[*target];
                    let top = largest(row);
                    let sum = exp_sum(row, top);
                    if let Some(share) = share {
                        let factor = share / sum;
                        row.iter_mut().for_each(|p| *p *= factor);
                        row[*target] -= share;
                    }
                    f64::from(sum).ln() + (f64::from(top) - f64::from(score))
                },
            )
        })
        .collect();
    losses.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{numbers, slope};
    use super::super::weights::Weight;
    use super::*;

    #[test]
    fn gradients_agree_with_differences() {
        let (vocabulary, hidden, tokens) = (23, 5, 9);
        let mut weights = Weights::default();
        weights.push(Weight {
            name: "lm_head.weight".into(),
            rows: vocabulary,
            cols: hidden,
            is_matrix: true,
            trainable: true,
            values: numbers(vocabulary * hidden, 1),
        });
        let mut batch = Batch::default();
        let trained: Vec<bool> = (0..tokens).map(|i| i != 4).collect();
        batch.push(&(0..tokens as u32).map(|i| i * 2).collect::<Vec<_>>(), &trained);
        assert_eq!(batch.predicted(), 7);
        let head = Head { matrix: 0 };
        let y = numbers(tokens * hidden, 2);
        let value =
            |y: &[f32], w: &Weights| 0.25 * head.loss(w, &batch, y, None, &mut Buffers::default());
        let mut gradients = Gradients::zeros(&weights);
        let mut dy = vec![f32::NAN; y.len()];
        let wanted = Wanted { gradients: &mut gradients, share: 0.25, dy: Some(&mut dy) };
        let loss = head.loss(&weights, &batch, &y, Some(wanted), &mut Buffers::default());
        assert_eq!(loss * 0.25, value(&y, &weights));
        assert!(dy[3 * hidden..4 * hidden].iter().all(|d| *d == 0.0), "token 4 is not predicted");
        slope(&y, &dy, |y| value(y, &weights));
        let dw = gradients.get(0).unwrap().to_vec();
        slope(weights.values(0), &dw, |w| {
            let mut changed = weights.clone();
            changed.iter_mut().next().unwrap().values = w.to_vec();
            value(&y, &changed)
        });
    }
}
