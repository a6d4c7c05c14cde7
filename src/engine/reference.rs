//! The device that is right by being plain: one element after the other, by the formula.

use super::device::{BlendTile, Checked, Device, Health};
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
}

/// Computes a tile of any mix of dtypes.
pub(super) fn blend(tile: &Checked<'_>, out: &mut [u8]) -> Health {
    let element = if tile.is_double() { in_f64 } else { in_f32 };
    let mut health = Health::default();
    for (i, bytes) in out.chunks_exact_mut(tile.float.size()).enumerate() {
        tile.float.write(element(tile, i), bytes);
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
