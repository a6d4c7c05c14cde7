//! Numbers that a merge needs of whole tensors before it can compute an element: sums of magnitudes and products
//! (norms, angles, L1), and exact order statistics of magnitudes.
//!
//! A sweep looks at values `v_i = x_i - base` (`x_i` without a base), subtracted in f32, or in f64 if any operand
//! is `F64`. Its results are the same bits on every device, for any cut into tiles and any order of these:
//!
//! * **Sums** are f64 in a fixed tree. A [`LEAF`] of elements has [`LANES`] sums, each of every `LANES`-th element
//!   in order; the lanes halve onto each other ([`Device::sums`]), and [`TreeSum`] adds leaves.
//!   Of terms with a [`Mask`] it is the values that are kept; others are zeros.
//! * **The k-th largest magnitude** needs no sort: two histograms of 16 bits of the f32 magnitude each
//!   ([`Device::histogram`]) say which it is, how many elements are larger and how many equal ([`locate`]).

use std::collections::BTreeMap;

use super::device::{Mask, Operand, Values, check_mask};
use super::float::Float;
use crate::error::{Error, Result};

#[cfg(doc)]
use super::device::Device;

/// Elements of a leaf of the tree of sums; tiles of sums start at a multiple of it.
pub const LEAF: usize = 4096;

/// Sums that a leaf is added up in before they are added to each other.
pub const LANES: usize = 256;

/// One run of elements to look at.
#[derive(Clone, Copy, Debug)]
pub struct SweepTile<'a> {
    /// What is subtracted from every term.
    pub base: Option<Operand<'a>>,
    /// The operands; at least one.
    pub terms: &'a [Operand<'a>],
    /// Number of the tile's first element within the part, as masks count it.
    pub first: u64,
    /// Where terms count, one for each; all do everywhere if there are none. A value that is not kept is zero in every sum.
    pub masks: &'a [Mask<'a>],
    /// Which sums.
    pub want: Want,
}

impl<'a> SweepTile<'a> {
    /// Of all values, and for every sum.
    pub const fn new(base: Option<Operand<'a>>, terms: &'a [Operand<'a>]) -> Self {
        Self { base, terms, first: 0, masks: &[], want: Want::All }
    }
}

/// Which sums are asked for; the others are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Want {
    /// Every one.
    #[default]
    All,
    /// Those of magnitudes.
    Magnitudes,
    /// Those of products.
    Products,
}

impl Want {
    pub(super) const fn magnitudes(self) -> bool {
        matches!(self, Self::All | Self::Magnitudes)
    }

    pub(super) const fn products(self) -> bool {
        matches!(self, Self::All | Self::Products)
    }
}

/// How many sums a leaf has: `|v_0|, |v_1|, ..`, then the products `v_i * v_j` for `i <= j`, row by row.
pub const fn sums_of(terms: usize) -> usize {
    terms + terms * (terms + 1) / 2
}

/// How many leaves a number of elements has; the last may be short.
pub const fn leaves_of(elements: usize) -> usize {
    elements.div_ceil(LEAF)
}

/// Which bits of a magnitude a histogram counts. A magnitude is the f32's bits without the sign (f64 values are
/// rounded to f32 first), so its order is that of the numbers; every NaN counts as `0x7fc0_0000`, above infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digit {
    /// The upper 16 of the 31 bits.
    High,
    /// The lower 15, of those elements alone whose upper 16 are these.
    Low(u16),
}

impl Digit {
    /// Bins of its histogram.
    pub const fn bins(self) -> usize {
        match self {
            Self::High => 1 << 16,
            Self::Low(_) => 1 << LOW_BITS,
        }
    }

    /// The bin of a magnitude; `None` if it is not counted.
    pub(super) fn bin(self, magnitude: u32) -> Option<usize> {
        let (high, low) = (magnitude >> LOW_BITS, magnitude & ((1 << LOW_BITS) - 1));
        match self {
            Self::High => Some(high as usize),
            Self::Low(wanted) => (high == u32::from(wanted)).then_some(low as usize),
        }
    }
}

pub(super) const LOW_BITS: u32 = 15;

/// What a histogram counts of a value.
#[expect(
    clippy::inline_always,
    reason = "compiled for an instruction set by being inlined where it is enabled"
)]
#[inline(always)]
pub(super) const fn magnitude(value: f32) -> u32 {
    let magnitude = value.to_bits() & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 { 0x7fc0_0000 } else { magnitude }
}

/// Where the k-th largest element falls in a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its bin.
    pub bin: u16,
    /// Which of the bin's elements it is: 1 is the largest.
    pub rank: u64,
    /// Elements in larger bins.
    pub above: u64,
}

/// Finds the `k`-th largest element (1 is the largest) of a histogram; `None` if it counts fewer, or if `k` is 0.
pub fn locate(counts: &[u64], k: u64) -> Option<Place> {
    let mut rank = k.checked_sub(1)?;
    for (bin, count) in counts.iter().enumerate().rev() {
        if rank < *count {
            return Some(Place {
                bin: u16::try_from(bin).ok()?,
                rank: rank + 1,
                above: k - 1 - rank,
            });
        }
        rank -= count;
    }
    None
}

/// The k-th largest of the magnitudes of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kth {
    /// The magnitude.
    pub magnitude: f32,
    /// Elements of larger magnitude, fewer than `k`.
    pub above: u64,
    /// Elements of this magnitude. If exactly `k` elements are to be chosen and `above + ties` is more than `k`,
    /// the order of elements decides.
    pub ties: u64,
}

impl Place {
    /// The digit whose histogram decides, if this is the place in the high digit's.
    pub const fn low_digit(&self) -> Digit {
        Digit::Low(self.bin)
    }

    /// The magnitude, if this is the place in the high digit's histogram and `low` the histogram of
    /// [`Self::low_digit`] over the same elements; `None` if they do not belong together.
    pub fn magnitude(&self, low: &[u64]) -> Option<Kth> {
        let place = locate(low, self.rank)?;
        let bits = u32::from(self.bin) << LOW_BITS | u32::from(place.bin);
        Some(Kth {
            magnitude: f32::from_bits(bits),
            above: self.above + place.above,
            ties: *low.get(usize::from(place.bin))?,
        })
    }
}

/// Adds up the sums of leaves that come in any order.
///
/// The tree is that of a binary counter: of `n > 1` leaves the largest power of two below `n` is on the left, a complete
/// tree, and the rest on the right is such a tree again. Each node is the sum of its two children.
#[derive(Clone, Debug)]
pub struct TreeSum {
    terms: usize,
    leaves: u64,
    /// Leaves that came.
    taken: u64,
    /// Complete subtrees whose neighbour is still missing, by level and index within it.
    nodes: BTreeMap<(u32, u64), Vec<f64>>,
}

impl TreeSum {
    /// For the sums of this many terms over this many elements.
    pub const fn new(terms: usize, elements: u64) -> Self {
        Self { terms, leaves: elements.div_ceil(LEAF as u64), taken: 0, nodes: BTreeMap::new() }
    }

    /// Takes the sums of a tile whose first leaf is `first`: a tile that starts at element `first * LEAF`.
    pub fn add(&mut self, first: u64, sums: &[f64]) {
        let count = sums_of(self.terms).max(1);
        let mut rest = sums;
        let mut leaf = first;
        while rest.len() >= count {
            // The largest complete subtree that starts here.
            let level = leaf.trailing_zeros().min((rest.len() / count).ilog2());
            let (subtree, after) = rest.split_at(count << level);
            self.place(level, leaf >> level, complete(subtree, count));
            leaf += 1 << level;
            self.taken += 1 << level;
            rest = after;
        }
    }

    /// Puts a subtree in its place, and its parents as far as they are complete.
    fn place(&mut self, mut level: u32, mut index: u64, mut node: Vec<f64>) {
        while let Some(sibling) = self.nodes.remove(&(level, index ^ 1)) {
            let is_left = index.is_multiple_of(2);
            let (mut left, right) = if is_left { (node, sibling) } else { (sibling, node) };
            add(&mut left, &right);
            (level, index, node) = (level + 1, index / 2, left);
        }
        self.nodes.insert((level, index), node);
    }

    /// The sums of all leaves.
    ///
    /// # Errors
    ///
    /// [`Error::Plan`] if not every leaf came exactly once.
    pub fn finish(mut self) -> Result<Gram> {
        let mut sums: Option<Vec<f64>> = None;
        let mut end = self.leaves;
        // From the right: the smallest subtree is the last.
        for level in 0..u64::BITS {
            if self.leaves >> level & 1 == 0 {
                continue;
            }
            end -= 1 << level;
            let mut node = self.nodes.remove(&(level, end >> level)).ok_or_else(wrong_leaves)?;
            if let Some(right) = sums {
                add(&mut node, &right);
            }
            sums = Some(node);
        }
        if self.taken != self.leaves {
            return Err(wrong_leaves());
        }
        let mut sums = sums.unwrap_or_else(|| vec![0.0; sums_of(self.terms)]);
        for sum in &mut sums {
            *sum = canonical(*sum);
        }
        Ok(Gram { terms: self.terms, sums })
    }
}

/// The sums of a power of two of leaves.
fn complete(leaves: &[f64], count: usize) -> Vec<f64> {
    if leaves.len() <= count {
        return leaves.to_vec();
    }
    let (left, right) = leaves.split_at(leaves.len() / 2);
    let mut sums = complete(left, count);
    add(&mut sums, &complete(right, count));
    sums
}

fn add(left: &mut [f64], right: &[f64]) {
    for (left, right) in left.iter_mut().zip(right) {
        *left += right;
    }
}

/// One NaN for all: which one an addition gives depends on the processor.
pub(super) const fn canonical(sum: f64) -> f64 {
    if sum.is_nan() { f64::from_bits(0x7ff8 << 48) } else { sum }
}

fn wrong_leaves() -> Error {
    Error::Plan { problem: "a sum needs each of its leaves once".into() }
}

/// Sums over whole tensors: of magnitudes, and of products of every two.
#[derive(Clone, Debug, PartialEq)]
pub struct Gram {
    terms: usize,
    sums: Vec<f64>,
}

impl Gram {
    /// How many terms it is of.
    pub const fn terms(&self) -> usize {
        self.terms
    }

    /// Sum of `|v_i|`.
    ///
    /// # Panics
    ///
    /// If there is no such term.
    pub fn l1(&self, i: usize) -> f64 {
        assert!(i < self.terms, "term {i} of {}", self.terms);
        self.sums[i]
    }

    /// Sum of `v_i * v_j`.
    ///
    /// # Panics
    ///
    /// If there is no such term.
    pub fn dot(&self, i: usize, j: usize) -> f64 {
        let (i, j) = (i.min(j), i.max(j));
        assert!(j < self.terms, "term {j} of {}", self.terms);
        // The rows above have `terms`, `terms - 1`, .. products.
        let row = i * self.terms - i * i.saturating_sub(1) / 2;
        self.sums[self.terms + row + (j - i)]
    }

    /// Euclidean norm of `v_i`.
    ///
    /// # Panics
    ///
    /// If there is no such term.
    pub fn norm(&self, i: usize) -> f64 {
        self.dot(i, i).sqrt()
    }
}

/// A tile that was checked: every operand is a float, and all have the same number of elements.
pub(super) struct Checked<'a> {
    pub(super) base: Option<Values<'a>>,
    pub(super) terms: Vec<Values<'a>>,
    pub(super) elements: usize,
    pub(super) first: u64,
    /// None, or one for each term.
    pub(super) masks: &'a [Mask<'a>],
    pub(super) want: Want,
}

impl<'a> Checked<'a> {
    /// For sums: the output has the length that the tile asks for.
    pub(super) fn of_sums(tile: &SweepTile<'a>, sums: &[f64]) -> Result<Self> {
        let checked = Self::new(tile)?;
        let (leaves, count) = (leaves_of(checked.elements), sums_of(checked.terms.len()));
        if sums.len() != leaves * count {
            let problem = format!("{leaves} leaves of {count} sums, room for {}", sums.len());
            return Err(Error::Plan { problem });
        }
        Ok(checked)
    }

    /// For a histogram: one term, one count a bin.
    pub(super) fn of_histogram(tile: &SweepTile<'a>, digit: Digit, counts: &[u64]) -> Result<Self> {
        let checked = Self::new(tile)?;
        let (terms, bins) = (checked.terms.len(), digit.bins());
        if terms != 1 || counts.len() != bins {
            let room = counts.len();
            let problem =
                format!("a histogram of {terms} terms in {room} bins; it takes 1 and {bins}");
            return Err(Error::Plan { problem });
        }
        Ok(checked)
    }

    fn new(tile: &SweepTile<'a>) -> Result<Self> {
        let base = tile.base.as_ref().map(Values::new).transpose()?;
        let terms: Vec<_> = tile.terms.iter().map(Values::new).collect::<Result<_>>()?;
        let Some(first) = terms.first() else {
            return Err(Error::Plan { problem: "a sweep has no terms".into() });
        };
        let elements = first.bytes.len() / first.float.size();
        for values in base.iter().chain(&terms) {
            if values.bytes.len() != elements * values.float.size() {
                let bytes = values.bytes.len();
                let problem =
                    format!("a sweep of {elements} elements has an operand of {bytes} bytes");
                return Err(Error::Plan { problem });
            }
        }
        let SweepTile { first, masks, want, .. } = *tile;
        if !masks.is_empty() && masks.len() != terms.len() {
            let problem = format!("{} masks for {} terms", masks.len(), terms.len());
            return Err(Error::Plan { problem });
        }
        masks.iter().try_for_each(|mask| check_mask(mask, elements))?;
        Ok(Self { base, terms, elements, first, masks, want })
    }

    /// Base first.
    pub(super) fn inputs(&self) -> impl Iterator<Item = &Values<'a>> {
        self.base.iter().chain(&self.terms)
    }

    /// Whether the subtraction is f64's.
    pub(super) fn is_double(&self) -> bool {
        self.inputs().any(|values| values.float == Float::F64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums whose rounding tells every tree from every other.
    fn leaves(count: u32) -> Vec<f64> {
        let value =
            |i: u32| f64::from(i.wrapping_mul(0x9e37_79b9)) * 0.1_f64.powi((i % 7).cast_signed());
        (0..count * 2).map(value).collect()
    }

    /// The tree by its definition.
    fn tree(leaves: &[[f64; 2]]) -> [f64; 2] {
        match leaves {
            [] => [0.0; 2],
            [leaf] => *leaf,
            _ => {
                let left = leaves.len().next_power_of_two() / 2;
                let (a, b) = (tree(&leaves[..left]), tree(&leaves[left..]));
                [a[0] + b[0], a[1] + b[1]]
            }
        }
    }

    #[test]
    fn a_tree_does_not_know_in_which_order_its_leaves_came() {
        for count in (0..40).chain([63, 64, 65, 100]) {
            let sums = leaves(count);
            let expected = tree(sums.as_chunks().0);
            let elements = u64::from(count) * LEAF as u64;
            for tile in [1, 2, 3, 7, 8, 64, 100] {
                let tiles: Vec<_> = sums.chunks(2 * tile).enumerate().collect();
                for stride in [1, 3, 5] {
                    let mut tree = TreeSum::new(1, elements.saturating_sub(5));
                    // Every stride-th tile first, then those beside them.
                    for start in (0..stride).rev() {
                        for (index, sums) in tiles.iter().skip(start).step_by(stride) {
                            tree.add((index * tile) as u64, sums);
                        }
                    }
                    let gram = tree.finish().unwrap();
                    let found = [gram.l1(0), gram.dot(0, 0)].map(f64::to_bits);
                    assert_eq!(found, expected.map(f64::to_bits), "{count} leaves by {tile}");
                }
            }
        }
    }

    #[test]
    fn a_tree_wants_each_leaf_once() {
        let sums = leaves(6);
        let with = |tiles: &[(u64, usize, usize)]| {
            let mut tree = TreeSum::new(1, 5 * LEAF as u64 + 1);
            for (first, from, to) in tiles {
                tree.add(*first, &sums[2 * from..2 * to]);
            }
            tree.finish()
        };
        assert!(with(&[(0, 0, 6)]).is_ok());
        assert!(with(&[(3, 3, 6), (0, 0, 3)]).is_ok());
        assert!(with(&[(0, 0, 5)]).is_err());
        assert!(with(&[(0, 0, 6), (6, 0, 1)]).is_err());
        assert!(with(&[(0, 0, 6), (2, 2, 3)]).is_err());
        assert!(with(&[(0, 0, 2), (4, 4, 6)]).is_err());
        assert!(with(&[(0, 0, 1), (0, 0, 1), (1, 1, 6)]).is_err());
    }

    #[test]
    fn sums_have_names() {
        let terms = 4;
        let mut tree = TreeSum::new(terms, 1);
        let sums: Vec<f64> = (0..14).map(f64::from).collect();
        tree.add(0, &sums);
        let gram = tree.finish().unwrap();
        let mut at = 4.0;
        for (i, sum) in sums.iter().enumerate().take(terms) {
            assert_eq!(gram.l1(i).to_bits(), sum.to_bits());
            for j in i..terms {
                assert_eq!(gram.dot(i, j).to_bits(), f64::to_bits(at));
                assert_eq!(gram.dot(j, i).to_bits(), f64::to_bits(at));
                at += 1.0;
            }
        }
        assert_eq!(gram.norm(0).to_bits(), 2.0_f64.to_bits());
        assert_eq!(gram.terms(), 4);
    }

    #[test]
    fn a_nan_is_always_the_same() {
        let mut tree = TreeSum::new(1, 2 * LEAF as u64);
        tree.add(0, &[f64::INFINITY, -f64::NAN, f64::NEG_INFINITY, 1.0]);
        let gram = tree.finish().unwrap();
        assert_eq!([gram.l1(0), gram.dot(0, 0)].map(f64::to_bits), [0x7ff8 << 48; 2]);
    }

    #[test]
    fn places_of_a_histogram() {
        let counts = [2, 0, 3, 1, 0];
        let place = |bin, rank, above| Some(Place { bin, rank, above });
        let expected = [
            None,
            place(3, 1, 0),
            place(2, 1, 1),
            place(2, 2, 1),
            place(2, 3, 1),
            place(0, 1, 4),
            place(0, 2, 4),
            None,
        ];
        for (k, expected) in (0..).zip(expected) {
            assert_eq!(locate(&counts, k), expected, "{k}");
        }
        assert_eq!(locate(&counts, u64::MAX), None);
        assert_eq!(locate(&[], 1), None);
    }
}
