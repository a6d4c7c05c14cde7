//! Causal attention with grouped queries: `o = softmax(q k^T / sqrt(d)) v` within each span.
//!
//! Probabilities are never kept: blocks of [`BLOCK`] queries are computed against the keys up to their end, and once
//! more in the backward pass from the logarithm of each row's sum (Dao et al. 2022). Memory besides the inputs is one
//! number a query and head. All arrays are `[span][head][token][head_dim]`.

use rayon::prelude::*;

use super::rope::Heads;
use crate::trainer::math::{View, dot, exp_sum, largest, multiply, wide};

/// Queries computed at once.
const BLOCK: usize = 128;

/// The arrays of one layer's attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a> {
    /// Layout of the queries.
    pub(super) queries: Heads<'a>,
    /// Layout of keys and values: as many heads or fewer.
    pub(super) keys: Heads<'a>,
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
}

impl<'a> Inputs<'a> {
    fn part<'b>(heads: &Heads, data: &'b [f32], span: usize, head: usize) -> &'b [f32] {
        let (range, dim) = (&heads.spans[span], heads.dim);
        let start = (range.start * heads.heads + head * range.len()) * dim;
        &data[start..start + range.len() * dim]
    }

    fn scale(&self) -> f32 {
        1.0 / (self.queries.dim as f32).sqrt()
    }

    /// Query heads that share a key head.
    fn group(&self) -> usize {
        self.queries.heads / self.keys.heads
    }

    /// Scores of the queries `from..to` of one head against keys `0..to`: `[to - from, to]`.
    fn scores(&self, q: &[f32], k: &[f32], (from, to): (usize, usize), scores: &mut Vec<f32>) {
        let dim = self.queries.dim;
        scores.resize((to - from) * to, 0.0);
        let q = View::new(&q[from * dim..to * dim], to - from, dim);
        multiply(self.scale(), q, View::new(&k[..to * dim], to, dim).t(), false, scores);
    }

    /// Forward: output `o` and, for each query and head, the logarithm of its sum `[span][head][token]`.
    pub(super) fn forward(&self, o: &mut [f32], log_sums: &mut [f32]) {
        let dim = self.queries.dim;
        let outputs = self.queries.split(o, dim).zip(self.queries.split(log_sums, 1));
        let tasks: Vec<_> = outputs.map(|((s, h, o), (_, _, l))| (s, h, o, l)).collect();
        tasks.into_par_iter().for_each_init(Vec::new, |scores, (span, head, o, log_sums)| {
            let q = Self::part(&self.queries, self.q, span, head);
            let k = Self::part(&self.keys, self.k, span, head / self.group());
            let v = Self::part(&self.keys, self.v, span, head / self.group());
            let len = log_sums.len();
            for from in (0..len).step_by(BLOCK) {
                let to = (from + BLOCK).min(len);
                self.scores(q, k, (from, to), scores);
                let log_sums = &mut log_sums[from..to];
                wide(
                    #[inline(always)]
                    || {
                        for (i, (row, log_sum)) in scores.chunks_mut(to).zip(log_sums).enumerate() {
                            let (seen, masked) = row.split_at_mut(from + i + 1);
                            let top = largest(seen);
                            let sum = exp_sum(seen, top);
                            let inverse = 1.0 / sum;
                            seen.iter_mut().for_each(|p| *p *= inverse);
                            masked.fill(0.0);
                            *log_sum = top + sum.ln();
                        }
                    },
                );
                let (p, v) = (View::new(scores, to - from, to), View::new(&v[..to * dim], to, dim));
                multiply(1.0, p, v, false, &mut o[from * dim..to * dim]);
            }
        });
    }

    /// Backward: gradients of the queries, keys and values, from that of the output.
    pub(super) fn backward(
        &self,
        log_sums: &[f32],
        d_o: &[f32],
        (dq, dk, dv): (&mut [f32], &mut [f32], &mut [f32]),
    ) {
        let (dim, group) = (self.queries.dim, self.group());
        // One task a key head: the query heads of its group are adjacent in `dq`.
        let grouped = Heads { heads: self.keys.heads, dim: dim * group, ..self.queries };
        let parts = grouped.split(dq, dim * group);
        let parts = parts.zip(self.keys.split(dk, dim)).zip(self.keys.split(dv, dim));
        let tasks: Vec<_> = parts.map(|(((s, h, q), (.., k)), (.., v))| (s, h, q, k, v)).collect();
        tasks.into_par_iter().for_each_init(
            || (Vec::new(), Vec::new()),
            |(p, ds), (span, head, dq, dk, dv)| {
                let range = self.queries.spans[span].clone();
                let len = range.len();
                dk.fill(0.0);
                dv.fill(0.0);
                let k = Self::part(&self.keys, self.k, span, head);
                let v = Self::part(&self.keys, self.v, span, head);
                for (i, dq) in dq.chunks_mut((len * dim).max(1)).enumerate() {
                    let query_head = head * group + i;
                    let q = Self::part(&self.queries, self.q, span, query_head);
                    let d_o = Self::part(&self.queries, d_o, span, query_head);
                    let sums = range.start * self.queries.heads + query_head * len;
                    let log_sums = &log_sums[sums..sums + len];
                    for from in (0..len).step_by(BLOCK) {
                        let to = (from + BLOCK).min(len);
                        let (rows, block) = (to - from, from * dim..to * dim);
                        self.scores(q, k, (from, to), p);
                        ds.resize(rows * to, 0.0);
                        let d_out = View::new(&d_o[block.clone()], rows, dim);
                        let seen = |x: &'a [f32]| View::new(&x[..to * dim], to, dim);
                        multiply(1.0, d_out, seen(v).t(), false, ds);
                        probabilities_and_gradients(p, ds, &log_sums[from..to], from);
                        let (p, ds) = (View::new(p, rows, to), View::new(ds, rows, to));
                        let q = View::new(&q[block.clone()], rows, dim);
                        multiply(1.0, p.t(), d_out, true, &mut dv[..to * dim]);
                        multiply(self.scale(), ds, seen(k), false, &mut dq[block]);
                        multiply(self.scale(), ds.t(), q, true, &mut dk[..to * dim]);
                    }
                }
            },
        );
    }
}

/// Scores become probabilities `p = e^(s - l)`; the gradients `d` of the probabilities become those of the scores,
/// `p (d - sum(p d))`. Row i sees the first `from + i + 1` keys.
fn probabilities_and_gradients(p: &mut [f32], d: &mut [f32], log_sums: &[f32], from: usize) {
    let to = from + log_sums.len();
    wide(
        #[inline(always)]
        || {
            for (i, log_sum) in log_sums.iter().enumerate() {
                let (p, p_masked) = p[i * to..(i + 1) * to].split_at_mut(from + i + 1);
                let (d, d_masked) = d[i * to..(i + 1) * to].split_at_mut(from + i + 1);
                exp_sum(p, *log_sum);
                let mean = dot(p, d);
                for (d, p) in d.iter_mut().zip(p) {
                    *d = *p * (*d - mean);
                }
                p_masked.fill(0.0);
                d_masked.fill(0.0);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::super::testing::{numbers, slope};
    use super::*;

    const DIM: usize = 4;

    fn value(spans: &[Range<usize>], q: &[f32], k: &[f32], v: &[f32], up: &[f32]) -> f64 {
        let queries = Heads { spans, heads: 4, dim: DIM };
        let inputs = Inputs { queries, keys: Heads { heads: 2, ..queries }, q, k, v };
        let (mut o, mut sums) = (vec![f32::NAN; q.len()], vec![0.0; q.len() / DIM]);
        inputs.forward(&mut o, &mut sums);
        o.iter().zip(up).map(|(o, u)| f64::from(*o) * f64::from(*u)).sum()
    }

    #[test]
    fn gradients_agree_with_differences() {
        let spans = [0..1, 1..6, 6..6 + BLOCK + 3];
        let tokens = 6 + BLOCK + 3;
        let wide = tokens * 4 * DIM;
        let (q, k, v) = (numbers(wide, 1), numbers(wide / 2, 2), numbers(wide / 2, 3));
        let up = numbers(wide, 4);
        let queries = Heads { spans: &spans, heads: 4, dim: DIM };
        let keys = Heads { heads: 2, ..queries };
        let inputs = Inputs { queries, keys, q: &q, k: &k, v: &v };
        let (mut o, mut sums) = (vec![0.0; wide], vec![0.0; tokens * 4]);
        inputs.forward(&mut o, &mut sums);
        let nan = |n| vec![f32::NAN; n];
        let (mut dq, mut dk, mut dv) = (nan(wide), nan(wide / 2), nan(wide / 2));
        inputs.backward(&sums, &up, (&mut dq, &mut dk, &mut dv));
        slope(&q, &dq, |q| value(&spans, q, &k, &v, &up));
        slope(&k, &dk, |k| value(&spans, &q, k, &v, &up));
        slope(&v, &dv, |v| value(&spans, &q, &k, v, &up));
    }

    #[test]
    fn the_first_token_sees_itself_alone() {
        let spans = [0..3];
        let queries = Heads { spans: &spans, heads: 1, dim: 2 };
        let (q, v) = (numbers(6, 1), numbers(6, 2));
        let inputs = Inputs { queries, keys: queries, q: &q, k: &q, v: &v };
        let (mut o, mut sums) = (vec![0.0; 6], vec![0.0; 3]);
        inputs.forward(&mut o, &mut sums);
        assert_eq!(o[..2], v[..2]);
    }
}
