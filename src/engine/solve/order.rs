//! Thresholds: which score is the k-th largest of a part, and how many of those that are equal to it are still inside.
//!
//! It takes no sort: one histogram of the upper half of all scores says in which bin the k-th is, another of the lower half
//! of that bin's which it is. Where some of the equal ones are inside and some are not, those that come first are: numbers of equal
//! ones by run say in which run the last of them lies, and that run is looked at once more.

use std::collections::BTreeMap;
use std::ops::Range;

use super::look::{Found, Known, Local, values_of};
use super::scores::Score;
use crate::engine::auto::Pick;
use crate::engine::device::{Device, Edge};
use crate::engine::sweep::{Digit, LEAF, Place, SweepTile, locate};
use crate::engine::tile::{Filler, Scratch, index};
use crate::error::{Error, Result};
use crate::plan::{Blend, Keep};

/// Thresholds of one score.
#[derive(Clone)]
pub(super) struct Quest {
    pub(super) score: Score,
    pub(super) wanted: Vec<Wanted>,
    /// The bins of the upper half in which they are.
    pub(super) bins: Vec<u16>,
}

/// One threshold.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) slot: Slot,
    /// It is so far from the largest, which is 1.
    pub(super) rank: Rank,
    /// Where the upper half says it is.
    place: Option<Place>,
}

#[derive(Clone, Copy)]
pub(super) enum Rank {
    Known(u64),
    /// This share of the scores that are not zero.
    OfNonZero(f64),
}

/// What a threshold is for.
#[derive(Clone, Copy)]
pub(super) enum Slot {
    /// The edge of a term's largest.
    Edge { term: usize, high: bool },
    /// The edge of what varies most.
    Varied,
    /// A quartile of a term's importance: 0, 1 or 2.
    Quartile { term: usize, which: usize },
}

impl Slot {
    /// Whether all that are equal to the threshold are inside.
    pub(super) const fn takes_equal(self) -> bool {
        matches!(self, Self::Quartile { .. })
    }
}

/// What a look saw in a run of one histogram's scores.
pub(super) enum Seen {
    /// So many that are equal to a threshold.
    Equal(u64),
    /// How many of each lower half: there are few of these.
    Few(Vec<(u16, u64)>),
    /// Too many to note.
    Many,
}

impl Seen {
    /// Most lower halves that are noted. Differences of bf16 values have no more, as a rule.
    const FEW: usize = 8;

    /// Adds up the histogram of a run, and notes what is in it.
    fn note(run: &[u64], counts: &mut [u64]) -> Self {
        let mut few = Vec::new();
        let mut many = false;
        for ((low, count), sum) in (0..=u16::MAX).zip(run).zip(counts) {
            if *count > 0 {
                *sum += count;
                many |= few.len() == Self::FEW;
                if !many {
                    few.push((low, *count));
                }
            }
        }
        if many { Self::Many } else { Self::Few(few) }
    }

    /// How many have this lower half.
    fn of(&self, low: u16) -> Option<u64> {
        match self {
            Self::Equal(count) => Some(*count),
            Self::Few(few) => {
                Some(few.iter().find(|(other, _)| *other == low).map_or(0, |(_, count)| *count))
            }
            Self::Many => None,
        }
    }
}

/// A threshold that equal scores lie on both sides of.
#[derive(Clone, Copy)]
pub(super) struct Tie {
    slot: Slot,
    score: Score,
    key: u32,
    /// So many of the equal ones are inside.
    inside: u64,
}

impl Quest {
    /// All that a blend needs.
    pub(super) fn all(blend: &Blend) -> Vec<Self> {
        let elements = blend.elements();
        let mut quests: Vec<Self> = Vec::new();
        let mut varied = false;
        for (i, term) in blend.terms.iter().enumerate() {
            let (score, wanted) = match term.keep {
                Keep::Largest { .. } => {
                    let ranks = term.keep.ranks(elements).unwrap_or_default();
                    let wanted = ranks
                        .into_iter()
                        .zip([false, true])
                        .filter(|(rank, _)| (1..elements).contains(rank));
                    let wanted = wanted.map(|(rank, high)| {
                        Wanted::new(Slot::Edge { term: i, high }, Rank::Known(rank))
                    });
                    (Score::Magnitude(i), wanted.collect())
                }
                Keep::Varied { share } if !varied => {
                    varied = true;
                    (Score::Variance, vec![Wanted::new(Slot::Varied, Rank::OfNonZero(share))])
                }
                Keep::Important { .. } => {
                    // The one at floor(q * (n - 1)) from the smallest.
                    let rank = |quarters: u64| {
                        let from_smallest = u128::from(elements - 1) * u128::from(quarters) / 4;
                        Rank::Known(elements - u64::try_from(from_smallest).unwrap_or(0))
                    };
                    let wanted = (0..3).zip(1..).map(|(which, quarters)| {
                        Wanted::new(Slot::Quartile { term: i, which }, rank(quarters))
                    });
                    (Score::Importance(i), wanted.collect())
                }
                _ => continue,
            };
            if !wanted.is_empty() {
                quests.push(Self { score, wanted, bins: Vec::new() });
            }
        }
        quests
    }

    /// What is left to be found once the histograms of the upper half are there.
    pub(super) fn narrowed(quests: &[Self], found: &Found) -> Result<Vec<Self>> {
        let mut narrowed = Vec::new();
        for ((quest, counts), zeros) in quests.iter().zip(&found.counts).zip(&found.zeros) {
            let total: u64 = counts.iter().sum();
            let mut wanted = Vec::new();
            for want in &quest.wanted {
                let rank = want.rank.of(total - zeros);
                // Nothing is inside: that is what is taken if nothing else is known.
                if rank > 0 {
                    let place = Some(locate(counts, rank).ok_or_else(lost)?);
                    wanted.push(Wanted { place, ..*want });
                }
            }
            let mut bins: Vec<u16> = wanted.iter().filter_map(|w| Some(w.place?.bin)).collect();
            bins.sort_unstable();
            bins.dedup();
            if !wanted.is_empty() {
                narrowed.push(Self { score: quest.score, wanted, bins });
            }
        }
        Ok(narrowed)
    }

    /// Enters the thresholds that are known once the histograms of the lower half are there. Gives those that equal scores lie on both
    /// sides of, and the histogram that counts them.
    pub(super) fn decided(
        quests: &[Self],
        found: &Found,
        known: &mut Known,
    ) -> Result<Vec<(Tie, usize)>> {
        let mut ties = Vec::new();
        let mut first = 0;
        for quest in quests {
            for want in &quest.wanted {
                let place = want.place.ok_or_else(lost)?;
                let bin = quest.bins.iter().position(|bin| *bin == place.bin).ok_or_else(lost)?;
                let counts = found.counts.get(first + bin).ok_or_else(lost)?;
                let low = locate(counts, place.rank).ok_or_else(lost)?;
                let key = u32::from(place.bin) << quest.score.low_bits() | u32::from(low.bin);
                let equal = counts[usize::from(low.bin)];
                if low.rank == equal || want.slot.takes_equal() {
                    want.slot.set(known, Edge { magnitude: key, end: u64::MAX });
                } else {
                    let tie = Tie::new(want.slot, quest.score, key, low.rank);
                    ties.push((tie, first + bin));
                }
            }
            first += quest.bins.len();
        }
        Ok(ties)
    }
}

impl Wanted {
    pub(super) const fn new(slot: Slot, rank: Rank) -> Self {
        Self { slot, rank, place: None }
    }
}

impl Rank {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a number, rounded down"
    )]
    pub(super) fn of(self, non_zero: u64) -> u64 {
        match self {
            Self::Known(rank) => rank,
            Self::OfNonZero(share) => ((non_zero as f64 * share) as u64).min(non_zero),
        }
    }
}

impl Tie {
    pub(super) const fn new(slot: Slot, score: Score, key: u32, inside: u64) -> Self {
        Self { slot, score, key, inside }
    }

    /// The score that is equal.
    pub(super) const fn key(&self) -> u32 {
        self.key
    }

    /// How many of the equal ones are inside.
    #[cfg(test)]
    pub(super) const fn inside(&self) -> u64 {
        self.inside
    }

    /// The run in which the last one inside lies, and which of the run's equal ones it is; `None` if some run has too many to tell.
    pub(super) fn place_of(
        &self,
        runs: &BTreeMap<u64, Vec<Seen>>,
        histogram: usize,
        elements: u64,
    ) -> Option<(Range<u64>, u64)> {
        let low = u16::try_from(self.key & ((1 << self.score.low_bits()) - 1)).ok()?;
        self.place_in(runs, |seen| seen.get(histogram)?.of(low), elements)
    }

    /// The same, if `equal` says how many equal ones a run has, as far as that is known.
    pub(super) fn place_in<T>(
        &self,
        runs: &BTreeMap<u64, T>,
        equal: impl Fn(&T) -> Option<u64>,
        elements: u64,
    ) -> Option<(Range<u64>, u64)> {
        let mut inside = self.inside;
        let mut runs = runs.iter().peekable();
        while let Some((start, seen)) = runs.next() {
            let count = equal(seen)?;
            if inside <= count {
                return Some((*start..runs.peek().map_or(elements, |(next, _)| **next), inside));
            }
            inside -= count;
        }
        None
    }
}

impl Filler<'_> {
    /// Counts the upper halves of a run's scores.
    pub(super) fn count_high(
        &self,
        quests: &[Quest],
        known: &Known,
        blend: &Blend,
        run: &Range<u64>,
        local: &mut Local,
        scratch: &mut Scratch,
    ) -> Result<()> {
        local.counts.resize_with(quests.len(), || vec![0; Digit::High.bins()]);
        local.zeros.resize(quests.len(), 0);
        let mut asked = Vec::new();
        for (quest, counts) in quests.iter().zip(&mut local.counts) {
            if let Score::Magnitude(term) = quest.score {
                asked.push((term, Digit::High, counts.as_mut_slice()));
            }
        }
        self.histograms(asked, blend, run, scratch)?;
        for (i, quest) in quests.iter().enumerate().filter(|(_, quest)| !quest.score.is_magnitude())
        {
            let (counts, zeros) = (&mut local.counts[i], &mut local.zeros[i]);
            self.keys(quest.score, known, blend, run, &mut scratch.operands, &mut |_, keys| {
                for key in keys {
                    counts[(key >> quest.score.low_bits()) as usize] += 1;
                    *zeros += u64::from(*key == 0);
                }
            })?;
        }
        Ok(())
    }

    /// Counts the lower halves of a run's scores, and notes what was counted.
    pub(super) fn count_low(
        &self,
        quests: &[Quest],
        known: &Known,
        blend: &Blend,
        run: &Range<u64>,
        local: &mut Local,
        scratch: &mut Scratch,
    ) -> Result<Vec<Seen>> {
        let bins = |quest: &Quest| -> Vec<(Score, u16)> {
            quest.bins.iter().map(|bin| (quest.score, *bin)).collect()
        };
        let bins: Vec<(Score, u16)> = quests.iter().flat_map(bins).collect();
        let empty = |(score, _): &(Score, u16)| vec![0; 1 << score.low_bits()];
        if local.counts.is_empty() {
            local.counts = bins.iter().map(empty).collect();
            local.run = bins.iter().map(empty).collect();
        }
        for counts in &mut local.run {
            counts.fill(0);
        }
        let mut asked = Vec::new();
        for ((score, bin), counts) in bins.iter().zip(&mut local.run) {
            if let Score::Magnitude(term) = *score {
                asked.push((term, Digit::Low(*bin), counts.as_mut_slice()));
            }
        }
        self.histograms(asked, blend, run, scratch)?;
        let mut first = 0;
        for quest in quests {
            let counts = &mut local.run[first..first + quest.bins.len()];
            first += quest.bins.len();
            if quest.score.is_magnitude() {
                continue;
            }
            let low_bits = quest.score.low_bits();
            self.keys(quest.score, known, blend, run, &mut scratch.operands, &mut |_, keys| {
                for key in keys {
                    let at = quest.bins.iter().position(|bin| u32::from(*bin) == key >> low_bits);
                    if let Some(at) = at {
                        counts[at][(key & ((1 << low_bits) - 1)) as usize] += 1;
                    }
                }
            })?;
        }
        let counts = local.run.iter().zip(&mut local.counts);
        Ok(counts.map(|(run, counts)| Seen::note(run, counts)).collect())
    }

    /// Counts the scores of a run that are equal to thresholds.
    pub(super) fn count_ties(
        &self,
        ties: &[Tie],
        known: &Known,
        blend: &Blend,
        run: &Range<u64>,
        scratch: &mut Scratch,
    ) -> Result<Vec<Seen>> {
        let count = |tie: &Tie| -> Result<Seen> {
            let (whole, score) = (run.end - run.start, (tie.score, tie.key));
            let equal = self.equal(score, known, blend, run, whole, &mut scratch.operands)?;
            Ok(Seen::Equal(equal.iter().sum()))
        };
        ties.iter().map(count).collect()
    }

    /// Enters a threshold whose last equal one inside lies in a run, the `inside`-th of those there.
    pub(super) fn found_tie(
        &self,
        tie: &Tie,
        (run, inside): (Range<u64>, u64),
        known: &mut Known,
        blend: &Blend,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let (mut left, mut end) = (inside, None);
        let piece = LEAF as u64;
        let score = (tie.score, tie.key);
        let equal = self.equal(score, known, blend, &run, piece, &mut scratch.operands)?;
        let mut pieces = (run.start..run.end).step_by(LEAF).zip(equal);
        let start = pieces.find_map(|(start, equal)| {
            let here = left <= equal;
            left -= if here { 0 } else { equal };
            here.then_some(start)
        });
        let start = start.ok_or_else(lost)?;
        let piece = start..(start + piece).min(run.end);
        self.keys(tie.score, known, blend, &piece, &mut scratch.operands, &mut |first, keys| {
            let mut equal = (first..).zip(keys).filter(|(_, key)| **key == tie.key);
            end = equal.nth(index(left - 1)).map(|(number, _)| number + 1);
        })?;
        let end = end.ok_or_else(lost)?;
        tie.slot.set(known, Edge { magnitude: tie.key, end });
        Ok(())
    }

    /// Histograms of terms over a run, on the device of the moment.
    fn histograms(
        &self,
        mut asked: Vec<(usize, Digit, &mut [u64])>,
        blend: &Blend,
        run: &Range<u64>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let mut pick = Pick::of(self.device);
        let mut done = 0;
        while done < asked.len() {
            scratch.suit(pick.device);
            let worked =
                self.histograms_on(pick.device, &mut asked, &mut done, blend, run, scratch);
            if let Err(error) = worked {
                pick = pick.instead(&error).ok_or(error)?;
            }
        }
        Ok(())
    }

    /// What is done is counted in `done`: another device goes on from there.
    fn histograms_on(
        &self,
        device: &dyn Device,
        asked: &mut [(usize, Digit, &mut [u64])],
        done: &mut usize,
        blend: &Blend,
        run: &Range<u64>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let tiles = self.operands(blend, run, device, &mut scratch.operands)?;
        let (base, terms) = values_of(blend, &tiles);
        while let Some((term, digit, counts)) = asked.get_mut(*done) {
            device.histogram(&SweepTile::new(base, &terms[*term..=*term]), *digit, counts)?;
            *done += 1;
        }
        Ok(())
    }
}

pub(super) fn lost() -> Error {
    Error::Plan { problem: "a threshold is in none of its histograms".into() }
}
