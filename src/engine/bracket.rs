//! Counting how scores lie to a bracket: a narrow range that a threshold is believed to be in.
//!
//! Nearly every score lies outside, and it takes no more than two comparisons to count it; so one look at all scores costs little more
//! than reading them. Floyd and Rivest, "Expected time bounds for selection" (1975), choose brackets by a sample as we do.

#![expect(
    clippy::inline_always,
    reason = "compiled for an instruction set by being inlined where it is enabled"
)]

use std::sync::Arc;

/// Scores that are looked at together: they and what is found of them fit the L1 cache.
const BLOCK: usize = 1024;

/// A range of scores.
#[derive(Clone, Debug)]
pub(super) struct Bracket {
    /// The smallest inside.
    start: u32,
    /// How many there may be inside.
    width: u32,
    /// The one that is expected most often. It is counted like what lies outside.
    pivot: u32,
    /// Those whose places matter, ascending: they are counted run by run.
    noted: Arc<[u32]>,
    /// Only those that are noted are told apart; others are counted by which of these they lie between.
    sparse: bool,
}

impl Bracket {
    /// Most scores inside that are all told apart: 1 MiB of counts.
    const WIDEST: u32 = 1 << 18;

    /// Most scores that are noted.
    const NOTED: usize = 64;

    /// Around a pivot, if these are inside, ascending, the first and the last of all. `None` if it is too wide: then what is inside can be
    /// told apart only if these are few. Differences of bf16 values are, and lie far apart.
    pub(super) fn new(inside: &[u32], pivot: u32) -> Option<Self> {
        let (start, last) = (*inside.first()?, *inside.last()?);
        let width = last.checked_sub(start)?.checked_add(1).filter(|_| last < u32::MAX)?;
        let sparse = width > Self::WIDEST;
        if sparse && inside.len() > Self::NOTED {
            return None;
        }
        // Those next to the pivot.
        let place = inside.binary_search(&pivot).ok()?;
        let most = inside.len().saturating_sub(Self::NOTED);
        let first = place.saturating_sub(Self::NOTED / 2).min(most);
        let noted = inside[first..inside.len().min(first + Self::NOTED)].into();
        Some(Self { start, width, pivot, noted, sparse })
    }

    /// Scores that are counted run by run.
    pub(super) fn noted(&self) -> &[u32] {
        &self.noted
    }

    fn counts(&self) -> usize {
        if self.sparse { 2 * self.noted.len() + 1 } else { self.width as usize }
    }

    /// Where a score is counted that is inside.
    #[inline(always)]
    fn place(&self, score: u32) -> usize {
        if !self.sparse {
            return score.wrapping_sub(self.start) as usize;
        }
        let smaller = self.noted.partition_point(|noted| *noted < score);
        2 * smaller + usize::from(self.noted.get(smaller) == Some(&score))
    }

    /// The score that is counted there; `None` if there are several.
    fn score(&self, place: usize) -> Option<u32> {
        if self.sparse {
            return (place % 2 == 1).then(|| self.noted.get(place / 2).copied()).flatten();
        }
        self.start.checked_add(u32::try_from(place).ok()?)
    }
}

/// What was counted. There are fewer than 2^32 scores.
pub(super) struct Tally {
    bracket: Bracket,
    /// Scores above the bracket.
    above: u64,
    /// How many there are inside, in ascending order.
    counts: Vec<u32>,
}

impl Tally {
    pub(super) fn new(bracket: &Bracket) -> Self {
        Self { bracket: bracket.clone(), above: 0, counts: vec![0; bracket.counts()] }
    }

    /// Counts scores: of magnitudes the bits without a sign. What is not a number may be any that is above infinity, if the bracket is below.
    #[inline(always)]
    pub(super) fn count(&mut self, scores: &[u32]) {
        let Bracket { start, width, pivot, .. } = self.bracket;
        let end = start.wrapping_add(width);
        let mut hits = [0_u8; BLOCK];
        for scores in scores.chunks(BLOCK) {
            // At most a block's length; a check for overflow would keep the loop scalar.
            let (mut above, mut equal) = (0_u32, 0_u32);
            for score in scores {
                above = above.wrapping_add(u32::from(*score >= end));
                equal = equal.wrapping_add(u32::from(*score == pivot));
            }
            self.above += u64::from(above);
            if let Some(count) = self.counts.get_mut(self.bracket.place(pivot)) {
                *count = count.wrapping_add(equal);
            }
            hits[scores.len()..].fill(0);
            for (hit, score) in hits.iter_mut().zip(scores) {
                *hit = u8::from(score.wrapping_sub(start) < width) & u8::from(*score != pivot);
            }
            // One byte is one score: eight without a hit are passed over at once.
            for (eight, hits) in hits.as_chunks::<8>().0.iter().enumerate() {
                let mut hits = u64::from_le_bytes(*hits);
                while hits != 0 {
                    let score = scores[8 * eight + hits.trailing_zeros() as usize / 8];
                    if let Some(count) = self.counts.get_mut(self.bracket.place(score)) {
                        *count = count.wrapping_add(1);
                    }
                    hits &= hits - 1;
                }
            }
        }
    }

    /// How many there are by now of those that are noted.
    pub(super) fn noted(&self) -> Vec<u32> {
        let count = |score: &u32| self.counts.get(self.bracket.place(*score)).copied();
        self.bracket.noted.iter().map(|score| count(score).unwrap_or(0)).collect()
    }

    /// Adds what another counted with the same bracket.
    pub(super) fn merge(&mut self, other: &Self) {
        self.above += other.above;
        for (count, other) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.wrapping_add(*other);
        }
    }

    /// The `rank`-th largest of all scores that were counted (1 is the largest), which of the equal ones it is, and how many these are;
    /// `None` if it lies outside, or
    /// where several are counted as one.
    pub(super) fn locate(&self, rank: u64) -> Option<(u32, u64, u64)> {
        let mut left = rank.checked_sub(self.above).filter(|left| *left > 0)?;
        for (place, count) in self.counts.iter().enumerate().rev() {
            let count = u64::from(*count);
            if left <= count {
                return Some((self.bracket.score(place)?, left, count));
            }
            left -= count;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores around the bracket, of any length.
    fn scores(count: u32) -> Vec<u32> {
        (0..count).map(|i| 90 + i.wrapping_mul(0x9e37_79b9) % 40).collect()
    }

    #[test]
    fn a_tally_agrees_with_a_sort() {
        for count in [0, 1, 7, 8, 1023, 1024, 1025, 5000] {
            let scores = scores(count);
            let mut sorted = scores.clone();
            sorted.sort_unstable_by(|a, b| b.cmp(a));
            for (inside, pivot) in [
                (vec![100, 110, 120], 110),
                ((90..130).collect(), 90),
                (vec![95], 95),
                (vec![0, 7, 99], 7),
                // Too wide to tell all apart.
                (vec![0, 95, 98, 1 << 20], 98),
                ((100..=107).chain([1 << 30]).collect(), 105),
            ] {
                let bracket = Bracket::new(&inside, pivot).unwrap();
                // As two workers would.
                let (first, second) = scores.split_at(scores.len() / 3);
                let [mut tally, mut other] = [Tally::new(&bracket), Tally::new(&bracket)];
                tally.count(first);
                other.count(second);
                let equal = |of: &[u32], x: u32| of.iter().filter(|score| **score == x).count();
                let noted = inside.iter().map(|x| u32::try_from(equal(first, *x)).unwrap());
                assert_eq!(tally.noted(), noted.collect::<Vec<u32>>());
                tally.merge(&other);
                assert_eq!(tally.locate(0), None);
                let ends = inside[0]..=inside[inside.len() - 1];
                let told = |score: &u32| *ends.end() < 1000 || inside.contains(score);
                for (place, score) in sorted.iter().enumerate() {
                    let above = sorted.iter().filter(|other| *other > score).count();
                    let which = (place + 1 - above) as u64;
                    let expected = (ends.contains(score) && told(score))
                        .then(|| (*score, which, equal(&sorted, *score) as u64));
                    assert_eq!(tally.locate(place as u64 + 1), expected, "{place} of {count}");
                }
                assert_eq!(tally.locate(u64::from(count) + 1), None);
            }
        }
    }

    #[test]
    fn a_bracket_is_narrow_or_has_few() {
        let widest = Bracket::WIDEST;
        let many: Vec<u32> = (0..65).collect();
        assert!(!Bracket::new(&[5, 4 + widest], 5).unwrap().sparse);
        assert!(Bracket::new(&[5, 5 + widest], 5).unwrap().sparse);
        assert!(Bracket::new(&[&many[..63], &[widest]].concat(), 5).is_some());
        assert!(Bracket::new(&[&many[..64], &[widest]].concat(), 5).is_none());
        assert!(Bracket::new(&[], 5).is_none());
        assert!(Bracket::new(&[5, 9], 7).is_none(), "the pivot is inside");
        assert!(Bracket::new(&[5, u32::MAX], 5).is_none());
        for (pivot, first) in [(0, 0), (33, 1), (64, 1)] {
            let bracket = Bracket::new(&many, pivot).unwrap();
            assert_eq!((bracket.noted().len(), bracket.noted()[0]), (64, first), "{pivot}");
        }
    }
}
