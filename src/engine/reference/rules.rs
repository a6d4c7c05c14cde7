//! A tile with rules, one element after the other: which terms count, and what comes of it.

use std::ops::{Add, Div, Mul, Sub};

use crate::engine::device::{Checked, Edge, Mask, Rules, Values};
use crate::engine::random;
use crate::engine::sweep::magnitude;
use crate::plan::Vote;

/// The arithmetic of a tile: f32, or f64 if any operand or the output is that.
pub(super) trait Real:
    Copy
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
{
    /// Rounded once.
    fn of(value: f64) -> Self;

    /// Exact.
    fn wide(self) -> f64;

    /// Rounded once.
    fn single(self) -> f32;
}

impl Real for f32 {
    #[expect(clippy::cast_possible_truncation, reason = "rounded once, as the contract says")]
    fn of(value: f64) -> Self {
        value as Self
    }

    fn wide(self) -> f64 {
        self.into()
    }

    fn single(self) -> f32 {
        self
    }
}

impl Real for f64 {
    fn of(value: f64) -> Self {
        value
    }

    fn wide(self) -> f64 {
        self
    }

    #[expect(clippy::cast_possible_truncation, reason = "magnitudes are those of the f32")]
    fn single(self) -> f32 {
        self as f32
    }
}

/// What a term is at an element.
struct Found<R> {
    value: R,
    product: R,
    share: R,
    alone: R,
}

/// Element `i` of a tile.
pub(super) fn element<R: Real>(tile: &Checked<'_>, rules: &Rules<'_>, i: usize) -> f64 {
    let base = tile.base.map(|base| R::of(base.at(i)));
    let mut kept: Vec<Found<R>> = Vec::with_capacity(tile.terms.len());
    for ((values, weight), rule) in tile.terms.iter().zip(rules.terms) {
        let base = tile.base.as_ref().filter(|_| rules.deltas);
        if let Some(value) = value::<R>(values, base, rule.mask, rules.first, i) {
            let (product, share) = (R::of(*weight) * value, R::of(rule.share));
            kept.push(Found { value, product, share, alone: R::of(rule.alone) });
        }
    }
    let none = R::of(-0.0);
    let zero = R::of(0.0);
    if let Some(vote) = rules.vote {
        let ballot = |found: &Found<R>| match vote {
            Vote::Weighted => found.product,
            Vote::Plain => found.value,
        };
        let negative = kept.iter().fold(none, |sum, found| sum + ballot(found)) < zero;
        // Not a comparison the other way round: what is not a number counts.
        kept.retain(|found| {
            let against = if negative { ballot(found) >= zero } else { ballot(found) <= zero };
            !against
        });
    }
    let mut sum = kept.iter().fold(none, |sum, found| sum + found.product);
    if let [only] = kept.as_slice() {
        sum = only.alone * sum;
    }
    if let Some(divide) = rules.divide {
        let (least, instead) = (R::of(divide.least), R::of(divide.instead));
        let divisor = kept.iter().fold(zero, |sum, found| sum + found.share);
        let size = if divisor < zero { none - divisor } else { divisor };
        let enough = size >= least;
        sum = sum / if enough { divisor } else { instead };
    }
    let scaled = R::of(tile.lambda) * sum;
    base.map_or(scaled, |base| base + scaled).wide()
}

/// The value of a term at element `i` of a tile that starts at element `first` of its part; none where it is not kept.
pub(super) fn value<R: Real>(
    values: &Values<'_>,
    base: Option<&Values<'_>>,
    mask: Mask<'_>,
    first: u64,
    i: usize,
) -> Option<R> {
    let x = R::of(values.at(i));
    let value = base.map_or(x, |base| x - R::of(base.at(i)));
    let number = first + i as u64;
    let kept = match mask {
        Mask::All => true,
        Mask::Near(t) => return Some(limited(value, t)),
        Mask::Band { low, high } => {
            let magnitude = magnitude(value.single());
            is_inside(low, magnitude, number) && !is_inside(high, magnitude, number)
        }
        Mask::Random { seed, below } => u64::from(random::word(seed, number)) < below,
        Mask::Bits(bits) => bits[i / 8] >> (i % 8) & 1 == 1,
    };
    kept.then_some(value)
}

/// Whether an element lies inside an edge.
pub(in crate::engine) const fn is_inside(edge: Edge, magnitude: u32, number: u64) -> bool {
    magnitude > edge.magnitude || (magnitude == edge.magnitude && number < edge.end)
}

/// A value as [`Keep::Near`](crate::plan::Keep::Near) leaves it.
fn limited<R: Real>(value: R, t: f32) -> R {
    let (zero, one, least) = (R::of(0.0), R::of(1.0), R::of(1e-6));
    let t = R::of(t.into());
    if t < zero {
        return zero * value;
    }
    let size = if value < zero { R::of(-0.0) - value } else { value };
    let size = if size > least { size } else { least };
    let share = t / size;
    (if share < one { share } else { one }) * value
}
