//! A sample of a part, which says where its thresholds lie: nearly, or exactly if it is all of it.
//!
//! Pieces are taken from all over the part, since rows and columns may differ. How much the pieces differ says how far to trust them:
//! a bracket is three standard deviations to each side.

use std::ops::Range;

use super::look::{Found, Known};
use super::near::Gauge;
use super::order::{Quest, Rank, Slot, Wanted, lost};
use super::scores::Score;
use crate::engine::bracket::Bracket;
use crate::engine::device::Edge;
use crate::engine::tile::{Filler, Scratch};
use crate::error::Result;
use crate::plan::Blend;

/// Pieces of a sample.
const PIECES: u64 = 64;

/// Elements of a sample: a part that has no more is its own sample, others have one of a 64th of theirs within these limits.
const FEWEST: u64 = 1 << 16;
const MOST: u64 = 1 << 18;

/// Standard deviations from a bracket's middle to its ends: so many, or fewer if it is too wide.
const DEVIATIONS: [f64; 2] = [3.0, 2.0];

/// Elements of the runs that each have a piece of the sample.
pub(super) const fn run_of(elements: u64) -> u64 {
    if elements <= FEWEST { elements } else { elements.div_ceil(PIECES) }
}

/// What is looked at of a run.
pub(super) fn piece_of(run: &Range<u64>, elements: u64) -> Range<u64> {
    let len = run.end - run.start;
    if elements <= FEWEST {
        return run.clone();
    }
    let piece = ((elements / PIECES).clamp(FEWEST, MOST) / PIECES).min(len);
    // Anywhere, but always there: columns may differ, and runs may begin at the same one.
    let anywhere = run.start.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let start = run.start + anywhere % (len - piece + 1);
    start..start + piece
}

/// What a sample says.
pub(super) enum Outcome {
    /// All thresholds: they are entered.
    Known,
    /// A bracket for each threshold.
    Near(Vec<Gauge>),
    /// Some threshold lies in too wide a range.
    Unclear,
}

impl Filler<'_> {
    /// The scores of the piece of a run, for each quest.
    pub(super) fn sample(
        &self,
        quests: &[Quest],
        known: &Known,
        blend: &Blend,
        run: &Range<u64>,
        scratch: &mut Scratch,
    ) -> Result<Vec<Vec<u32>>> {
        let piece = piece_of(run, blend.elements());
        let sample = |quest: &Quest| {
            let mut scores = Vec::new();
            let buffers = &mut scratch.operands;
            self.keys(quest.score, known, blend, &piece, buffers, &mut |_, keys| {
                scores.extend_from_slice(keys);
            })?;
            Ok(scores)
        };
        quests.iter().map(sample).collect()
    }
}

/// What follows from the pieces.
pub(super) fn judge(
    quests: &[Quest],
    found: &Found,
    known: &mut Known,
    elements: u64,
) -> Result<Outcome> {
    let mut gauges = Vec::new();
    for (of, quest) in quests.iter().enumerate() {
        let pieces: Vec<&[u32]> =
            found.samples.values().filter_map(|scores| Some(scores.get(of)?.as_slice())).collect();
        let nothing = pieces.iter().copied().flatten().filter(|score| **score == 0).count() as u64;
        for Wanted { slot, rank, .. } in &quest.wanted {
            if elements <= FEWEST {
                let rank = rank.of(elements - nothing);
                // Nothing is inside: that is what is taken if nothing else is known.
                if rank > 0 {
                    slot.set(known, exactly(&pieces, rank, *slot).ok_or_else(lost)?);
                }
                continue;
            }
            match bracket(quest.score, &pieces, share(*rank, nothing, &pieces, elements)) {
                Some(bracket) => gauges.push(Gauge::new(*slot, quest.score, *rank, bracket)),
                None => return Ok(Outcome::Unclear),
            }
        }
    }
    Ok(if elements <= FEWEST { Outcome::Known } else { Outcome::Near(gauges) })
}

/// The threshold of a rank, if the pieces are all there is.
fn exactly(pieces: &[&[u32]], rank: u64, slot: Slot) -> Option<Edge> {
    let mut scores = pieces.concat();
    let at = usize::try_from(rank.checked_sub(1)?).ok()?;
    if at >= scores.len() {
        return None;
    }
    let magnitude = *scores.select_nth_unstable_by(at, |a, b| b.cmp(a)).1;
    let above = scores.iter().filter(|score| **score > magnitude).count();
    let mut equal = (0..).zip(pieces.iter().copied().flatten()).filter(|(_, x)| **x == magnitude);
    let (last, _) = equal.nth(at - above)?;
    let all = equal.next().is_none() || slot.takes_equal();
    Some(Edge { magnitude, end: if all { u64::MAX } else { last + 1 } })
}

/// The share of scores that are at least the threshold, if the pieces have as many zeros as the rest.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn share(rank: Rank, zeros: u64, pieces: &[&[u32]], elements: u64) -> f64 {
    let sampled = pieces.iter().map(|piece| piece.len()).sum::<usize>() as f64;
    match rank {
        Rank::Known(rank) => rank as f64 / elements as f64,
        Rank::OfNonZero(share) => share * (1.0 - zeros as f64 / sampled),
    }
}

/// Where the largest end that are such a share of all, by all accounts.
fn bracket(score: Score, pieces: &[&[u32]], share: f64) -> Option<Bracket> {
    let mut scores = pieces.concat();
    DEVIATIONS.into_iter().find_map(|wide| bracket_of(score, pieces, &mut scores, share, wide))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "an estimate"
)]
fn bracket_of(
    score: Score,
    pieces: &[&[u32]],
    scores: &mut [u32],
    share: f64,
    wide: f64,
) -> Option<Bracket> {
    let count = scores.len();
    let middle = ((share * count as f64) as usize).min(count.checked_sub(1)?);
    let (_, pivot, _) = scores.select_nth_unstable_by(middle, |a, b| b.cmp(a));
    let pivot = *pivot;
    let deviation = deviation(pieces, pivot).max((share * (1.0 - share) / count as f64).sqrt());
    let margin = (wide * deviation * count as f64) as usize + 2;
    // Beyond the sample's largest anything may lie; below its smallest nothing does but the rest down to zero.
    let first = middle.checked_sub(margin)?;
    let last = (middle + margin).min(count - 1);
    let (_, largest, _) = scores.select_nth_unstable_by(first, |a, b| b.cmp(a));
    let largest = *largest;
    let (between, smallest, _) =
        scores[first..].select_nth_unstable_by(last - first, |a, b| b.cmp(a));
    let smallest = *smallest;
    // Scores count as they come, and what is not a number is written in many ways.
    if score.is_magnitude() && largest > 0x7f80_0000 {
        return None;
    }
    let mut inside = between.to_vec();
    inside.extend([largest, smallest, pivot]);
    if middle + margin >= count {
        inside.push(0);
    }
    inside.sort_unstable();
    inside.dedup();
    Bracket::new(&inside, pivot)
}

/// The standard deviation of the share of scores above one, by how much the pieces differ in it.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn deviation(pieces: &[&[u32]], pivot: u32) -> f64 {
    let share = |piece: &&[u32]| {
        let above = piece.iter().filter(|score| **score > pivot).count();
        let equal = piece.iter().filter(|score| **score == pivot).count();
        (above as f64 + equal as f64 / 2.0) / piece.len().max(1) as f64
    };
    let shares: Vec<f64> = pieces.iter().map(share).collect();
    let count = shares.len() as f64;
    let mean = shares.iter().sum::<f64>() / count;
    let squares: f64 = shares.iter().map(|share| (share - mean) * (share - mean)).sum();
    (squares / (count - 1.0).max(1.0) / count).sqrt()
}
