//! The loops behind sums and histograms of values, f64 excepted: it is left to the reference.
//!
//! A leaf is 16 rows of 256 lanes. A strip of 64 lanes is a block of all terms, which stays in the L1 cache as f64;
//! within it, 16 lanes at a time are added up in registers.

#![expect(
    clippy::inline_always,
    reason = "the loops are compiled for an instruction set by being inlined where it is enabled"
)]

use std::ops::Range;

use super::format::{BF16, E4M3, E4M3Fnuz, E5M2, E5M2Fnuz, F32, Format, with_format};
use super::level::Job;
use super::rules::{Place, SMALL, kept_values};
use super::{BLOCK, widen};
use crate::engine::device::Values;
use crate::engine::float::Float;
use crate::engine::sweep::{Checked, Digit, LANES, LEAF, LOW_BITS, canonical, magnitude, sums_of};

/// Elements that each lane adds up.
const ROWS: usize = LEAF / LANES;

/// Lanes of a block.
const STRIP: usize = BLOCK / ROWS;

/// Lanes that are added up at a time.
const GROUP: usize = 16;
const GROUPS: usize = STRIP / GROUP;

/// The lanes of a leaf, strip by strip.
type Lanes = [[[f64; GROUP]; GROUPS]; LANES / STRIP];

/// Sums of a tile of f32 values.
pub(super) struct Sums<'a> {
    pub(super) tile: &'a Checked<'a>,
    pub(super) sums: &'a mut [f64],
}

impl Job for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<H: Format<Bits = [u8; 2]>>(self, half: H) {
        let tile = self.tile;
        let terms = tile.terms.len();
        let mut lanes: Vec<Lanes> = vec![[[[0.0; GROUP]; GROUPS]; LANES / STRIP]; sums_of(terms)];
        let mut values = Strip::new(terms);
        let mut kept = Kept { base: [0.0; SMALL], terms: Vec::new() };
        if !tile.masks.is_empty() {
            kept.terms = vec![[0.0; LEAF]; terms];
        }
        for (leaf, sums) in self.sums.chunks_exact_mut(lanes.len()).enumerate() {
            let start = leaf * LEAF;
            let count = LEAF.min(tile.elements - start);
            if !tile.masks.is_empty() {
                kept.read(half, tile, start, count);
            }
            for strip in 0..LANES / STRIP {
                if tile.masks.is_empty() {
                    values.read(half, tile, start..start + count, strip * STRIP);
                } else {
                    values.take(&kept.terms, strip * STRIP);
                }
                let values = values.terms.as_slice();
                let mut lanes = lanes.iter_mut().map(|lanes| &mut lanes[strip]);
                for (x, lanes) in values.iter().zip(lanes.by_ref().take(terms)) {
                    if tile.want.magnitudes() {
                        add_up(lanes, x, x, |x, _| x.abs());
                    }
                }
                if tile.want.products() {
                    for (i, x) in values.iter().enumerate() {
                        for (y, lanes) in values[i..].iter().zip(&mut lanes) {
                            add_up(lanes, x, y, |x, y| x * y);
                        }
                    }
                }
            }
            let wanted = [(terms, tile.want.magnitudes()), (usize::MAX, tile.want.products())];
            let wanted = wanted.into_iter().flat_map(|(n, wanted)| std::iter::repeat_n(wanted, n));
            for ((sum, lanes), wanted) in sums.iter_mut().zip(&mut lanes).zip(wanted) {
                if !wanted {
                    *sum = 0.0;
                    continue;
                }
                *sum = tree(lanes.as_flattened_mut().as_flattened_mut());
            }
        }
    }
}

/// The values of a strip: row after row, of every term.
struct Strip {
    base: [f32; BLOCK],
    wide: [f32; BLOCK],
    terms: Vec<[f64; BLOCK]>,
}

impl Strip {
    fn new(terms: usize) -> Self {
        Self { base: [0.0; BLOCK], wide: [0.0; BLOCK], terms: vec![[0.0; BLOCK]; terms] }
    }

    /// Reads the strip that begins at lane `first` of the leaf that has these elements. Missing ones become zeros,
    /// which change no sum.
    #[inline(always)]
    fn read<H: Format<Bits = [u8; 2]>>(
        &mut self,
        half: H,
        tile: &Checked<'_>,
        leaf: Range<usize>,
        first: usize,
    ) {
        let Self { base, wide, terms } = self;
        if let Some(operand) = &tile.base {
            let bytes = operand.run(leaf.start, leaf.len()).bytes;
            with_format!(operand.float, half, format => widen_strip(format, bytes, first, base));
        }
        for (operand, values) in tile.terms.iter().zip(terms) {
            let bytes = operand.run(leaf.start, leaf.len()).bytes;
            with_format!(operand.float, half, format => widen_strip(format, bytes, first, wide));
            if tile.base.is_some() {
                for (value, (x, base)) in values.iter_mut().zip(wide.iter().zip(base.iter())) {
                    *value = f64::from(x - base);
                }
            } else {
                for (value, x) in values.iter_mut().zip(wide.iter()) {
                    *value = f64::from(*x);
                }
            }
        }
    }
}

/// The values of a leaf that are kept, and zeros.
struct Kept {
    base: [f32; SMALL],
    terms: Vec<[f32; LEAF]>,
}

impl Kept {
    #[inline(always)]
    fn read<H: Format<Bits = [u8; 2]>>(
        &mut self,
        half: H,
        tile: &Checked<'_>,
        leaf: usize,
        elements: usize,
    ) {
        for first in (0..LEAF).step_by(SMALL) {
            let count = SMALL.min(elements.saturating_sub(first));
            let start = leaf + first.min(elements);
            if let Some(operand) = &tile.base {
                let bytes = operand.run(start, count).bytes;
                with_format!(operand.float, half, format => widen(format, bytes, &mut self.base));
            }
            let at = Place { start, count, number: tile.first + start as u64 };
            let minus = tile.base.map(|_| &self.base);
            for ((operand, mask), values) in tile.terms.iter().zip(tile.masks).zip(&mut self.terms)
            {
                let Some(values) = values[first..].first_chunk_mut::<SMALL>() else { continue };
                if count > 0 {
                    kept_values(half, operand, minus, *mask, at, values);
                }
                values[count..].fill(0.0);
            }
        }
    }
}

impl Strip {
    /// Takes the strip that begins at lane `first` of a leaf.
    #[inline(always)]
    fn take(&mut self, leaves: &[[f32; LEAF]], first: usize) {
        for (leaf, values) in leaves.iter().zip(&mut self.terms) {
            for (row, values) in values.as_chunks_mut::<STRIP>().0.iter_mut().enumerate() {
                let from = &leaf[row * LANES + first..][..STRIP];
                for (value, x) in values.iter_mut().zip(from) {
                    *value = f64::from(*x);
                }
            }
        }
    }
}

#[inline(always)]
fn widen_strip<F: Format>(format: F, leaf: &[u8], first: usize, wide: &mut [f32; BLOCK]) {
    let leaf = F::split(leaf);
    for (row, wide) in wide.as_chunks_mut::<STRIP>().0.iter_mut().enumerate() {
        let start = row * LANES + first;
        let from = &leaf[start.min(leaf.len())..(start + STRIP).min(leaf.len())];
        if let Some(from) = from.first_chunk::<STRIP>() {
            format.widen_all(from, wide);
        } else {
            format.widen_all(from, wide);
            wide[from.len()..].fill(0.0);
        }
    }
}

/// The sums of a strip's lanes.
#[inline(always)]
fn add_up(
    lanes: &mut [[f64; GROUP]; GROUPS],
    x: &[f64; BLOCK],
    y: &[f64; BLOCK],
    value: impl Fn(f64, f64) -> f64,
) {
    let x = x.as_chunks::<GROUP>().0.as_chunks::<GROUPS>().0;
    let y = y.as_chunks::<GROUP>().0.as_chunks::<GROUPS>().0;
    for (group, lanes) in lanes.iter_mut().enumerate() {
        let mut sums = [0.0; GROUP];
        for (x, y) in x.iter().zip(y) {
            let (x, y) = (&x[group], &y[group]);
            for lane in 0..GROUP {
                sums[lane] += value(x[lane], y[lane]);
            }
        }
        *lanes = sums;
    }
}

/// Halves onto each other until one is left.
#[inline(always)]
fn tree(lanes: &mut [f64]) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        let (lower, upper) = lanes.split_at_mut(half);
        for (lower, upper) in lower.iter_mut().zip(upper) {
            *lower += *upper;
        }
        half /= 2;
    }
    canonical(lanes[0])
}

/// Values of f32 arithmetic, widened.
pub(super) struct Wide<'a> {
    pub(super) base: Option<&'a Values<'a>>,
    pub(super) term: &'a Values<'a>,
    pub(super) out: &'a mut [f64],
}

impl Job for Wide<'_> {
    type Output = ();

    #[inline(always)]
    fn run<H: Format<Bits = [u8; 2]>>(self, half: H) {
        let (mut base, mut wide) = ([0.0; BLOCK], [0.0; BLOCK]);
        for (block, out) in self.out.chunks_mut(BLOCK).enumerate() {
            let (start, count) = (block * BLOCK, out.len());
            let bytes = self.term.run(start, count).bytes;
            with_format!(self.term.float, half, format => widen(format, bytes, &mut wide[..count]));
            if let Some(operand) = self.base {
                let bytes = operand.run(start, count).bytes;
                with_format!(operand.float, half, format => widen(format, bytes, &mut base[..count]));
                for (x, base) in wide[..count].iter_mut().zip(&base) {
                    *x -= *base;
                }
            }
            for (out, x) in out.iter_mut().zip(&wide) {
                *out = f64::from(*x);
            }
        }
    }
}

/// Counts values of f32 arithmetic that have a magnitude.
pub(super) struct Equal<'a> {
    pub(super) base: Option<&'a Values<'a>>,
    pub(super) term: &'a Values<'a>,
    pub(super) magnitude: u32,
}

impl Job for Equal<'_> {
    type Output = u64;

    #[inline(always)]
    fn run<H: Format<Bits = [u8; 2]>>(self, half: H) -> u64 {
        let (mut base, mut wide) = ([0.0; BLOCK], [0.0; BLOCK]);
        let elements = self.term.bytes.len() / self.term.float.size();
        let mut equal = 0;
        for start in (0..elements).step_by(BLOCK) {
            let count = BLOCK.min(elements - start);
            let wide = &mut wide[..count];
            let bytes = self.term.run(start, count).bytes;
            with_format!(self.term.float, half, format => widen(format, bytes, wide));
            if let Some(operand) = self.base {
                let base = &mut base[..count];
                let bytes = operand.run(start, count).bytes;
                with_format!(operand.float, half, format => widen(format, bytes, base));
                for (x, base) in wide.iter_mut().zip(base) {
                    *x -= *base;
                }
            }
            // At most a block's length; a check for overflow would keep the loop scalar.
            let mut here = 0_u32;
            for x in wide {
                here = here.wrapping_add(u32::from(magnitude(*x) == self.magnitude));
            }
            equal += u64::from(here);
        }
        equal
    }
}

/// Counts of a tile of f32 values.
pub(super) struct Histogram<'a> {
    pub(super) tile: &'a Checked<'a>,
    pub(super) digit: Digit,
    pub(super) counts: &'a mut [u64],
}

impl Job for Histogram<'_> {
    type Output = ();

    #[inline(always)]
    fn run<H: Format<Bits = [u8; 2]>>(self, half: H) {
        let tile = self.tile;
        let (mut base, mut wide) = ([0.0; BLOCK], [0.0; BLOCK]);
        let mut magnitudes = [0; BLOCK];
        let mut others = vec![0; if self.digit == Digit::High { Digit::High.bins() } else { 0 }];
        for start in (0..tile.elements).step_by(BLOCK) {
            let count = BLOCK.min(tile.elements - start);
            let (wide, magnitudes) = (&mut wide[..count], &mut magnitudes[..count]);
            let [term] = tile.terms.as_slice() else { return };
            let bytes = term.run(start, count).bytes;
            with_format!(term.float, half, format => widen(format, bytes, wide));
            if let Some(operand) = &tile.base {
                let base = &mut base[..count];
                let bytes = operand.run(start, count).bytes;
                with_format!(operand.float, half, format => widen(format, bytes, base));
                for (x, base) in wide.iter_mut().zip(base) {
                    *x -= *base;
                }
            }
            for (magnitude, x) in magnitudes.iter_mut().zip(wide) {
                *magnitude = self::magnitude(*x);
            }
            match self.digit {
                Digit::High => count_high(magnitudes, self.counts, &mut others),
                Digit::Low(high) => count_low(magnitudes, high.into(), self.counts),
            }
        }
        for (count, other) in self.counts.iter_mut().zip(others) {
            *count += u64::from(other);
        }
    }
}

/// Every other element is counted apart: equal ones often follow each other, and each would wait for the one before.
#[inline(always)]
fn count_high(magnitudes: &[u32], counts: &mut [u64], others: &mut [u32]) {
    const BINS: usize = Digit::High.bins();
    let Some(counts) = counts.first_chunk_mut::<BINS>() else { return };
    let Some(others) = others.first_chunk_mut::<BINS>() else { return };
    let (pairs, rest) = magnitudes.as_chunks::<2>();
    for [first, second] in pairs {
        // There are fewer than 2^64 elements, and fewer than 2^32 in a tile.
        let count = &mut counts[(first >> LOW_BITS) as usize % BINS];
        *count = count.wrapping_add(1);
        let other = &mut others[(second >> LOW_BITS) as usize % BINS];
        *other = other.wrapping_add(1);
    }
    for magnitude in rest {
        counts[(magnitude >> LOW_BITS) as usize % BINS] += 1;
    }
}

/// Few elements have the digit that is looked for: most groups are passed over at once.
#[inline(always)]
fn count_low(magnitudes: &[u32], high: u32, counts: &mut [u64]) {
    const BINS: usize = Digit::Low(0).bins();
    let Some(counts) = counts.first_chunk_mut::<BINS>() else { return };
    for group in magnitudes.chunks(GROUP) {
        let mut any = false;
        for magnitude in group {
            any |= magnitude >> LOW_BITS == high;
        }
        if any {
            for magnitude in group {
                if magnitude >> LOW_BITS == high {
                    counts[*magnitude as usize % BINS] += 1;
                }
            }
        }
    }
}
