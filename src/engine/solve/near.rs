//! Thresholds by one look at a part, if a sample has told about where they lie. If it has misled, the histograms find them.

use std::ops::Range;

use super::look::{Found, Known, Local};
use super::order::{Rank, Slot, Tie};
use super::scores::{HostValues, Score};
use crate::engine::bracket::{Bracket, Tally};
use crate::engine::device::Edge;
use crate::engine::tile::{Filler, Scratch};
use crate::error::Result;
use crate::plan::Blend;

/// A threshold and the bracket that it is believed to be in.
pub(super) struct Gauge {
    slot: Slot,
    score: Score,
    rank: Rank,
    bracket: Bracket,
}

impl Gauge {
    pub(super) const fn new(slot: Slot, score: Score, rank: Rank, bracket: Bracket) -> Self {
        Self { slot, score, rank, bracket }
    }

    /// How many there are of a score in each run, if that was noted.
    fn noted(&self, key: u32, counts: &[u32]) -> Option<u64> {
        let place = self.bracket.noted.iter().position(|noted| *noted == key)?;
        counts.get(place).copied().map(u64::from)
    }
}

/// Enters the thresholds. Gives those that equal scores lie on both sides of, with their gauges; `None` if one was not in its bracket.
pub(super) fn decided<'g>(
    gauges: &'g [Gauge],
    found: &Found,
    known: &mut Known,
    elements: u64,
) -> Option<Vec<(Tie, &'g Gauge, usize)>> {
    let mut ties = Vec::new();
    for (of, gauge) in gauges.iter().enumerate() {
        let rank = gauge.rank.of(elements - found.zeros.get(of)?);
        // Nothing is inside: that is what is taken if nothing else is known.
        if rank == 0 {
            continue;
        }
        let (key, inside, equal) = found.tallies.get(of)?.locate(rank)?;
        if inside == equal || gauge.slot.takes_equal() {
            gauge.slot.set(known, Edge { magnitude: key, end: u64::MAX });
        } else {
            ties.push((Tie::new(gauge.slot, gauge.score, key, inside), gauge, of));
        }
    }
    Some(ties)
}

/// The run in which a tie is decided, as [`Tie::place_in`] has it.
pub(super) fn place_of(
    (tie, gauge, of): &(Tie, &Gauge, usize),
    found: &Found,
    elements: u64,
) -> Option<(Range<u64>, u64)> {
    let count = |notes: &Vec<Vec<u32>>| gauge.noted(tie.key(), notes.get(*of)?);
    tie.place_in(&found.notes, count, elements)
}

impl Filler<'_> {
    /// Counts a run's scores to their brackets. Gives for each gauge how many there were of those that are noted.
    pub(super) fn count_near(
        &self,
        gauges: &[Gauge],
        known: &Known,
        blend: &Blend,
        run: &Range<u64>,
        local: &mut Local,
        scratch: &mut Scratch,
    ) -> Result<Vec<Vec<u32>>> {
        if local.tallies.is_empty() {
            local.tallies = gauges.iter().map(|gauge| Tally::new(&gauge.bracket)).collect();
            local.zeros = vec![0; gauges.len()];
        }
        let before: Vec<Vec<u32>> = local.tallies.iter().map(Tally::noted).collect();
        for piece in self.in_cache(blend, run)? {
            self.count_magnitudes(gauges, blend, &piece, &mut local.tallies, scratch)?;
        }
        let counting = gauges.iter().zip(&mut local.tallies).zip(&mut local.zeros);
        for ((gauge, tally), zeros) in
            counting.filter(|((gauge, _), _)| !gauge.score.is_magnitude())
        {
            self.keys(gauge.score, known, blend, run, &mut scratch.operands, &mut |_, keys| {
                *zeros += keys.iter().filter(|key| **key == 0).count() as u64;
                tally.count(keys);
            })?;
        }
        let counts = local.tallies.iter().map(Tally::noted).zip(before);
        let since = |(now, before): (Vec<u32>, Vec<u32>)| {
            now.iter().zip(before).map(|(now, before)| now.wrapping_sub(before)).collect()
        };
        Ok(counts.map(since).collect())
    }

    fn count_magnitudes(
        &self,
        gauges: &[Gauge],
        blend: &Blend,
        run: &Range<u64>,
        tallies: &mut [Tally],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let term = |gauge: &Gauge| match gauge.score {
            Score::Magnitude(term) => Some(term),
            _ => None,
        };
        let asked = gauges.iter().zip(tallies).filter_map(|(g, tally)| Some((term(g)?, tally)));
        let mut asked: Vec<(usize, &mut Tally)> = asked.collect();
        if asked.is_empty() {
            return Ok(());
        }
        let tiles = self.operands(blend, run, &self.host, &mut scratch.operands)?;
        let values = HostValues::new(blend, &tiles)?;
        if !values.double {
            self.host.tally(values.base.as_ref(), &values.terms, &mut asked);
            return Ok(());
        }
        for (term, tally) in asked {
            self.magnitudes(&values, term, &mut |_, keys| tally.count(keys));
        }
        Ok(())
    }
}
