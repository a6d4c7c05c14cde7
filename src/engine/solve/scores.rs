//! Scores of elements, as numbers whose order is theirs: magnitudes, variances, importance. And masks that follow from them.

use std::cmp::Ordering;
use std::ops::Range;

use super::look::{Known, values_of};
use crate::engine::device::{Edge, Mask, Values};
use crate::engine::float::{Float, single};
use crate::engine::random;
use crate::engine::reference::is_inside;
use crate::engine::sweep::{LEAF, magnitude};
use crate::engine::tile::{Filler, Operands, index};
use crate::error::Result;
use crate::plan::{Blend, Keep};

/// What elements are put in order by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Score {
    /// Of a term's values.
    Magnitude(usize),
    /// Of all terms' values around their mean.
    Variance,
    /// Of a term's values.
    Importance(usize),
}

impl Score {
    /// Of the bits of a key, those that the second histogram counts.
    pub(super) const fn low_bits(self) -> u32 {
        match self {
            Self::Magnitude(_) | Self::Variance => 15,
            Self::Importance(_) => 16,
        }
    }

    pub(super) const fn is_magnitude(self) -> bool {
        matches!(self, Self::Magnitude(_))
    }
}

/// Takes scores of elements that follow one another, from a number on.
pub(super) type Take<'a> = &'a mut dyn FnMut(u64, &[u32]);

/// The values of a blend on the host.
pub(super) struct HostValues<'t> {
    pub(super) base: Option<Values<'t>>,
    pub(super) terms: Vec<Values<'t>>,
    pub(super) double: bool,
}

impl<'t> HostValues<'t> {
    pub(super) fn new(blend: &'t Blend, tiles: &'t [crate::format::Tile<'_>]) -> Result<Self> {
        let (base, terms) = values_of(blend, tiles);
        let base = base.as_ref().map(Values::new).transpose()?;
        let terms: Vec<_> = terms.iter().map(Values::new).collect::<Result<_>>()?;
        let double = base.iter().chain(&terms).any(|values| values.float == Float::F64);
        Ok(Self { base, terms, double })
    }
}

impl Filler<'_> {
    /// Hands the scores of a run to `take`, some thousand at a time.
    pub(super) fn keys(
        &self,
        score: Score,
        known: &Known,
        blend: &Blend,
        run: &Range<u64>,
        buffers: &mut Vec<Operands>,
        take: Take<'_>,
    ) -> Result<()> {
        let important = match score {
            Score::Importance(term) => match (blend.terms[term].keep, &known.divergences[term]) {
                (Keep::Important { columns }, Some(rows)) => Some((columns, rows.as_slice())),
                _ => None,
            },
            _ => None,
        };
        self.keys_of(score, important, blend, run, buffers, take)
    }

    pub(super) fn keys_of(
        &self,
        score: Score,
        important: Option<(u64, &[f64])>,
        blend: &Blend,
        run: &Range<u64>,
        buffers: &mut Vec<Operands>,
        take: Take<'_>,
    ) -> Result<()> {
        let tiles = self.operands(blend, run, &self.host, buffers)?;
        let values = HostValues::new(blend, &tiles)?;
        let elements = index(run.end - run.start);
        let mut wide = vec![vec![0.0; LEAF]; values.terms.len()];
        let mut keys = vec![0; LEAF];
        for start in (0..elements).step_by(LEAF) {
            let count = LEAF.min(elements - start);
            let keys = &mut keys[..count];
            let first = run.start + start as u64;
            match score {
                Score::Magnitude(term) => {
                    let wide = &mut wide[term][..count];
                    self.read(&values, term, start, wide);
                    for (key, value) in keys.iter_mut().zip(wide) {
                        *key = magnitude(single(*value));
                    }
                }
                Score::Variance => {
                    for (term, wide) in wide.iter_mut().enumerate() {
                        self.read(&values, term, start, &mut wide[..count]);
                    }
                    variances(&wide, keys);
                }
                Score::Importance(term) => {
                    let wide = &mut wide[term][..count];
                    self.read(&values, term, start, wide);
                    let (columns, rows) = important.unwrap_or((1, &[]));
                    let (mut row, mut column) = (index(first / columns), first % columns);
                    for (key, value) in keys.iter_mut().zip(wide) {
                        let divergence = rows.get(row).copied().unwrap_or(f64::NAN);
                        *key = key_of(single(value.abs() * divergence));
                        column += 1;
                        if column == columns {
                            (row, column) = (row + 1, 0);
                        }
                    }
                }
            }
            take(first, keys);
        }
        Ok(())
    }

    /// Numbers of elements of equal score, of a run, piece by piece.
    pub(super) fn equal(
        &self,
        (score, key): (Score, u32),
        known: &Known,
        blend: &Blend,
        run: &Range<u64>,
        piece: u64,
        buffers: &mut Vec<Operands>,
    ) -> Result<Vec<u64>> {
        let mut equal = vec![0; index((run.end - run.start).div_ceil(piece))];
        if let Score::Magnitude(term) = score {
            let tiles = self.operands(blend, run, &self.host, buffers)?;
            let values = HostValues::new(blend, &tiles)?;
            if !values.double {
                let size = index(run.end - run.start);
                for (start, equal) in (0..size).step_by(index(piece)).zip(&mut equal) {
                    let count = index(piece).min(size - start);
                    let base = values.base.map(|base| base.run(start, count));
                    let x = values.terms[term].run(start, count);
                    *equal = self.host.equal(base.as_ref(), &x, key);
                }
                return Ok(equal);
            }
        }
        self.keys(score, known, blend, run, buffers, &mut |first, keys| {
            for (number, found) in (first..).zip(keys) {
                equal[index((number - run.start) / piece)] += u64::from(*found == key);
            }
        })?;
        Ok(equal)
    }

    /// Hands the magnitudes of a term's values to `take`, some thousand at a time.
    pub(super) fn magnitudes(&self, values: &HostValues<'_>, term: usize, take: Take<'_>) {
        let x = values.terms[term];
        let elements = x.bytes.len() / x.float.size();
        let (mut wide, mut keys) = (vec![0.0; LEAF], vec![0; LEAF]);
        for start in (0..elements).step_by(LEAF) {
            let count = LEAF.min(elements - start);
            self.read(values, term, start, &mut wide[..count]);
            for (key, value) in keys.iter_mut().zip(&wide[..count]) {
                *key = magnitude(single(*value));
            }
            take(start as u64, &keys[..count]);
        }
    }

    /// Values of a term, widened.
    fn read(&self, values: &HostValues<'_>, term: usize, start: usize, out: &mut [f64]) {
        let x = values.terms[term].run(start, out.len());
        let base = values.base.map(|base| base.run(start, out.len()));
        if values.double {
            for (i, out) in out.iter_mut().enumerate() {
                *out = base.map_or(x.at(i), |base| x.at(i) - base.at(i));
            }
        } else {
            self.host.values(base.as_ref(), &x, out);
        }
    }

    /// Bits of the elements whose variance lies inside.
    pub(super) fn varied_bits(
        &self,
        blend: &Blend,
        edge: Edge,
        run: &Range<u64>,
        buffers: &mut Vec<Operands>,
    ) -> Result<Vec<u8>> {
        let mut bits = vec![0; index(run.end - run.start).div_ceil(8)];
        self.keys_of(Score::Variance, None, blend, run, buffers, &mut |first, keys| {
            for (number, key) in (first..).zip(keys) {
                put(&mut bits, number - run.start, is_inside(edge, *key, number));
            }
        })?;
        Ok(bits)
    }

    /// Bits of the elements whose importance is at least this. A NaN is kept, and nothing is less than a NaN.
    pub(super) fn important_bits(
        &self,
        blend: &Blend,
        term: usize,
        (columns, divergences, least): (u64, &[f64], f64),
        run: &Range<u64>,
        buffers: &mut Vec<Operands>,
    ) -> Result<Vec<u8>> {
        let mut bits = vec![0; index(run.end - run.start).div_ceil(8)];
        let rows = Some((columns, divergences));
        self.keys_of(Score::Importance(term), rows, blend, run, buffers, &mut |first, keys| {
            for (number, key) in (first..).zip(keys) {
                let order = f64::from(importance_of(*key)).partial_cmp(&least);
                put(&mut bits, number - run.start, order != Some(Ordering::Less));
            }
        })?;
        Ok(bits)
    }

    /// Where terms are kept alone, and where beside others: numbers of elements.
    pub(super) fn overlap(
        &self,
        blend: &Blend,
        masks: &[Mask<'_>],
        run: &Range<u64>,
        buffers: &mut Vec<Operands>,
    ) -> Result<Vec<[u64; 2]>> {
        let tiles = self.operands(blend, run, &self.host, buffers)?;
        let values = HostValues::new(blend, &tiles)?;
        let elements = index(run.end - run.start);
        let mut wide = vec![0.0; LEAF];
        let mut kept = vec![0_u64; LEAF];
        let mut counts = vec![[0; 2]; masks.len()];
        for start in (0..elements).step_by(LEAF) {
            let count = LEAF.min(elements - start);
            let (wide, kept) = (&mut wide[..count], &mut kept[..count]);
            kept.fill(0);
            for (term, mask) in masks.iter().enumerate() {
                if matches!(mask, Mask::Band { .. }) {
                    self.read(&values, term, start, wide);
                }
                for (i, (kept, value)) in kept.iter_mut().zip(&*wide).enumerate() {
                    let at = start + i;
                    let number = run.start + at as u64;
                    *kept |= u64::from(is_kept(*mask, *value, number, at)) << term;
                }
            }
            for kept in kept.iter() {
                let alone = usize::from(kept.count_ones() > 1);
                for (term, counts) in counts.iter_mut().enumerate() {
                    counts[alone] += kept >> term & 1;
                }
            }
        }
        Ok(counts)
    }
}

/// Whether a mask keeps a value: element `at` of the tile, `number` of the part.
fn is_kept(mask: Mask<'_>, value: f64, number: u64, at: usize) -> bool {
    match mask {
        Mask::All | Mask::Near(_) => true,
        Mask::Band { low, high } => {
            let magnitude = magnitude(single(value));
            is_inside(low, magnitude, number) && !is_inside(high, magnitude, number)
        }
        Mask::Random { seed, below } => u64::from(random::word(seed, number)) < below,
        Mask::Bits(bits) => bits[at / 8] >> (at % 8) & 1 == 1,
    }
}

/// Sets the bit of an element.
pub(super) fn put(bits: &mut [u8], at: u64, kept: bool) {
    bits[index(at / 8)] |= u8::from(kept) << (at % 8);
}

/// Magnitudes of the variances of the terms' values: equal values have none only if their sums are wider than they are.
fn variances(values: &[Vec<f64>], keys: &mut [u32]) {
    let count = number(values.len());
    let (mut mean, mut sum) = (vec![0.0; keys.len()], vec![0.0; keys.len()]);
    for values in values {
        for (mean, x) in mean.iter_mut().zip(values) {
            *mean += x;
        }
    }
    for mean in &mut mean {
        *mean /= count;
    }
    for values in values {
        for ((sum, mean), x) in sum.iter_mut().zip(&mean).zip(values) {
            *sum += (x - mean) * (x - mean);
        }
    }
    for (key, sum) in keys.iter_mut().zip(sum) {
        *key = magnitude(single(sum / count));
    }
}

/// A number whose order is that of the f32; a NaN is above all.
const fn key_of(value: f32) -> u32 {
    let bits = value.to_bits();
    if value.is_nan() {
        u32::MAX
    } else if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    }
}

/// The f32 of a key.
pub(super) const fn importance_of(key: u32) -> f32 {
    f32::from_bits(if key == u32::MAX {
        0x7fc0_0000
    } else if key >> 31 == 1 {
        key & 0x7fff_ffff
    } else {
        !key
    })
}

#[expect(clippy::cast_precision_loss, reason = "at most as many as a plan allows")]
const fn number(count: usize) -> f64 {
    count as f64
}
