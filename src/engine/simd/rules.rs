//! Tiles with rules: blocks of every term's values and of where they count, then the sum over those that do.
//!
//! Where a value does not count, negative zero is added instead, which changes no sum: so every loop is without branches. A block of
//! all terms stays in the L1 cache.

#![expect(
    clippy::inline_always,
    reason = "the loops are compiled for an instruction set by being inlined where it is enabled"
)]

use super::format::{BF16, E4M3, E4M3Fnuz, E5M2, E5M2Fnuz, F32, Format, with_format};
use super::fused::fused;
use super::level::Job;
use super::{count_special, each, round, widen};
use crate::engine::device::{Checked, Edge, Health, Mask, Rules, Values};
use crate::engine::float::{Float, single};
use crate::engine::random;
use crate::engine::sweep::magnitude;
use crate::plan::Vote;

/// Elements of a block; a multiple of the elements of a byte of bits.
pub(super) const SMALL: usize = 256;

/// All bits where an element counts, none where it does not.
type Where = [u32; SMALL];

/// A tile of f32 arithmetic with rules.
pub(super) struct Ruled<'a> {
    pub(super) tile: &'a Checked<'a>,
    pub(super) rules: &'a Rules<'a>,
    pub(super) out: &'a mut [u8],
}

/// A term's values in a block, and where they count.
#[derive(Clone)]
struct Block {
    values: [f32; SMALL],
    kept: Where,
}

impl Job for Ruled<'_> {
    type Output = Health;

    #[inline(always)]
    fn run<H: Format<Bits = [u8; 2]>>(self, half: H) -> Health {
        let (tile, rules) = (self.tile, self.rules);
        if let Some(health) = fused(tile, rules, self.out) {
            return health;
        }
        let mut health = Health::default();
        let mut blocks = vec![Block { values: [0.0; SMALL], kept: [0; SMALL] }; tile.terms.len()];
        let mut base = [0.0; SMALL];
        let size = tile.float.size();
        for start in (0..tile.elements).step_by(SMALL) {
            let count = SMALL.min(tile.elements - start);
            if let Some(operand) = &tile.base {
                let bytes = operand.run(start, count).bytes;
                with_format!(operand.float, half, format => widen(format, bytes, &mut base));
            }
            let at = Place { start, count, number: rules.first + start as u64 };
            let minus = rules.deltas.then_some(&base);
            for ((block, (operand, _)), rule) in blocks.iter_mut().zip(&tile.terms).zip(rules.terms)
            {
                values_of(half, operand, minus, at, &mut block.values);
                keep(rule.mask, at, &mut block.values, &mut block.kept);
            }
            let mut sum = joined(tile, rules, &mut blocks);
            let lambda = single(tile.lambda);
            if tile.base.is_some() {
                each(&mut sum, &base, |sum, base| base + lambda * sum);
            } else {
                for sum in &mut sum {
                    *sum *= lambda;
                }
            }
            let out = &mut self.out[start * size..][..count * size];
            let special =
                with_format!(tile.float, half, format => round(format, &sum[..count], out));
            if special {
                with_format!(tile.float, half, format => count_special(format, tile, start, out, &mut health));
            }
        }
        health
    }
}

/// A block of a tile: its first element in the tile, its elements, and the number of the first in the part.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) start: usize,
    pub(super) count: usize,
    pub(super) number: u64,
}

/// Values of a block. What lies beyond its elements is whatever it was.
#[inline(always)]
pub(super) fn values_of<H: Format<Bits = [u8; 2]>>(
    half: H,
    operand: &Values<'_>,
    minus: Option<&[f32; SMALL]>,
    at: Place,
    values: &mut [f32; SMALL],
) {
    let bytes = operand.run(at.start, at.count).bytes;
    with_format!(operand.float, half, format => widen(format, bytes, values));
    if let Some(base) = minus {
        each(values, base, |x, base| x - base);
    }
}

/// Where a mask keeps the values of a block; limits them, if it does that.
#[inline(always)]
pub(super) fn keep(mask: Mask<'_>, at: Place, values: &mut [f32; SMALL], kept: &mut Where) {
    match mask {
        Mask::All => kept.fill(u32::MAX),
        Mask::Near(t) => {
            kept.fill(u32::MAX);
            limit(t, values);
        }
        Mask::Band { low, high } if high == Edge::NONE => {
            let low = Bound::new(low, at.number);
            for (i, (kept, value)) in (0_u32..).zip(kept.iter_mut().zip(values)) {
                *kept = low.holds(*value, i);
            }
        }
        Mask::Band { low, high } => {
            let (low, high) = (Bound::new(low, at.number), Bound::new(high, at.number));
            for (i, (kept, value)) in (0_u32..).zip(kept.iter_mut().zip(values)) {
                *kept = low.holds(*value, i) & !high.holds(*value, i);
            }
        }
        Mask::Random { seed, below } => draw(seed, below, at.number, kept),
        Mask::Bits(bits) => {
            let bits = &bits[at.start / 8..];
            for (kept, bits) in kept.as_chunks_mut::<8>().0.iter_mut().zip(bits) {
                for (i, kept) in kept.iter_mut().enumerate() {
                    *kept = (u32::from(*bits) >> i & 1).wrapping_neg();
                }
            }
        }
    }
}

/// An edge as a block sees it.
#[derive(Clone, Copy)]
struct Bound {
    /// Signed: processors compare signed numbers, and magnitudes have 31 bits.
    magnitude: i32,
    /// Of exactly this magnitude, elements of the block before this one are inside.
    end: u32,
}

impl Bound {
    #[inline(always)]
    fn new(edge: Edge, number: u64) -> Self {
        Self {
            magnitude: i32::try_from(edge.magnitude).unwrap_or(i32::MAX),
            end: u32::try_from(edge.end.saturating_sub(number)).unwrap_or(u32::MAX),
        }
    }

    #[inline(always)]
    const fn holds(self, value: f32, i: u32) -> u32 {
        let magnitude = magnitude(value).cast_signed();
        let inside = magnitude > self.magnitude || (magnitude == self.magnitude && i < self.end);
        (inside as u32).wrapping_neg()
    }
}

/// The draws of a block.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "less than four; less than 2^32 where it is used"
)]
fn draw(seed: u64, below: u64, number: u64, kept: &mut Where) {
    if below > u64::from(u32::MAX) {
        kept.fill(u32::MAX);
        return;
    }
    let below = below as u32;
    let (first, skip) = (number / random::WORDS, (number % random::WORDS) as usize);
    // One more group than a block has, if it does not begin with one.
    let mut words = [[[0; 4]; random::LANES]; SMALL / 4 / random::LANES + 1];
    let needed = if skip == 0 { words.len() - 1 } else { words.len() };
    for (words, first) in words[..needed].iter_mut().zip((first..).step_by(random::LANES)) {
        *words = random::many_words(seed, first);
    }
    let words = &words.as_flattened().as_flattened()[skip..];
    for (kept, word) in kept.iter_mut().zip(words) {
        *kept = u32::from(*word < below).wrapping_neg();
    }
}

#[inline(always)]
fn limit(t: f32, values: &mut [f32; SMALL]) {
    for value in values {
        let size = value.abs();
        let size = if size > 1e-6 { size } else { 1e-6 };
        let share = t / size;
        let share = if share < 1.0 { share } else { 1.0 };
        *value *= if t < 0.0 { 0.0 } else { share };
    }
}

/// The number where the mask says so, another elsewhere.
#[inline(always)]
pub(super) const fn select(kept: u32, value: f32, other: f32) -> f32 {
    f32::from_bits(value.to_bits() & kept | other.to_bits() & !kept)
}

/// What the terms that count sum up to, divided if that is asked.
#[inline(always)]
fn joined(tile: &Checked<'_>, rules: &Rules<'_>, blocks: &mut [Block]) -> [f32; SMALL] {
    if let Some(vote) = rules.vote {
        elect(tile, vote, blocks);
    }
    let mut sum = [-0.0; SMALL];
    for (block, (_, weight)) in blocks.iter().zip(&tile.terms) {
        let weight = single(*weight);
        for (sum, (value, kept)) in sum.iter_mut().zip(block.values.iter().zip(&block.kept)) {
            *sum += select(*kept, weight * value, -0.0);
        }
    }
    if rules.terms.iter().any(|rule| rule.alone.to_bits() != 1.0_f64.to_bits()) {
        let (mut count, mut only) = ([0_u32; SMALL], [1.0; SMALL]);
        for (block, rule) in blocks.iter().zip(rules.terms) {
            let alone = single(rule.alone);
            for ((count, only), kept) in count.iter_mut().zip(&mut only).zip(&block.kept) {
                *count = count.wrapping_add(kept & 1);
                *only = select(*kept, alone, *only);
            }
        }
        for ((sum, only), count) in sum.iter_mut().zip(only).zip(count) {
            *sum *= if count == 1 { only } else { 1.0 };
        }
    }
    if let Some(divide) = rules.divide {
        let (least, instead) = (single(divide.least), single(divide.instead));
        let mut divisor = [0.0_f32; SMALL];
        for (block, rule) in blocks.iter().zip(rules.terms) {
            let share = single(rule.share);
            for (divisor, kept) in divisor.iter_mut().zip(&block.kept) {
                *divisor += select(*kept, share, 0.0);
            }
        }
        each(&mut sum, &divisor, |sum, divisor| {
            sum / if divisor.abs() >= least { divisor } else { instead }
        });
    }
    sum
}

/// Leaves only terms that have the elected sign.
#[inline(always)]
fn elect(tile: &Checked<'_>, vote: Vote, blocks: &mut [Block]) {
    let mut sum = [-0.0; SMALL];
    // Contributions or values: a factor of one changes nothing.
    let factor = |weight: f64| match vote {
        Vote::Weighted => single(weight),
        Vote::Plain => 1.0,
    };
    for (block, (_, weight)) in blocks.iter().zip(&tile.terms) {
        let factor = factor(*weight);
        for (sum, (value, kept)) in sum.iter_mut().zip(block.values.iter().zip(&block.kept)) {
            *sum += select(*kept, factor * value, -0.0);
        }
    }
    for (block, (_, weight)) in blocks.iter_mut().zip(&tile.terms) {
        let factor = factor(*weight);
        for ((value, kept), sum) in block.values.iter().zip(&mut block.kept).zip(&sum) {
            let ballot = factor * value;
            // Not a number is on every side.
            let plus = ballot > 0.0 || ballot.is_nan();
            let minus = ballot < 0.0 || ballot.is_nan();
            *kept &= u32::from(if *sum < 0.0 { minus } else { plus }).wrapping_neg();
        }
    }
}

/// Bits of values as sums see them: of a whole block, zero where they are not kept.
#[inline(always)]
pub(super) fn kept_values<H: Format<Bits = [u8; 2]>>(
    half: H,
    operand: &Values<'_>,
    minus: Option<&[f32; SMALL]>,
    mask: Mask<'_>,
    at: Place,
    values: &mut [f32; SMALL],
) {
    let mut kept = [0; SMALL];
    values_of(half, operand, minus, at, values);
    keep(mask, at, values, &mut kept);
    for (value, kept) in values.iter_mut().zip(kept) {
        *value = select(kept, *value, 0.0);
    }
}
