//! `AdamW` (Loshchilov and Hutter 2019) as `torch.optim.AdamW` computes it, and clipping by the global norm as
//! `clip_grad_norm_`.

#![allow(clippy::cast_possible_truncation, reason = "factors are f64, values f32, as in torch")]

use rayon::prelude::*;

use super::math::wide;
use super::model::{Gradients, Weights};

/// Elements that one task takes.
const BLOCK: usize = 1 << 14;

/// Hyperparameters of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct AdamW {
    pub(super) betas: (f64, f64),
    pub(super) epsilon: f64,
    pub(super) weight_decay: f64,
}

/// First and second moments of each tensor; empty for frozen ones.
#[derive(Clone, Debug)]
pub(super) struct Moments {
    pub(super) first: Gradients,
    pub(super) second: Gradients,
}

impl Moments {
    /// Zeros.
    pub(super) fn zeros(weights: &Weights) -> Self {
        Self { first: Gradients::zeros(weights), second: Gradients::zeros(weights) }
    }
}

/// Factors of one step, the same for all elements of a tensor.
struct Factors {
    clip: f32,
    keep: f32,
    second_beta: f32,
    rest: (f32, f32),
    step_size: f32,
    root: f32,
    epsilon: f32,
}

/// Norm of all gradients together; sums in f64 over blocks of fixed size.
pub(super) fn norm(gradients: &Gradients) -> f64 {
    let squares = |g: &[f32]| -> f64 {
        let blocks: Vec<f64> = g
            .par_chunks(BLOCK)
            .map(|block| {
                let mut lanes = [0.0_f64; 8];
                for part in block.chunks(8) {
                    for (sum, x) in lanes.iter_mut().zip(part) {
                        *sum += f64::from(*x) * f64::from(*x);
                    }
                }
                lanes.iter().sum()
            })
            .collect();
        blocks.iter().sum()
    };
    gradients.iter().map(squares).sum::<f64>().sqrt()
}

impl AdamW {
    /// Step `number`, from 1, with gradients of `norm` scaled down to at most `max_norm` (0: never). Gradients become 0.
    pub(super) fn step(
        &self,
        weights: &mut Weights,
        gradients: &mut Gradients,
        moments: &mut Moments,
        (number, rate): (u64, f64),
        (norm, max_norm): (f64, f64),
    ) {
        let power = i32::try_from(number).unwrap_or(i32::MAX);
        let (b1, b2) = self.betas;
        let (c1, c2) = (1.0 - b1.powi(power), 1.0 - b2.powi(power));
        let clip = if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let all = weights.iter_mut().zip(gradients.iter_mut());
        let moments = moments.first.iter_mut().zip(moments.second.iter_mut());
        for ((w, g), (m, v)) in all.zip(moments).filter(|((w, _), _)| w.trainable) {
            let decay = if w.is_matrix { self.weight_decay } else { 0.0 };
            let factors = Factors {
                clip: clip as f32,
                keep: (1.0 - rate * decay) as f32,
                second_beta: b2 as f32,
                rest: ((1.0 - b1) as f32, (1.0 - b2) as f32),
                step_size: (rate / c1) as f32,
                root: c2.sqrt() as f32,
                epsilon: self.epsilon as f32,
            };
            update(&factors, &mut w.values, g, m, v);
        }
    }
}

fn update(f: &Factors, w: &mut [f32], g: &mut [f32], m: &mut [f32], v: &mut [f32]) {
    let blocks = w.par_chunks_mut(BLOCK).zip(g.par_chunks_mut(BLOCK));
    let blocks = blocks.zip(m.par_chunks_mut(BLOCK)).zip(v.par_chunks_mut(BLOCK));
    blocks.for_each(|(((w, g), m), v)| {
        wide(
            #[inline(always)]
            || {
                for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                    let x = *g * f.clip;
                    *m += f.rest.0 * (x - *m);
                    *v = *v * f.second_beta + f.rest.1 * x * x;
                    let denominator = v.sqrt() / f.root + f.epsilon;
                    *w = *w * f.keep - f.step_size * (*m / denominator);
                    *g = 0.0;
                }
            },
        );
    });
}
