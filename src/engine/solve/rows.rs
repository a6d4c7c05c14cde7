//! What takes whole rows: the rank of a magnitude within its row, and the divergence of a row from the base's.

use std::ops::Range;

use super::look::values_of;
use super::ready::bound;
use super::scores::{Score, put};
use crate::engine::device::Values;
use crate::engine::random;
use crate::engine::tile::{Filler, Operands, index};
use crate::error::Result;
use crate::plan::{Blend, Keep};

/// What a softmax is raised by before its logarithm is taken.
const EPSILON: f64 = 1e-8;

impl Filler<'_> {
    /// For each term the divergences of the rows of a run, if it needs them.
    pub(super) fn divergences(
        &self,
        blend: &Blend,
        run: &Range<u64>,
        buffers: &mut Vec<Operands>,
    ) -> Result<Vec<Vec<f64>>> {
        let tiles = self.operands(blend, run, &self.host, buffers)?;
        let (base, terms) = values_of(blend, &tiles);
        let base = base.as_ref().map(Values::new).transpose()?;
        let mut all = Vec::with_capacity(terms.len());
        for (term, operand) in blend.terms.iter().zip(&terms) {
            let (Keep::Important { columns }, Some(base)) = (term.keep, base) else {
                all.push(Vec::new());
                continue;
            };
            let (values, columns) = (Values::new(operand)?, index(columns));
            let (mut p, mut q) = (Vec::new(), Vec::new());
            let rows = (0..index(run.end - run.start)).step_by(columns).map(|start| {
                softmax(&values.run(start, columns), columns, &mut p);
                softmax(&base.run(start, columns), columns, &mut q);
                divergence(&p, &q)
            });
            all.push(rows.collect());
        }
        Ok(all)
    }

    /// Bits of the elements that a draw keeps whose chance rises with the rank.
    pub(super) fn ranked_bits(
        &self,
        blend: &Blend,
        term: usize,
        ((low, high), seed, columns): ((f64, f64), u64, u64),
        run: &Range<u64>,
        buffers: &mut Vec<Operands>,
    ) -> Result<Vec<u8>> {
        let mut bits = vec![0; index(run.end - run.start).div_ceil(8)];
        let rows = run.start / columns * columns..run.end.div_ceil(columns) * columns;
        let width = index(columns);
        // The smallest first; of equal ones the last first.
        let mut order: Vec<u64> = Vec::with_capacity(width);
        let mut number = rows.start;
        let score = Score::Magnitude(term);
        self.keys_of(score, None, blend, &rows, buffers, &mut |_, keys| {
            for key in keys {
                let column = number % columns;
                order.push(u64::from(*key) << 32 | (columns - 1 - column));
                number += 1;
                if column + 1 < columns {
                    continue;
                }
                order.sort_unstable();
                let row = number - columns;
                for (rank, entry) in (0_u32..).zip(&order) {
                    let element = row + (columns - 1 - (entry & u64::from(u32::MAX)));
                    if run.contains(&element) {
                        let below = bound(chance(low, high, rank, width));
                        let kept = u64::from(random::word(seed, element)) < below;
                        put(&mut bits, element - run.start, kept);
                    }
                }
                order.clear();
            }
        })?;
        Ok(bits)
    }
}

/// The chance of the element of this rank, where 0 is the smallest.
#[expect(clippy::cast_precision_loss, reason = "a row is shorter than 2^53")]
fn chance(low: f64, high: f64, rank: u32, columns: usize) -> f64 {
    if columns == 1 {
        return f64::midpoint(low, high);
    }
    low + (high - low) * f64::from(rank) / (columns - 1) as f64
}

/// The softmax of a row, a little raised.
fn softmax(row: &Values<'_>, columns: usize, out: &mut Vec<f64>) {
    out.clear();
    out.extend((0..columns).map(|i| row.at(i)));
    let largest = out.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for x in out.iter_mut() {
        *x = libm::exp(*x - largest);
        sum += *x;
    }
    for x in out {
        *x = *x / sum + EPSILON;
    }
}

fn divergence(p: &[f64], q: &[f64]) -> f64 {
    let mut sum = 0.0;
    for (p, q) in p.iter().zip(q) {
        sum += p * libm::log(p / q);
    }
    sum
}
