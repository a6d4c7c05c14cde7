//! `SwiGLU` (Shazeer 2020): `a = silu(g) u` with `silu(g) = g / (1 + e^-g)`, elementwise.

use rayon::prelude::*;

use crate::trainer::math::{sigmoid, wide};

/// Elements that one task takes.
const BLOCK: usize = 1 << 14;

/// Forward: `a` from gate `g` and `u`.
pub(super) fn forward(g: &[f32], u: &[f32], a: &mut [f32]) {
    let blocks = a.par_chunks_mut(BLOCK).zip(g.par_chunks(BLOCK)).zip(u.par_chunks(BLOCK));
    blocks.for_each(|((a, g), u)| {
        wide(
            #[inline(always)]
            || {
                for ((a, g), u) in a.iter_mut().zip(g).zip(u) {
                    *a = g * sigmoid(*g) * u;
                }
            },
        );
    });
}

/// Backward in place: gate and `u` become their gradients, `d`, the gradient of the output, becomes the output.
pub(super) fn backward(g: &mut [f32], u: &mut [f32], d: &mut [f32]) {
    let blocks = d.par_chunks_mut(BLOCK).zip(g.par_chunks_mut(BLOCK)).zip(u.par_chunks_mut(BLOCK));
    blocks.for_each(|((d, g), u)| {
        wide(
            #[inline(always)]
            || {
                for ((d, g), u) in d.iter_mut().zip(g).zip(u) {
                    let s = sigmoid(*g);
                    let silu = *g * s;
                    let (dy, up) = (*d, *u);
                    *d = silu * up;
                    *u = dy * silu;
                    *g = dy * up * s * (1.0 + *g * (1.0 - s));
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::{numbers, slope};
    use super::*;

    #[test]
    fn gradients_agree_with_differences() {
        let n = 50;
        let (g, u, up) = (numbers(n, 1), numbers(n, 2), numbers(n, 3));
        let value = |g: &[f32], u: &[f32]| {
            let mut a = vec![0.0; n];
            forward(g, u, &mut a);
            a.iter().zip(&up).map(|(a, u)| f64::from(*a) * f64::from(*u)).sum::<f64>()
        };
        let (mut dg, mut du, mut d) = (g.clone(), u.clone(), up.clone());
        backward(&mut dg, &mut du, &mut d);
        slope(&g, &dg, |g| value(g, &u));
        slope(&u, &du, |u| value(&g, u));
        let mut a = vec![0.0; n];
        forward(&g, &u, &mut a);
        assert_eq!(a, d, "the output comes back");
    }
}
