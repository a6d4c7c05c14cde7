//! What is kept of a part, found before any of its elements is computed: a bit for each element, and factors.

use super::grid::Grid;
use super::order::{self, Keyed};
use super::sum::sum;
use super::twister::Twister;
use crate::error::{Error, Result};
use crate::plan::Keep;

/// Where a term counts, and as what.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// A bit for each element of the part, if it is not kept everywhere.
    pub(super) bits: Option<Bits>,
    /// What kept values are multiplied by, if by anything.
    pub(super) scale: Option<f64>,
    /// What values are multiplied by that are kept alone.
    pub(super) alone: f64,
}

/// A bit for each element.
#[derive(Debug)]
pub(super) struct Bits(Vec<u8>);

impl Bits {
    fn none(count: usize) -> Self {
        Self(vec![0; count.div_ceil(8)])
    }

    fn set(&mut self, i: usize) {
        self.0[i / 8] |= 1 << (i % 8);
    }

    pub(super) fn get(&self, i: usize) -> bool {
        self.0[i / 8] >> (i % 8) & 1 == 1
    }
}

/// Elements that are drawn for without asking whether to go on.
const MANY: usize = 1 << 22;

fn go_on(stop: &dyn Fn() -> bool) -> Result<()> {
    if stop() { Err(Error::Interrupted { resumable: true }) } else { Ok(()) }
}

/// The first `count` of an order, after `skip`. Magnitudes are f32, whatever the differences are in.
#[expect(clippy::cast_possible_truncation, reason = "numbers of elements were checked to fit")]
pub(super) fn largest(
    values: &[f32],
    skip: usize,
    count: usize,
    ascending: bool,
    stop: &dyn Fn() -> bool,
) -> Result<Bits> {
    let mut bits = Bits::none(values.len());
    if count == 0 {
        return Ok(bits);
    }
    let mut items: Vec<Keyed<f32>> =
        values.iter().enumerate().map(|(i, value)| (value.abs(), i as u32)).collect();
    order::sort(&mut items, !ascending, stop);
    go_on(stop)?;
    let first = if ascending { values.len() - skip - count } else { skip };
    for (_, i) in &items[first..first + count] {
        bits.set(*i as usize);
    }
    Ok(bits)
}

/// Elements whose number is below the probability.
pub(super) fn random(
    count: usize,
    grid: Grid,
    probability: f64,
    stream: &mut Twister,
    stop: &dyn Fn() -> bool,
) -> Result<Bits> {
    let mut bits = Bits::none(count);
    let below = grid.round(probability);
    for i in 0..count {
        if i % MANY == 0 {
            go_on(stop)?;
        }
        if stream.uniform() < below {
            bits.set(i);
        }
    }
    Ok(bits)
}

/// Elements whose number is below a probability that rises with their rank within a row.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "columns were checked to fit 32 bits"
)]
pub(super) fn ranked(
    values: &[f32],
    columns: usize,
    grid: Grid,
    (low, high): (f64, f64),
    stream: &mut Twister,
    stop: &dyn Fn() -> bool,
) -> Result<Bits> {
    let mut bits = Bits::none(values.len());
    // PyTorch rounds a number that is added to a tensor to its dtype, and one that it is multiplied with to f32.
    let (first, half) = (grid.round(low), grid.wide().round((high - low) / 2.0));
    // Ranks count from 1, and are themselves rounded.
    let rank = |place: usize| grid.round(grid.round(place as f64) + 1.0);
    let range = grid.round(rank(columns - 1) - rank(0));
    let mut ranks = vec![0; columns];
    for (number, row) in values.chunks_exact(columns).enumerate() {
        let mut items: Vec<Keyed<f32>> =
            row.iter().enumerate().map(|(i, value)| (value.abs(), i as u32)).collect();
        order::sort(&mut items, false, stop);
        go_on(stop)?;
        for (place, (_, i)) in items.iter().enumerate() {
            ranks[*i as usize] = place;
        }
        for (i, place) in ranks.iter().enumerate() {
            let share = grid.round(grid.round(rank(*place) - rank(0)) / range).clamp(0.0, 1.0);
            let risen = grid.round(grid.round(share * 2.0) * half);
            if stream.uniform() < grid.round(first + risen) {
                bits.set(number * columns + i);
            }
        }
    }
    Ok(bits)
}

/// The factor that gives what is kept the L1 norm of the whole; none if there is too little of either.
pub(super) fn scale(values: &[f32], bits: &Bits, grid: Grid) -> Option<f64> {
    let magnitude = |i: usize| f64::from(values[i]).abs();
    // Not just zero: of a NaN or an infinity that is not kept, a NaN is left.
    let kept = |i: usize| if bits.get(i) { magnitude(i) } else { magnitude(i) * 0.0 };
    let before = grid.round(sum(grid, values.len(), magnitude));
    let after = grid.round(sum(grid, values.len(), kept));
    let least = grid.round(1e-7);
    (!(before < least || after < least)).then(|| grid.round(before / after))
}

/// Whether it has to be found where a term counts.
pub(super) fn is_found(keep: Keep) -> bool {
    matches!(keep, Keep::Largest { .. } | Keep::Random { .. } | Keep::Ranked { .. })
}
