//! `RMSNorm` (Zhang and Sennrich 2019): `y = w * x / sqrt(mean(x^2) + eps)`, over rows of any matrix.

use rayon::prelude::*;

use crate::trainer::math::{ROW_BLOCK, add, dot, square_sum, wide};

/// Forward. `x`, `y`: `[rows, n]` with `n` the length of `w`; `inverse`: `[rows]`, one over the root mean square.
pub(super) fn forward(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], inverse: &mut [f32]) {
    let n = w.len();
    let blocks = y.par_chunks_mut(n * ROW_BLOCK).zip(x.par_chunks(n * ROW_BLOCK));
    blocks.zip(inverse.par_chunks_mut(ROW_BLOCK)).for_each(|((y, x), inverse)| {
        wide(
            #[inline(always)]
            || {
                for ((y, x), r) in y.chunks_mut(n).zip(x.chunks(n)).zip(inverse) {
                    *r = 1.0 / (square_sum(x) / n as f32 + eps).sqrt();
                    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                        *y = *x * *r * w;
                    }
                }
            },
        );
    });
}

/// The output again, from the input and what [`forward`] kept.
pub(super) fn again(x: &[f32], w: &[f32], inverse: &[f32], y: &mut [f32]) {
    let n = w.len();
    let blocks = y.par_chunks_mut(n * ROW_BLOCK).zip(x.par_chunks(n * ROW_BLOCK));
    blocks.zip(inverse.par_chunks(ROW_BLOCK)).for_each(|((y, x), inverse)| {
        wide(
            #[inline(always)]
            || {
                for ((y, x), r) in y.chunks_mut(n).zip(x.chunks(n)).zip(inverse) {
                    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                        *y = *x * *r * w;
                    }
                }
            },
        );
    });
}

/// Adds the gradient of the input to `dx`: `r w dy - x r^3 / n sum(w dy x)`, r one over the root mean square.
pub(super) fn backward_input(x: &[f32], w: &[f32], inverse: &[f32], dy: &[f32], dx: &mut [f32]) {
    let n = w.len();
    let blocks = dx.par_chunks_mut(n * ROW_BLOCK).zip(x.par_chunks(n * ROW_BLOCK));
    let blocks = blocks.zip(dy.par_chunks(n * ROW_BLOCK)).zip(inverse.par_chunks(ROW_BLOCK));
    blocks.for_each(|(((dx, x), dy), inverse)| {
        let mut weighted = vec![0.0; n];
        wide(
            #[inline(always)]
            || {
                let rows = dx.chunks_mut(n).zip(x.chunks(n)).zip(dy.chunks(n)).zip(inverse);
                for (((dx, x), dy), r) in rows {
                    for ((p, w), dy) in weighted.iter_mut().zip(w).zip(dy) {
                        *p = w * dy;
                    }
                    let share = dot(&weighted, x) * r * r * r / n as f32;
                    for ((dx, x), p) in dx.iter_mut().zip(x).zip(&weighted) {
                        *dx += r * p - x * share;
                    }
                }
            },
        );
    });
}

/// Adds the gradient of the weight to `dw`: the sum over rows of `dy x r`.
pub(super) fn backward_weight(x: &[f32], inverse: &[f32], dy: &[f32], dw: &mut [f32]) {
    let n = dw.len();
    let blocks = x.par_chunks(n * ROW_BLOCK).zip(dy.par_chunks(n * ROW_BLOCK));
    let partial: Vec<Vec<f32>> = blocks
        .zip(inverse.par_chunks(ROW_BLOCK))
        .map(|((x, dy), inverse)| {
            let mut sum = vec![0.0; n];
            wide(
                #[inline(always)]
                || {
                    for ((x, dy), r) in x.chunks(n).zip(dy.chunks(n)).zip(inverse) {
                        for ((s, x), dy) in sum.iter_mut().zip(x).zip(dy) {
                            *s += dy * x * r;
                        }
                    }
                },
            );
            sum
        })
        .collect();
    partial.iter().for_each(|p| add(dw, p));
}

#[cfg(test)]
mod tests {
    use super::super::testing::{numbers, slope};
    use super::*;

    #[test]
    fn gradients_agree_with_differences() {
        let (rows, n, eps) = (40, 6, 1e-5);
        let (x, w, up) = (numbers(rows * n, 1), numbers(n, 2), numbers(rows * n, 3));
        let value = |x: &[f32], w: &[f32]| {
            let (mut y, mut r) = (vec![0.0; rows * n], vec![0.0; rows]);
            forward(x, w, eps, &mut y, &mut r);
            y.iter().zip(&up).map(|(y, u)| f64::from(*y) * f64::from(*u)).sum::<f64>()
        };
        let (mut y, mut r) = (vec![0.0; rows * n], vec![0.0; rows]);
        forward(&x, &w, eps, &mut y, &mut r);
        let mut same = vec![0.0; rows * n];
        again(&x, &w, &r, &mut same);
        assert_eq!(y, same);
        let (mut dx, mut dw) = (vec![0.0; rows * n], vec![0.0; n]);
        backward_input(&x, &w, &r, &up, &mut dx);
        backward_weight(&x, &r, &up, &mut dw);
        slope(&x, &dx, |x| value(x, &w));
        slope(&w, &dw, |w| value(&x, w));
    }
}
