//! The device that is right by being plain: one element after the other, by the formula.

mod rules;

pub(super) use rules::is_inside;

use super::device::{BlendTile, Checked, Device, Health, Mask};
use super::sweep::{self, Digit, LANES, LEAF, SweepTile, sums_of};
use crate::error::Result;

/// The scalar device that every other is measured by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Device for Reference {
    fn name(&self) -> String {
        "reference".into()
    }

    fn blend(&self, tile: &BlendTile<'_>, out: &mut [u8]) -> Result<Health> {
        let tile = Checked::new(tile, out)?;
        Ok(blend(&tile, out))
    }

    fn sums(&self, tile: &SweepTile<'_>, sums: &mut [f64]) -> Result<()> {
        let tile = sweep::Checked::of_sums(tile, sums)?;
        self::sums(&tile, sums);
        Ok(())
    }

    fn histogram(&self, tile: &SweepTile<'_>, digit: Digit, counts: &mut [u64]) -> Result<()> {
        let tile = sweep::Checked::of_histogram(tile, digit, counts)?;
        histogram(&tile, digit, counts);
        Ok(())
    }
}

/// Computes a tile of any mix of dtypes.
pub(super) fn blend(tile: &Checked<'_>, out: &mut [u8]) -> Health {
    let mut health = Health::default();
    for (i, bytes) in out.chunks_exact_mut(tile.float.size()).enumerate() {
        let value = match (tile.rules, tile.is_double()) {
            (None, false) => in_f32(tile, i),
            (None, true) => in_f64(tile, i),
            (Some(rules), false) => rules::element::<f32>(tile, rules, i),
            (Some(rules), true) => rules::element::<f64>(tile, rules, i),
        };
        tile.float.write(value, bytes);
        let written = tile.float.read(bytes);
        if !written.is_finite() {
            tile.count(&mut health, i, written.is_nan());
        }
    }
    health
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "operands are at most f32 here; weights and lambda are rounded once, as the contract says"
)]
fn in_f32(tile: &Checked<'_>, i: usize) -> f64 {
    let product =
        |(values, weight): &(super::device::Values<'_>, f64)| *weight as f32 * values.at(i) as f32;
    // Not from zero: a sum of negative zeros is one.
    let mut products = tile.terms.iter().map(product);
    let first = products.next().unwrap_or_default();
    let sum = products.fold(first, |sum, x| sum + x);
    let scaled = tile.lambda as f32 * sum;
    f64::from(match &tile.base {
        Some(base) => base.at(i) as f32 + scaled,
        None => scaled,
    })
}

fn in_f64(tile: &Checked<'_>, i: usize) -> f64 {
    let mut products = tile.terms.iter().map(|(values, weight)| weight * values.at(i));
    let first = products.next().unwrap_or_default();
    let sum = products.fold(first, |sum, x| sum + x);
    let scaled = tile.lambda * sum;
    match &tile.base {
        Some(base) => base.at(i) + scaled,
        None => scaled,
    }
}

/// Adds up a tile of any mix of dtypes.
pub(super) fn sums(tile: &sweep::Checked<'_>, sums: &mut [f64]) {
    let terms = tile.terms.len();
    for (leaf, sums) in sums.chunks_exact_mut(sums_of(terms)).enumerate() {
        let elements = leaf * LEAF..tile.elements.min((leaf + 1) * LEAF);
        let values = |term| elements.clone().map(|i| kept(tile, term, i)).collect();
        let values: Vec<Vec<f64>> = (0..terms).map(values).collect();
        let magnitudes = values.iter().map(|x| add_up(x.iter().map(|x| x.abs())));
        let pairs =
            values.iter().enumerate().flat_map(|(i, x)| values[i..].iter().map(move |y| (x, y)));
        let products = pairs.map(|(x, y)| add_up(x.iter().zip(y).map(|(x, y)| x * y)));
        let wanted =
            [(terms, tile.want.magnitudes()), (sums_of(terms) - terms, tile.want.products())];
        let wanted = wanted.into_iter().flat_map(|(count, wanted)| vec![wanted; count]);
        for ((sum, found), wanted) in sums.iter_mut().zip(magnitudes.chain(products)).zip(wanted) {
            *sum = if wanted { found } else { 0.0 };
        }
    }
}

/// The sum of a leaf.
fn add_up(values: impl Iterator<Item = f64>) -> f64 {
    let mut lanes = [0.0; LANES];
    for (i, value) in values.enumerate() {
        lanes[i % LANES] += value;
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    sweep::canonical(lanes[0])
}

/// Counts a tile of one term.
#[expect(clippy::cast_possible_truncation, reason = "f64 is rounded to f32, as the contract says")]
pub(super) fn histogram(tile: &sweep::Checked<'_>, digit: Digit, counts: &mut [u64]) {
    for i in 0..tile.elements {
        let magnitude = sweep::magnitude(value(tile, 0, Mask::All, i) as f32);
        if let Some(bin) = digit.bin(magnitude) {
            counts[bin] += 1;
        }
    }
}

/// A term's value, zero where it is not kept.
fn kept(tile: &sweep::Checked<'_>, term: usize, i: usize) -> f64 {
    value(tile, term, tile.masks.get(term).copied().unwrap_or(Mask::All), i)
}

fn value(tile: &sweep::Checked<'_>, term: usize, mask: Mask<'_>, i: usize) -> f64 {
    let (values, base) = (&tile.terms[term], tile.base.as_ref());
    let value = if tile.is_double() {
        rules::value::<f64>(values, base, mask, tile.first, i)
    } else {
        rules::value::<f32>(values, base, mask, tile.first, i).map(f64::from)
    };
    value.unwrap_or(0.0)
}
