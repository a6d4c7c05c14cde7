//! Thresholds by one look at a part, if a sample has told about where they lie. If it has misled, the histograms find them.

use std::ops::Range;

use super::look::{Found, Known, Local, Look};
use super::order::{Quest, Rank, Slot, Tie};
use super::sample::{Outcome, judge};
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
        let place = self.bracket.noted().iter().position(|noted| *noted == key)?;
        counts.get(place).copied().map(u64::from)
    }
}

/// Enters the thresholds. Gives those that equal scores lie on both sides of, with their gauges; `None` if one was not in its bracket.
fn decided<'g>(
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
fn place_of(
    (tie, gauge, of): &(Tie, &Gauge, usize),
    found: &Found,
    elements: u64,
) -> Option<(Range<u64>, u64)> {
    let count = |notes: &Vec<Vec<u32>>| gauge.noted(tie.key(), notes.get(*of)?);
    tie.place_in(&found.notes, count, elements)
}

impl Filler<'_> {
    /// The look that follows a sample; `None` if the thresholds are known.
    pub(super) fn after_sample(
        &self,
        quests: &[Quest],
        found: &Found,
        known: &mut Known,
        blend: &Blend,
    ) -> Result<Option<Look>> {
        Ok(match judge(quests, found, known, blend.elements())? {
            Outcome::Known => None,
            // Other devices have faster histograms.
            Outcome::Near(gauges) if self.device.as_simd().is_some() => {
                Some(Look::Near(gauges, quests.to_vec()))
            }
            _ => Some(Look::High(quests.to_vec())),
        })
    }

    /// The look that follows the counts; `None` if the thresholds are known.
    pub(super) fn after_near(
        &self,
        (gauges, quests): (&[Gauge], &[Quest]),
        found: &Found,
        known: &mut Known,
        blend: &Blend,
        scratch: &mut Scratch,
    ) -> Result<Option<Look>> {
        let elements = blend.elements();
        let Some(decided) = decided(gauges, found, known, elements) else {
            return Ok(Some(Look::High(quests.to_vec())));
        };
        let mut ties = Vec::new();
        for tied in decided {
            match place_of(&tied, found, elements) {
                Some(place) => self.found_tie(&tied.0, place, known, blend, scratch)?,
                None => ties.push(tied.0),
            }
        }
        Ok((!ties.is_empty()).then_some(Look::Ties(ties)))
    }

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

#[cfg(test)]
mod tests {
    use super::super::order::Wanted;
    use super::super::sample::{piece_of, run_of};
    use super::*;
    use crate::engine::random;

    const SLOT: Slot = Slot::Edge { term: 0, high: false };

    /// How a threshold was found.
    #[derive(Debug, PartialEq)]
    enum How {
        BySample,
        InBracket,
        /// The histograms have to find it: what the sample says is too wide, or wrong.
        Unclear,
        Misled,
    }

    /// The runs of a look.
    fn runs(elements: u64, run: u64) -> impl Iterator<Item = Range<u64>> {
        (0..elements).step_by(at(run)).map(move |start| start..elements.min(start + run))
    }

    fn at(n: u64) -> usize {
        usize::try_from(n).unwrap()
    }

    fn part<'a>(scores: &'a [u32], run: &Range<u64>) -> &'a [u32] {
        &scores[at(run.start)..at(run.end)]
    }

    fn found(scores: &[u32], rank: u64) -> (How, Edge) {
        let elements = scores.len() as u64;
        let wanted = vec![Wanted::new(SLOT, Rank::Known(rank))];
        let quest = Quest { score: Score::Magnitude(0), wanted, bins: Vec::new() };
        let mut known = Known { edges: vec![[Edge::NONE; 2]], ..Known::default() };
        let mut found = Found::default();
        for run in runs(elements, run_of(elements)) {
            let piece = part(scores, &piece_of(&run, elements)).to_vec();
            found.samples.insert(run.start, vec![piece]);
        }
        let gauges = match judge(&[quest], &found, &mut known, elements).unwrap() {
            Outcome::Known => return (How::BySample, known.edges[0][0]),
            Outcome::Unclear => return (How::Unclear, Edge::NONE),
            Outcome::Near(gauges) => gauges,
        };
        let mut tally = Tally::new(&gauges[0].bracket);
        for run in runs(elements, 9 << 12) {
            let before = tally.noted();
            // What is not a number comes with any bits that say so.
            let scores = part(scores, &run).iter().zip(0_u32..);
            let raw = scores.map(|(x, i)| if *x > 0x7f80_0000 { 0x7f80_0001 + i % 99 } else { *x });
            tally.count(&raw.collect::<Vec<u32>>());
            let since =
                tally.noted().iter().zip(before).map(|(now, before)| now - before).collect();
            found.notes.insert(run.start, vec![since]);
        }
        (found.tallies, found.zeros) = (vec![tally], vec![0]);
        let Some(ties) = decided(&gauges, &found, &mut known, elements) else {
            return (How::Misled, Edge::NONE);
        };
        for tied in ties {
            // Those that are not noted are looked for in one more look.
            let (run, inside) =
                place_of(&tied, &found, elements).unwrap_or((0..elements, tied.0.inside()));
            let equal = (run.start..).zip(part(scores, &run)).filter(|(_, x)| **x == tied.0.key());
            let (last, _) = equal.clone().nth(at(inside - 1)).unwrap();
            SLOT.set(&mut known, Edge { magnitude: tied.0.key(), end: last + 1 });
        }
        (How::InBracket, known.edges[0][0])
    }

    /// By a sort of all scores.
    fn sorted(scores: &[u32], rank: u64) -> Edge {
        let mut order: Vec<(u32, u64)> = scores.iter().copied().zip(0..).collect();
        order.sort_unstable_by_key(|(score, number)| (u32::MAX - score, *number));
        let (magnitude, last) = order[at(rank - 1)];
        let all = order.get(at(rank)).is_none_or(|(score, _)| *score != magnitude);
        Edge { magnitude, end: if all { u64::MAX } else { last + 1 } }
    }

    /// Magnitudes that are as many as numbers of a bell curve, of so many bits.
    fn bell(seed: u64, bits: u32) -> impl Fn(u64) -> u32 {
        move |number| {
            let word = |k| f64::from(random::word(seed + k, number)) / 4_294_967_296.0 - 0.5;
            let sum: f64 = (0..6).map(word).sum();
            #[expect(clippy::cast_possible_truncation, reason = "a test")]
            let magnitude = (sum as f32 * 0.01).abs().to_bits();
            magnitude >> (23 - bits) << (23 - bits)
        }
    }

    #[test]
    fn thresholds_are_those_of_a_sort() {
        let few = |number: u64| u32::try_from(number * number % 5).unwrap() << 23;
        let rough = bell(3, 4);
        let odd = |number: u64| match random::word(1, number) % 8 {
            0 => 0x7fc0_0000,
            1 | 2 => 0x7f80_0000,
            3 | 4 => 0,
            n => n,
        };
        let kinds: [(&str, &dyn Fn(u64) -> u32); 9] = [
            ("equal", &|_| 77),
            ("zero", &|_| 0),
            ("two", &|number| if number % 3 == 0 { 1 << 20 } else { 5 << 20 }),
            ("few", &few),
            ("rising", &|number| 0x3c00_0000 + u32::try_from(number).unwrap()),
            ("falling", &|number| 0x3c00_0000 - 7 * u32::try_from(number).unwrap()),
            ("bell", &bell(9, 23)),
            ("rough bell", &rough),
            ("not finite", &odd),
        ];
        for elements in [1, 2, 100, 65_536, 65_537, 150_000] {
            for (kind, score) in kinds {
                let scores: Vec<u32> = (0..elements).map(score).collect();
                let shares = [1, 3, 10, 31, 50, 75, 90, 99].map(|share| elements * share / 100);
                for rank in shares.into_iter().chain([1, 2, elements - 1, elements]) {
                    if !(1..=elements).contains(&rank) {
                        continue;
                    }
                    let (how, edge) = found(&scores, rank);
                    if how != How::Unclear && how != How::Misled {
                        assert_eq!(edge, sorted(&scores, rank), "{rank} of {elements}: {kind}");
                    }
                    let simple = elements <= 65_536 || !["falling", "not finite"].contains(&kind);
                    if simple && rank == elements / 2 {
                        let expected = [How::BySample, How::InBracket];
                        assert_eq!(
                            how,
                            expected[usize::from(elements > 65_536)],
                            "{elements}: {kind}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_sample_that_misleads_is_found_out() {
        let elements = 300_000;
        let mut sampled = vec![false; at(elements)];
        for run in runs(elements, run_of(elements)) {
            let piece = piece_of(&run, elements);
            sampled[at(piece.start)..at(piece.end)].fill(true);
        }
        let score = bell(5, 23);
        for shift in [-1, 1] {
            let hidden = |number: u64| {
                let there = !sampled[at(number)] && number.is_multiple_of(7);
                if there { if shift > 0 { 0x7f00_0000 } else { 1 } } else { score(number) }
            };
            let scores: Vec<u32> = (0..elements).map(hidden).collect();
            for rank in [elements / 4, elements / 2] {
                assert_eq!(found(&scores, rank).0, How::Misled, "{shift} {rank}");
            }
        }
    }
}
