//! The fast device of every CPU: safe loops, compiled once for each instruction set, chosen once.
//!
//! The common shape (base and one or two terms, all of the output's dtype) is one loop that keeps everything in
//! registers. Every other mix goes through blocks of f32 that stay in the L1 cache. f64 is left to the reference.

#![expect(
    clippy::inline_always,
    reason = "the loops are compiled for an instruction set by being inlined where it is enabled"
)]

mod bracket;
#[cfg(target_arch = "x86_64")]
mod f16c;
mod format;
mod fused;
mod level;
mod product;
mod rules;
mod sums;
mod sweep;

use format::{BF16, E4M3, E4M3Fnuz, E5M2, E5M2Fnuz, F32, Factors, Format, with_format};
use level::{Job, Level};
pub(super) use product::add_product;

use super::device::{BlendTile, Checked, Device, Health, Mask, Rules, TermRule, Values};
use super::float::{Float, single};
use super::reference;
use super::sweep::{Checked as CheckedSweep, Digit, SweepTile};
use crate::error::Result;

/// Elements of a block: two of them as f32 fit the smallest L1 cache with room to spare.
pub(super) const BLOCK: usize = 1024;

/// The device that uses the CPU's vector instructions.
#[derive(Clone, Copy)]
pub struct Simd {
    level: Level,
}

impl Simd {
    /// With the widest instruction set that this CPU has.
    pub fn new() -> Self {
        let level = Level::present().pop().unwrap_or(Level::BASELINE);
        Self { level }
    }

    /// One for every instruction set that this CPU has, the baseline first.
    pub fn levels() -> Vec<Self> {
        Level::present().into_iter().map(|level| Self { level }).collect()
    }
}

impl Simd {
    /// Values of a term that is not `F64`, minus those of the base, which is not either, in f32.
    pub(super) fn values(self, base: Option<&Values<'_>>, term: &Values<'_>, out: &mut [f64]) {
        self.level.run(sweep::Wide { base, term, out });
    }

    /// How many of these values have a magnitude.
    pub(super) fn equal(self, base: Option<&Values<'_>>, term: &Values<'_>, magnitude: u32) -> u64 {
        self.level.run(sweep::Equal { base, term, magnitude })
    }

    fn ruled(self, tile: &Checked<'_>, rules: &Rules<'_>, out: &mut [u8]) -> Health {
        let plain = |rule: &TermRule<'_>| {
            matches!(rule.mask, Mask::All) && rule.alone.to_bits() == 1.0_f64.to_bits()
        };
        let sum = rules.vote.is_none() && rules.divide.is_none() && rules.terms.iter().all(plain);
        if sum && rules.deltas {
            return self.level.run(Blend::<true> { tile, out });
        }
        self.level.run(rules::Ruled { tile, rules, out })
    }
}

impl Default for Simd {
    fn default() -> Self {
        Self::new()
    }
}

impl Device for Simd {
    fn name(&self) -> String {
        format!("simd ({})", self.level.name())
    }

    fn blend(&self, tile: &BlendTile<'_>, out: &mut [u8]) -> Result<Health> {
        let tile = Checked::new(tile, out)?;
        if tile.is_double() {
            return Ok(reference::blend(&tile, out));
        }
        if let Some(rules) = tile.rules {
            return Ok(self.ruled(&tile, rules, out));
        }
        Ok(self.level.run(Blend::<false> { tile: &tile, out }))
    }

    fn sums(&self, tile: &SweepTile<'_>, sums: &mut [f64]) -> Result<()> {
        let tile = CheckedSweep::of_sums(tile, sums)?;
        if tile.is_double() {
            reference::sums(&tile, sums);
        } else {
            self.level.run(sweep::Sums { tile: &tile, sums });
        }
        Ok(())
    }

    fn as_simd(&self) -> Option<Self> {
        Some(*self)
    }

    fn histogram(&self, tile: &SweepTile<'_>, digit: Digit, counts: &mut [u64]) -> Result<()> {
        let tile = CheckedSweep::of_histogram(tile, digit, counts)?;
        if tile.is_double() {
            reference::histogram(&tile, digit, counts);
        } else {
            self.level.run(sweep::Histogram { tile: &tile, digit, counts });
        }
        Ok(())
    }
}

/// A tile of f32 arithmetic: a sum of values, or of differences from the base.
struct Blend<'a, const DELTAS: bool> {
    tile: &'a Checked<'a>,
    out: &'a mut [u8],
}

impl<const DELTAS: bool> Job for Blend<'_, DELTAS> {
    type Output = Health;

    #[inline(always)]
    fn run<H: Format<Bits = [u8; 2]>>(self, half: H) -> Health {
        let mut health = Health::default();
        let size = self.tile.float.size();
        for start in (0..self.tile.elements).step_by(BLOCK) {
            let count = BLOCK.min(self.tile.elements - start);
            let out = &mut self.out[start * size..][..count * size];
            let special = fused_block::<H, DELTAS>(half, self.tile, start, out)
                .unwrap_or_else(|| mixed_block::<H, DELTAS>(half, self.tile, start, out));
            if special {
                let (tile, float) = (self.tile, self.tile.float);
                with_format!(float, half, format => count_special(format, tile, start, out, &mut health));
            }
        }
        health
    }
}

/// The common shapes in one loop; `None` for any other. Says whether any result is special.
#[inline(always)]
fn fused_block<H: Format<Bits = [u8; 2]>, const DELTAS: bool>(
    half: H,
    tile: &Checked<'_>,
    start: usize,
    out: &mut [u8],
) -> Option<bool> {
    if tile.inputs().any(|values| values.float != tile.float) {
        return None;
    }
    match tile.float {
        Float::F32 => fused_terms::<_, DELTAS>(F32, tile, start, out),
        // f16 is widened by an instruction of its own, which only the loop for sums with a base has.
        Float::F16 if !DELTAS && tile.base.is_some() => {
            fused_terms::<_, DELTAS>(half, tile, start, out)
        }
        Float::BF16 => fused_terms::<_, DELTAS>(BF16, tile, start, out),
        _ => None,
    }
}

#[inline(always)]
fn fused_terms<F: Format, const DELTAS: bool>(
    format: F,
    tile: &Checked<'_>,
    start: usize,
    out: &mut [u8],
) -> Option<bool> {
    let out = F::split_mut(out);
    match tile.terms.as_slice() {
        [a] => Some(fused_of::<_, 1, DELTAS>(format, tile, [a], start, out)),
        [a, b] => Some(fused_of::<_, 2, DELTAS>(format, tile, [a, b], start, out)),
        [a, b, c] => Some(fused_of::<_, 3, DELTAS>(format, tile, [a, b, c], start, out)),
        _ => None,
    }
}

#[inline(always)]
fn fused_of<F: Format, const N: usize, const DELTAS: bool>(
    format: F,
    tile: &Checked<'_>,
    terms: [&(Values<'_>, f64); N],
    start: usize,
    out: &mut [F::Bits],
) -> bool {
    let count = out.len();
    let factors = Factors { weights: terms.map(|(_, w)| single(*w)), lambda: single(tile.lambda) };
    let terms = terms.map(|(values, _)| F::split(values.run(start, count).bytes));
    match tile.base.map(|base| F::split(base.run(start, count).bytes)) {
        Some(base) if DELTAS => format.fused_deltas(base, terms, &factors, out),
        Some(base) => format.fused(base, terms, &factors, out),
        None => format.fused_sum(terms, &factors, out),
    }
}

/// Any mix, through f32 blocks. Says whether any result is special.
#[inline(always)]
fn mixed_block<H: Format<Bits = [u8; 2]>, const DELTAS: bool>(
    half: H,
    tile: &Checked<'_>,
    start: usize,
    out: &mut [u8],
) -> bool {
    let count = out.len() / tile.float.size();
    let (mut sum, mut wide, mut base) = ([0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
    let (sum, wide, base) = (&mut sum[..count], &mut wide[..count], &mut base[..count]);
    let lambda = single(tile.lambda);
    if let Some(values) = &tile.base {
        let bytes = values.run(start, count).bytes;
        with_format!(values.float, half, format => widen(format, bytes, base));
    }
    for (n, (values, weight)) in tile.terms.iter().enumerate() {
        let (bytes, weight) = (values.run(start, count).bytes, single(*weight));
        with_format!(values.float, half, format => widen(format, bytes, wide));
        if DELTAS {
            each(wide, base, |x, base| x - base);
        }
        if n == 0 {
            each(sum, wide, |_, x| weight * x);
        } else {
            each(sum, wide, |sum, x| sum + weight * x);
        }
    }
    if tile.base.is_some() {
        each(sum, base, |sum, base| base + lambda * sum);
    } else {
        each(sum, wide, |sum, _| lambda * sum);
    }
    with_format!(tile.float, half, format => round(format, sum, out))
}

/// Not part of the fast loops: blocks with a NaN or an infinity are rare.
fn count_special<F: Format>(
    format: F,
    tile: &Checked<'_>,
    start: usize,
    out: &[u8],
    health: &mut Health,
) {
    for (i, bits) in F::split(out).iter().enumerate() {
        if format.is_special(*bits) {
            tile.count(health, start + i, format.widen(*bits).is_nan());
        }
    }
}

#[inline(always)]
fn widen<F: Format>(format: F, bytes: &[u8], wide: &mut [f32]) {
    format.widen_all(F::split(bytes), wide);
}

#[inline(always)]
fn round<F: Format>(format: F, values: &[f32], out: &mut [u8]) -> bool {
    format.round_all(values, F::split_mut(out))
}

#[inline(always)]
fn each(sum: &mut [f32], wide: &[f32], update: impl Fn(f32, f32) -> f32) {
    for (sum, x) in sum.iter_mut().zip(wide) {
        *sum = update(*sum, *x);
    }
}
