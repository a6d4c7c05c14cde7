//! The kernels' parameters where not every term counts everywhere: a blend's with rules, and those of sums over what is kept.
//!
//! The structs are those of `kernels/rules.cuh` and `kernels/sweep.cuh`, field by field.

#![expect(unsafe_code, reason = "says that plain data may be passed to a kernel")]

use cudarc::driver::DeviceRepr;

use super::kernels::{BlendAt, BlendParameters, MAX_TERMS, SumsParameters};
use crate::engine::device::{Checked, Mask, Rules, TermRule};
use crate::plan::Vote;

/// Elements of a vector of the kernels, or a multiple of it.
pub(super) const VECTOR: usize = 4;

/// Elements that a piece of a tile is cut to multiples of: with rules those of a byte of bits.
pub(super) fn step(tile: &Checked<'_>) -> usize {
    if tile.rules.is_some() { 8 } else { 1 }
}

/// Elements of room to leave before those of a tile from `start` on. With rules a vector begins where an element's number says, and
/// must be aligned there.
pub(super) fn lead(tile: &Checked<'_>, start: usize) -> usize {
    let number = tile.rules.map_or(0, |rules| rules.first + start as u64);
    usize::try_from(number % VECTOR as u64).unwrap_or(0)
}

/// The masks of a tile with rules, one for each term.
pub(super) fn masks<'a>(tile: &Checked<'a>) -> Vec<Mask<'a>> {
    let terms: &'a [TermRule<'a>] = tile.rules.map_or(&[], |rules| rules.terms);
    terms.iter().map(|term| term.mask).collect()
}

/// The bits that are given for a mask.
pub(super) const fn bits<'a>(mask: &Mask<'a>) -> Option<&'a [u8]> {
    match mask {
        Mask::Bits(bits) => Some(bits),
        _ => None,
    }
}

/// A blend of elements in GPU memory, with rules.
#[derive(Clone, Copy)]
pub(super) struct RuledAt<'a> {
    pub(super) blend: BlendAt<'a>,
    pub(super) rules: &'a Rules<'a>,
    /// Number of the first element within the part.
    pub(super) first: u64,
    /// For each term the address of its bits; 0 where its mask has none.
    pub(super) bits: &'a [u64],
}

/// A term's mask. What the words are depends on its code.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MaskParameters {
    first: u64,
    second: u64,
    low: u32,
    high: u32,
}

/// Parameters of the kernels of tiles with rules; `R` is the type of the arithmetic.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct RulesParameters<R> {
    blend: BlendParameters<R>,
    first: u64,
    mask: [MaskParameters; MAX_TERMS],
    share: [R; MAX_TERMS],
    alone: [R; MAX_TERMS],
    least: R,
    instead: R,
    keep: [u8; MAX_TERMS],
    deltas: u8,
    vote: u8,
    divide: u8,
    padding: [u8; 5],
}

// SAFETY: numbers only, laid out as C lays them out, every byte one of a field.
unsafe impl DeviceRepr for RulesParameters<f32> {}
// SAFETY: as above.
unsafe impl DeviceRepr for RulesParameters<f64> {}

/// Parameters of the kernels that add up what is kept.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct MaskedSumsParameters {
    sums: SumsParameters,
    first: u64,
    mask: [MaskParameters; MAX_TERMS],
    keep: [u8; MAX_TERMS],
}

// SAFETY: as above.
unsafe impl DeviceRepr for MaskedSumsParameters {}

impl MaskedSumsParameters {
    /// `first` is the number of the first element within the part; `bits` as in [`RuledAt`].
    pub(super) fn new(sums: &SumsParameters, first: u64, masks: &[Mask<'_>], bits: &[u64]) -> Self {
        let (keep, mask) = ([0; MAX_TERMS], [MaskParameters::default(); MAX_TERMS]);
        let mut parameters = Self { sums: *sums, first, mask, keep };
        for (i, (mask, bits)) in masks.iter().zip(bits).enumerate().take(MAX_TERMS) {
            (parameters.keep[i], parameters.mask[i]) = words(mask, *bits);
        }
        parameters
    }
}

impl RuledAt<'_> {
    /// The parameters, with factors rounded to the arithmetic's type by `round`.
    pub(super) fn parameters<R: Copy + Default>(
        &self,
        round: impl Fn(f64) -> R,
    ) -> RulesParameters<R> {
        let Rules { deltas, vote, divide, .. } = *self.rules;
        let mut parameters = RulesParameters {
            blend: self.blend.parameters(&round),
            first: self.first,
            mask: [MaskParameters::default(); MAX_TERMS],
            share: [R::default(); MAX_TERMS],
            alone: [R::default(); MAX_TERMS],
            least: divide.map_or(R::default(), |divide| round(divide.least)),
            instead: divide.map_or(R::default(), |divide| round(divide.instead)),
            keep: [0; MAX_TERMS],
            deltas: deltas.into(),
            vote: match vote {
                None => 0,
                Some(Vote::Weighted) => 1,
                Some(Vote::Plain) => 2,
            },
            divide: divide.is_some().into(),
            padding: [0; 5],
        };
        let terms = self.rules.terms.iter().zip(self.bits).enumerate().take(MAX_TERMS);
        for (i, (term, bits)) in terms {
            (parameters.keep[i], parameters.mask[i]) = words(&term.mask, *bits);
            parameters.share[i] = round(term.share);
            parameters.alone[i] = round(term.alone);
        }
        parameters
    }
}

/// The kernel's number of a mask, and its words.
fn words(mask: &Mask<'_>, bits: u64) -> (u8, MaskParameters) {
    let of = |first, second| MaskParameters { first, second, ..MaskParameters::default() };
    match *mask {
        Mask::All => (0, MaskParameters::default()),
        Mask::Band { low, high } => {
            let (first, second) = (low.end, high.end);
            let (low, high) = (low.magnitude, high.magnitude);
            (1, MaskParameters { first, second, low, high })
        }
        Mask::Random { seed, below } => (2, of(seed, below)),
        Mask::Bits(_) => (3, of(bits, 0)),
        Mask::Near(t) => (4, of(t.to_bits().into(), 0)),
    }
}

// The sizes that `kernels/*.cuh` assert too: those of the fields.
const fn fields(blend: usize, real: usize) -> usize {
    blend + 8 + MAX_TERMS * (24 + 2 * real + 1) + 2 * real + 8
}
const _: () = assert!(size_of::<RulesParameters<f32>>() == 3016 && fields(880, 4) == 3016);
const _: () = assert!(size_of::<RulesParameters<f64>>() == 3800 && fields(1144, 8) == 3800);
const _: () =
    assert!(size_of::<MaskedSumsParameters>() == 2216 && 608 + 8 + MAX_TERMS * 25 == 2216);
