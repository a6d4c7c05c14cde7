//! Tiles with rules in the common shape, in registers: differences from a base of the same format, of a few terms that count where they
//! are large enough, with or without a vote and a mean. The arithmetic is that of [`rules`](super::rules).
//!
//! A tile is cut where equal magnitudes end to be inside, so one comparison says where a term counts.

#![expect(
    clippy::inline_always,
    reason = "the loops are compiled for an instruction set by being inlined where it is enabled"
)]

use std::ops::Range;

use super::format::{BF16, F32, Format};
use super::{BLOCK, count_special};
use crate::engine::device::{Checked, Edge, Health, Mask, Rules};
use crate::engine::float::{Float, single};
use crate::plan::{Divide, Vote};

/// Bits of the f32.
const INFINITY: u32 = 0x7f80_0000;

/// Computes a tile; `None` if it is of another shape.
#[inline(always)]
pub(super) fn fused(tile: &Checked<'_>, rules: &Rules<'_>, out: &mut [u8]) -> Option<Health> {
    if !rules.deltas || tile.inputs().any(|values| values.float != tile.float) {
        return None;
    }
    match tile.float {
        Float::F32 => of_terms(F32, tile, rules, out),
        Float::BF16 => of_terms(BF16, tile, rules, out),
        _ => None,
    }
}

#[inline(always)]
fn of_terms<F: Format>(
    format: F,
    tile: &Checked<'_>,
    rules: &Rules<'_>,
    out: &mut [u8],
) -> Option<Health> {
    match tile.terms.len() {
        1 => of_rules::<_, 1>(format, tile, rules, out),
        2 => of_rules::<_, 2>(format, tile, rules, out),
        3 => of_rules::<_, 3>(format, tile, rules, out),
        _ => None,
    }
}

#[inline(always)]
fn of_rules<F: Format, const N: usize>(
    format: F,
    tile: &Checked<'_>,
    rules: &Rules<'_>,
    out: &mut [u8],
) -> Option<Health> {
    let shape = Shape::<N>::new(tile, rules)?;
    let first = rules.first;
    Some(match (rules.vote, rules.divide) {
        (None, None) => shape.tile::<_, false, false>(format, tile, first, out),
        (None, Some(_)) => shape.tile::<_, false, true>(format, tile, first, out),
        (Some(Vote::Weighted), None) => shape.tile::<_, true, false>(format, tile, first, out),
        (Some(Vote::Weighted), Some(_)) => shape.tile::<_, true, true>(format, tile, first, out),
        (Some(Vote::Plain), _) => return None,
    })
}

/// The scalars of a tile, rounded to f32.
struct Shape<const N: usize> {
    edges: [Edge; N],
    weights: [f32; N],
    shares: [f32; N],
    lambda: f32,
    divide: Divide,
}

impl<const N: usize> Shape<N> {
    #[inline(always)]
    fn new(tile: &Checked<'_>, rules: &Rules<'_>) -> Option<Self> {
        let mut edges = [Edge::ALL; N];
        for (edge, rule) in edges.iter_mut().zip(rules.terms) {
            match rule.mask {
                Mask::All => {}
                // What is not a number is written in many ways, and none may lie below the edge.
                Mask::Band { low, high }
                    if high == Edge::NONE && (low == Edge::NONE || low.magnitude <= INFINITY) =>
                {
                    *edge = low;
                }
                _ => return None,
            }
            if rule.alone.to_bits() != 1.0_f64.to_bits() {
                return None;
            }
        }
        Some(Self {
            edges,
            weights: std::array::from_fn(|n| single(tile.terms[n].1)),
            shares: std::array::from_fn(|n| single(rules.terms[n].share)),
            lambda: single(tile.lambda),
            divide: rules.divide.unwrap_or(Divide { least: 0.0, instead: 1.0 }),
        })
    }

    #[inline(always)]
    fn tile<F: Format, const VOTE: bool, const DIVIDE: bool>(
        &self,
        format: F,
        tile: &Checked<'_>,
        first: u64,
        out: &mut [u8],
    ) -> Health {
        let mut health = Health::default();
        let size = tile.float.size();
        let mut start = 0;
        while start < tile.elements {
            let block = start..self.end_of_block(first, start, tile.elements);
            let below = self.edges.map(|edge| below(edge, first + start as u64));
            let out = &mut out[start * size..block.end * size];
            start = block.end;
            let from = block.start;
            if self.block::<_, VOTE, DIVIDE>(format, tile, block, &below, F::split_mut(out)) {
                count_special(format, tile, from, out, &mut health);
            }
        }
        health
    }

    /// A block ends at the latest where one of the edges lets no more equal ones in.
    #[inline(always)]
    fn end_of_block(&self, first: u64, start: usize, elements: usize) -> usize {
        let mut end = elements.min(start + BLOCK);
        for edge in &self.edges {
            let last = usize::try_from(edge.end.saturating_sub(first)).unwrap_or(usize::MAX);
            if last > start {
                end = end.min(last);
            }
        }
        end
    }

    /// Says whether any result is special.
    #[inline(always)]
    fn block<F: Format, const VOTE: bool, const DIVIDE: bool>(
        &self,
        format: F,
        tile: &Checked<'_>,
        block: Range<usize>,
        below: &[i32; N],
        out: &mut [F::Bits],
    ) -> bool {
        let (start, count) = (block.start, out.len());
        let Some(base) = tile.base else { return false };
        let base = &F::split(base.run(start, count).bytes)[..count];
        let terms: [&[F::Bits]; N] =
            std::array::from_fn(|n| &F::split(tile.terms[n].0.run(start, count).bytes)[..count]);
        let (least, instead) = (single(self.divide.least), single(self.divide.instead));
        let mut special = false;
        for i in 0..count {
            let base = format.widen(base[i]);
            let values: [f32; N] = std::array::from_fn(|n| format.widen(terms[n][i]) - base);
            let products: [f32; N] = std::array::from_fn(|n| self.weights[n] * values[n]);
            let mut kept: [bool; N] = std::array::from_fn(|n| {
                (values[n].to_bits() & 0x7fff_ffff).cast_signed() > below[n]
            });
            if VOTE {
                let sign = if sum_of(kept, products, -0.0) < 0.0 { 1 << 31 } else { 0 };
                // Not a number is on every side.
                let against = products.map(|x| f32::from_bits(x.to_bits() ^ sign) <= 0.0);
                kept = std::array::from_fn(|n| kept[n] && !against[n]);
            }
            let mut sum = sum_of(kept, products, -0.0);
            if DIVIDE {
                let divisor = sum_of(kept, self.shares, 0.0);
                sum /= if divisor.abs() >= least { divisor } else { instead };
            }
            let bits = format.round(base + self.lambda * sum);
            special |= format.is_special(bits);
            out[i] = bits;
        }
        special
    }
}

/// The sum of what is kept, from a zero.
#[inline(always)]
fn sum_of<const N: usize>(kept: [bool; N], values: [f32; N], zero: f32) -> f32 {
    kept.into_iter().zip(values).fold(zero, |sum, (kept, x)| sum + if kept { x } else { zero })
}

/// Inside an edge are larger magnitudes than this, from a number on to where equal ones begin to matter. Signed: processors compare
/// signed numbers, and magnitudes have 31 bits.
#[inline(always)]
fn below(edge: Edge, number: u64) -> i32 {
    let magnitude = i32::try_from(edge.magnitude).unwrap_or(i32::MAX);
    if number < edge.end { magnitude - 1 } else { magnitude }
}
