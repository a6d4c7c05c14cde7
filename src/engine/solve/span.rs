//! Weights of rows or columns: each is solved from its own elements, and computed with weights of its own. On the CPU, whatever
//! the device: what it takes is one small blend after the other.
//!
//! Sums of a row are those of a part that is no longer. Sums of a column are f64, of products of factors that were widened first, in
//! the order of the rows within blocks of [`ColumnSums::run`] elements; then the blocks', one after the other.

use std::collections::BTreeMap;
use std::ops::Range;

use super::look::{values_of, with_weights};
use super::weights::weights;
use crate::engine::device::{BlendTile, Checked, Device, Health, Operand, Values};
use crate::engine::float::{Float, single};
use crate::engine::sweep::{Gram, LEAF, SweepTile, TreeSum, Want, leaves_of, sums_of};
use crate::engine::tile::{Filler, Operands, index};
use crate::error::{Error, Result};
use crate::plan::{Blend, Output, Solve};

/// Elements of a block of rows, if they are not longer.
const BLOCK: u64 = 1 << 18;

/// Which weights are whose.
pub(in crate::engine) enum Spanned {
    /// Each row has its own, found when it is computed.
    Rows { columns: u64, solve: Solve },
    /// Each column has its own, for each operand, base first.
    Columns { columns: u64, lambda: f64, weights: Vec<Vec<f64>> },
}

impl Spanned {
    /// Of the weights of each column's terms.
    pub(super) fn columns(blend: &Blend, found: &[Vec<f64>]) -> Self {
        let mut weights = vec![Vec::with_capacity(found.len()); blend.operands().count()];
        let mut lambda = blend.lambda;
        for found in found {
            let (factor, found) = with_weights(blend, found);
            lambda = factor;
            for (weights, weight) in weights.iter_mut().zip(found) {
                weights.push(weight);
            }
        }
        Self::Columns { columns: found.len() as u64, lambda, weights }
    }
}

/// Sums of every column, by blocks of rows that come in any order.
#[derive(Default)]
pub(super) struct ColumnSums {
    sums: Vec<f64>,
    /// First element of the block that is added next.
    next: u64,
    /// Those that came before their turn.
    early: BTreeMap<u64, Vec<f64>>,
}

impl ColumnSums {
    /// Elements of a block: whole rows.
    pub(super) const fn run(columns: u64) -> u64 {
        if columns >= BLOCK { columns } else { BLOCK / columns * columns }
    }

    /// Takes a block's sums.
    pub(super) fn add(&mut self, start: u64, columns: u64, sums: Vec<f64>) {
        self.early.insert(start, sums);
        while let Some(sums) = self.early.remove(&self.next) {
            if self.sums.is_empty() {
                self.sums = sums;
            } else {
                for (sum, x) in self.sums.iter_mut().zip(sums) {
                    *sum += x;
                }
            }
            self.next += Self::run(columns);
        }
    }

    /// The sums of each column.
    pub(super) fn grams(self, terms: usize, columns: u64) -> Result<Vec<Gram>> {
        let columns = index(columns);
        let gram = |column: usize| {
            let sums: Vec<f64> = self.sums.iter().skip(column).step_by(columns).copied().collect();
            let mut tree = TreeSum::new(terms, 1);
            tree.add(0, &sums);
            tree.finish()
        };
        (0..columns).map(gram).collect()
    }
}

impl Filler<'_> {
    /// The sums of a block's columns: all columns' first sum, then all columns' second, ..
    pub(super) fn column_sums(
        &self,
        blend: &Blend,
        columns: u64,
        run: &Range<u64>,
        buffers: &mut Vec<Operands>,
    ) -> Result<Vec<f64>> {
        let tiles = self.operands(blend, run, &self.host, buffers)?;
        let (base, terms) = values_of(blend, &tiles);
        let base = base.as_ref().map(Values::new).transpose()?;
        let terms: Vec<_> = terms.iter().map(Values::new).collect::<Result<_>>()?;
        let double = base.iter().chain(&terms).any(|values| values.float == Float::F64);
        let width = index(columns);
        let mut sums = vec![0.0; width * sums_of(terms.len())];
        let mut rows = vec![vec![0.0; width]; terms.len()];
        for start in (0..index(run.end - run.start)).step_by(width) {
            for (row, term) in rows.iter_mut().zip(&terms) {
                let (x, base) = (term.run(start, width), base.map(|base| base.run(start, width)));
                if double {
                    for (i, out) in row.iter_mut().enumerate() {
                        *out = base.map_or(x.at(i), |base| x.at(i) - base.at(i));
                    }
                } else {
                    self.host.values(base.as_ref(), &x, row);
                }
            }
            let mut sums = sums.chunks_exact_mut(width).skip(terms.len());
            for (i, x) in rows.iter().enumerate() {
                for (y, sums) in rows[i..].iter().zip(&mut sums) {
                    for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
                        *sum += x * y;
                    }
                }
            }
        }
        Ok(sums)
    }

    /// Computes elements of a part whose rows or columns have weights of their own.
    pub(in crate::engine) fn compute_spanned(
        &self,
        output: &Output,
        blend: &Blend,
        spanned: &Spanned,
        elements: &Range<u64>,
        out: &mut [u8],
        buffers: &mut Vec<Operands>,
    ) -> Result<Health> {
        let columns = match spanned {
            Spanned::Rows { columns, .. } | Spanned::Columns { columns, .. } => *columns,
        };
        let rows = elements.start / columns * columns..elements.end.div_ceil(columns) * columns;
        let tiles = self.operands(blend, &rows, &self.host, buffers)?;
        let operands: Vec<Operand<'_>> = blend
            .operands()
            .zip(&tiles)
            .map(|(operand, tile)| Operand { dtype: operand.dtype(), bytes: tile })
            .collect();
        let width = out.len() / index(elements.end - elements.start).max(1);
        let mut health = Health::default();
        for row in (rows.start..rows.end).step_by(index(columns)) {
            let wanted = row.max(elements.start)..(row + columns).min(elements.end);
            let place = index(wanted.start - elements.start)..index(wanted.end - elements.start);
            let out = &mut out[place.start * width..place.end * width];
            let cut = |range: Range<u64>| -> Vec<Operand<'_>> {
                let cut = |operand: &Operand<'_>| {
                    let size = operand.dtype.bytes().unwrap_or(1);
                    let bytes = |at: u64| index((at - rows.start) * size);
                    bytes(range.start)..bytes(range.end)
                };
                operands
                    .iter()
                    .map(|o| Operand { dtype: o.dtype, bytes: &o.bytes[cut(o)] })
                    .collect()
            };
            health = health.merge(match spanned {
                Spanned::Rows { solve, .. } => {
                    let weights =
                        self.row_weights(output, blend, *solve, &cut(row..row + columns))?;
                    let (lambda, weights) = with_weights(blend, &weights);
                    let terms: Vec<_> = cut(wanted).into_iter().zip(weights).collect();
                    let dtype = &output.dtype;
                    let tile = BlendTile { base: None, terms: &terms, lambda, dtype, rules: None };
                    self.host.blend(&tile, out)?
                }
                Spanned::Columns { lambda, weights, .. } => {
                    let weights = (*lambda, weights.as_slice(), index(wanted.start - row));
                    blend_columns(output, weights, &cut(wanted), out)?
                }
            });
        }
        Ok(health)
    }

    /// The weights of a row, from its operands.
    fn row_weights(
        &self,
        output: &Output,
        blend: &Blend,
        solve: Solve,
        row: &[Operand<'_>],
    ) -> Result<Vec<f64>> {
        let (base, terms) = row.split_at(usize::from(blend.base.is_some()));
        let first = &terms[0];
        let elements = first.bytes.len() / index(first.dtype.bytes().unwrap_or(1));
        let mut sums = vec![0.0; leaves_of(elements) * sums_of(terms.len())];
        let tile =
            SweepTile { want: Want::Products, ..SweepTile::new(base.first().copied(), terms) };
        self.host.sums(&tile, &mut sums)?;
        let mut tree = TreeSum::new(terms.len(), (leaves_of(elements) * LEAF) as u64);
        tree.add(0, &sums);
        let given: Vec<f64> = blend.terms.iter().map(|term| term.weight).collect();
        weights(solve, &given, &tree.finish()?).map_err(|reason| failed(output, reason))
    }
}

/// A run of a row, each element with the weights of its column, which begin at `first`: the arithmetic of a blend.
fn blend_columns(
    output: &Output,
    (lambda, weights, first): (f64, &[Vec<f64>], usize),
    operands: &[Operand<'_>],
    out: &mut [u8],
) -> Result<Health> {
    let unweighted: Vec<_> = operands.iter().map(|operand| (*operand, 1.0)).collect();
    let dtype = &output.dtype;
    let tile = BlendTile { base: None, terms: &unweighted, lambda, dtype, rules: None };
    let tile = Checked::new(&tile, out)?;
    let mut health = Health::default();
    for (i, bytes) in out.chunks_exact_mut(tile.float.size()).enumerate() {
        let terms = tile.terms.iter().zip(weights);
        let terms = terms.map(|((values, _), weights)| (values.at(i), weights[first + i]));
        let value = if tile.is_double() {
            lambda * terms.map(|(x, weight)| weight * x).fold(-0.0, |sum, x| sum + x)
        } else {
            let products = terms.map(|(x, weight)| single(weight) * single(x));
            f64::from(single(lambda) * products.fold(-0.0, |sum, x| sum + x))
        };
        tile.float.write(value, bytes);
        let written = tile.float.read(bytes);
        if !written.is_finite() {
            tile.count(&mut health, i, written.is_nan());
        }
    }
    Ok(health)
}

/// No weights for a tensor.
pub(super) fn failed(output: &Output, reason: String) -> Error {
    Error::Unsupported {
        what: format!("`{}`", output.name),
        reason,
        hint: "choose other weights, or another method for this tensor".into(),
    }
}
