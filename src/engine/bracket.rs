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
    pub(super) start: u32,
    /// How many there are.
    pub(super) width: u32,
    /// The one that is expected most often. It is counted like what lies outside.
    pub(super) pivot: u32,
    /// Those whose places matter: they are counted run by run. All are inside, and there are few.
    pub(super) noted: Arc<[u32]>,
}

impl Bracket {
    /// Most scores of a bracket: 1 MiB of counts.
    pub(super) const WIDEST: u32 = 1 << 18;

    /// Most scores that are noted.
    pub(super) const NOTED: usize = 64;

    /// From the smallest to the largest score; `None` if that is too wide.
    pub(super) fn new(smallest: u32, largest: u32, pivot: u32, noted: &[u32]) -> Option<Self> {
        let width = largest.checked_sub(smallest)?.checked_add(1)?;
        let inside = |score: &u32| (smallest..=largest).contains(score);
        let fits = width <= Self::WIDEST && noted.len() <= Self::NOTED;
        let fits = fits && largest < u32::MAX && noted.iter().chain([&pivot]).all(inside);
        fits.then(|| Self { start: smallest, width, pivot, noted: noted.into() })
    }
}

/// What was counted. There are fewer than 2^32 scores.
pub(super) struct Tally {
    bracket: Bracket,
    /// Scores above the bracket.
    pub(super) above: u64,
    /// How many there are of each inside, from the smallest.
    pub(super) counts: Vec<u32>,
}

impl Tally {
    pub(super) fn new(bracket: &Bracket) -> Self {
        Self { bracket: bracket.clone(), above: 0, counts: vec![0; bracket.width as usize] }
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
            if let Some(count) = self.counts.get_mut(pivot.wrapping_sub(start) as usize) {
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
                    if let Some(count) = self.counts.get_mut(score.wrapping_sub(start) as usize) {
                        *count = count.wrapping_add(1);
                    }
                    hits &= hits - 1;
                }
            }
        }
    }

    /// How many there are by now of those that are noted.
    pub(super) fn noted(&self) -> Vec<u32> {
        let count = |score: &u32| self.counts.get((score - self.bracket.start) as usize).copied();
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
    /// `None` if it lies outside.
    pub(super) fn locate(&self, rank: u64) -> Option<(u32, u64, u64)> {
        let mut left = rank.checked_sub(self.above).filter(|left| *left > 0)?;
        let Bracket { start, width, .. } = self.bracket;
        for (score, count) in (start..start + width).rev().zip(self.counts.iter().rev()) {
            let count = u64::from(*count);
            if left <= count {
                return Some((score, left, count));
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
            for (smallest, largest, pivot) in
                [(100, 120, 110), (90, 129, 90), (95, 95, 95), (0, 99, 7)]
            {
                let bracket = Bracket::new(smallest, largest, pivot, &[largest]).unwrap();
                // As two workers would.
                let (first, second) = scores.split_at(scores.len() / 3);
                let [mut tally, mut other] = [Tally::new(&bracket), Tally::new(&bracket)];
                tally.count(first);
                other.count(second);
                let equal = |of: &[u32], x: u32| of.iter().filter(|score| **score == x).count();
                assert_eq!(tally.noted(), [u32::try_from(equal(first, largest)).unwrap()]);
                tally.merge(&other);
                assert_eq!(tally.locate(0), None);
                for (place, score) in sorted.iter().enumerate() {
                    let above = sorted.iter().filter(|other| *other > score).count();
                    let expected = (smallest..=largest).contains(score).then(|| {
                        (*score, (place + 1 - above) as u64, equal(&sorted, *score) as u64)
                    });
                    assert_eq!(tally.locate(place as u64 + 1), expected, "{place} of {count}");
                }
                assert_eq!(tally.locate(u64::from(count) + 1), None);
            }
        }
    }

    #[test]
    fn a_bracket_is_narrow() {
        let widest = Bracket::WIDEST;
        assert!(Bracket::new(5, 4 + widest, 5, &[5, 6]).is_some());
        assert!(Bracket::new(5, 5 + widest, 5, &[]).is_none());
        assert!(Bracket::new(5, 4, 5, &[]).is_none());
        assert!(Bracket::new(5, 9, 10, &[]).is_none());
        assert!(Bracket::new(5, 9, 5, &[4]).is_none());
        assert!(Bracket::new(0, u32::MAX, 5, &[]).is_none());
        assert!(Bracket::new(u32::MAX - 1, u32::MAX, u32::MAX, &[]).is_none());
        assert!(Bracket::new(7, 200, 7, &[7; Bracket::NOTED + 1]).is_none());
    }
}
