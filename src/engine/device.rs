//! What computes: the trait every device implements, and the tile it is handed.
//!
//! A tile is one contiguous run of elements of a [`Blend`](crate::plan::Blend) with its operands' bytes in memory.
//! Devices agree on every byte of the result; tests hold them to it.

use std::ops::DerefMut;

use super::auto::Auto;
use super::float::Float;
use super::simd::Simd;
use super::sweep::{Digit, SweepTile};
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::plan::{Divide, Vote};

/// Elements in memory: little endian, at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// Their type.
    pub dtype: &'a Dtype,
    /// Whole elements.
    pub bytes: &'a [u8],
}

/// One run of elements of a [`Blend`](crate::plan::Blend).
#[derive(Clone, Copy, Debug)]
pub struct BlendTile<'a> {
    /// What the weighted sum is added to.
    pub base: Option<Operand<'a>>,
    /// The operands and their weights, in the order of summation; at least one.
    pub terms: &'a [(Operand<'a>, f64)],
    /// Factor of the weighted sum.
    pub lambda: f64,
    /// Element type of the result.
    pub dtype: &'a Dtype,
    /// Which terms count where, unless all do everywhere as they are.
    pub rules: Option<&'a Rules<'a>>,
}

/// What a tile is of a [`Blend`](crate::plan::Blend) that is not plain, with thresholds and factors known. That says
/// what is computed; a tile's weights are products of weight and gain.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Number of the tile's first element within the part.
    pub first: u64,
    /// Values are differences from the base.
    pub deltas: bool,
    /// One for each term.
    pub terms: &'a [TermRule<'a>],
    /// Whether terms must agree on a sign.
    pub vote: Option<Vote>,
    /// Whether the sum becomes a mean.
    pub divide: Option<Divide>,
}

/// Where a term counts, and as what.
#[derive(Clone, Copy, Debug)]
pub struct TermRule<'a> {
    /// Where.
    pub mask: Mask<'a>,
    /// What it adds to the divisor: its weight without gain.
    pub share: f64,
    /// Factor of the sum where no other term counts.
    pub alone: f64,
}

/// Where a term counts: a [`Keep`](crate::plan::Keep) with its thresholds.
#[derive(Clone, Copy, Debug)]
pub enum Mask<'a> {
    /// Everywhere.
    All,
    /// Where a value lies inside `low` and not inside `high`.
    Band {
        /// What is large enough.
        low: Edge,
        /// What is too large: inside of it nothing is kept.
        high: Edge,
    },
    /// Where the number of [`Keep::Random`](crate::plan::Keep::Random) is less than this; 2^32 is everywhere.
    Random {
        /// Key of the stream.
        seed: u64,
        /// At most 2^32.
        below: u64,
    },
    /// Where the bit of the element is set: bit `i % 8` of byte `i / 8` for element `i` of the tile.
    Bits(&'a [u8]),
    /// Everywhere, with values limited as [`Keep::Near`](crate::plan::Keep::Near) says.
    Near(f32),
}

/// A place in the order of magnitudes: inside are all larger ones, and of equal ones those of the first elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Bits of the f32, without sign; NaNs are `0x7fc0_0000`.
    pub magnitude: u32,
    /// Of elements of exactly this magnitude those are inside whose number within the part is less.
    pub end: u64,
}

impl Edge {
    /// Everything is inside.
    pub const ALL: Self = Self { magnitude: 0, end: u64::MAX };

    /// Nothing is inside.
    pub const NONE: Self = Self { magnitude: u32::MAX, end: 0 };
}

/// Counts of result elements that are not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// NaNs.
    pub nan: u64,
    /// Infinities.
    pub infinite: u64,
    /// NaNs and infinities whose every input was finite: overflow, or infinite minus infinite on the way.
    pub broken: u64,
}

impl Health {
    /// The counts of two runs together.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        Self {
            nan: self.nan + other.nan,
            infinite: self.infinite + other.infinite,
            broken: self.broken + other.broken,
        }
    }
}

/// Something that computes tiles.
///
/// Every device gives the same bytes for the same tile: those of [`Reference`](super::Reference).
pub trait Device: Send + Sync {
    /// What to call it in reports: `reference`, `simd (avx2)`.
    fn name(&self) -> String;

    /// Computes `base + lambda * (w0*x0 + w1*x1 + ...)` with the arithmetic that [`Blend`](crate::plan::Blend)
    /// prescribes, and writes it to `out`, as many elements of the tile's dtype as each operand has.
    ///
    /// With rules, values, contributions, sums and divisors are f32 (f64 if an operand or the output is `F64`), weights, shares
    /// and the numbers of [`Divide`] rounded to it once. Sums start from negative zero, the divisor from zero.
    ///
    /// # Errors
    ///
    /// [`Error::Plan`] if a dtype is not a float of whole bytes, if there are no terms, if the operands and `out`
    /// do not hold the same number of elements, or if rules do not fit the tile: one for each term, a base for deltas, a bit for each
    /// element.
    fn blend(&self, tile: &BlendTile<'_>, out: &mut [u8]) -> Result<Health>;

    /// Adds up magnitudes and products of values, leaf by leaf, in the order that [`sweep`](super::sweep) prescribes:
    /// [`sums_of`](super::sweep::sums_of) sums for each [`LEAF`](super::sweep::LEAF) of elements, the last of which may
    /// be short. All are f64, products of factors that were widened first; nothing is fused. Lane `l` starts from zero
    /// and adds the elements whose index is `l` modulo [`LANES`](super::sweep::LANES), in order; then the upper half of
    /// the lanes is added to the lower until one is left. NaN is `0x7ff8_0000_0000_0000`. Values that their term's mask does not
    /// keep are zeros; sums that are not [wanted](super::sweep::Want) are zero.
    ///
    /// # Errors
    ///
    /// [`Error::Plan`] if a dtype is not a float of whole bytes, if there are no terms, if the operands do not hold
    /// the same number of elements, or if `sums` does not have the length that this asks for.
    fn sums(&self, tile: &SweepTile<'_>, sums: &mut [f64]) -> Result<()>;

    /// Counts the magnitudes of the tile's one term by a digit, and adds that to `counts`. Masks do not matter.
    ///
    /// # Errors
    ///
    /// As for sums; there is exactly one term, and one count for each of [`Digit::bins`].
    fn histogram(&self, tile: &SweepTile<'_>, digit: Digit, counts: &mut [u64]) -> Result<()>;

    /// Memory for one operand or one result of a tile, of at least `bytes` bytes: the kind this device reaches fastest.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] if there is not enough of it.
    fn memory(&self, bytes: usize) -> Result<HostMemory> {
        Ok(Box::new(vec![0; bytes]))
    }

    /// Whether operands should be read into [`Device::memory`] instead of being used where they are mapped.
    fn wants_own_memory(&self) -> bool {
        false
    }

    /// The CPU's vector instructions, if it is they that compute: then thresholds are found by a sample and a look, without histograms.
    fn as_simd(&self) -> Option<Simd> {
        None
    }

    /// The device that chooses another for each tile, if it is that.
    fn as_auto(&self) -> Option<&Auto> {
        None
    }
}

/// Bytes that a device handed out, given back on drop.
pub type HostMemory = Box<dyn DerefMut<Target = [u8]> + Send>;

/// An operand whose dtype is known to be a float.
#[derive(Clone, Copy)]
pub(super) struct Values<'a> {
    pub(super) float: Float,
    pub(super) bytes: &'a [u8],
}

impl<'a> Values<'a> {
    pub(super) fn new(operand: &Operand<'a>) -> Result<Self> {
        let Operand { dtype, bytes } = *operand;
        let float = Float::of(dtype).ok_or_else(|| not_a_float(dtype))?;
        Ok(Self { float, bytes })
    }

    /// The element's value, exactly.
    pub(super) fn at(&self, index: usize) -> f64 {
        let size = self.float.size();
        self.float.read(&self.bytes[index * size..][..size])
    }

    /// A run of elements.
    pub(super) fn run(&self, start: usize, count: usize) -> Self {
        let size = self.float.size();
        let bytes = &self.bytes[start * size..][..count * size];
        Self { bytes, ..*self }
    }
}

/// A tile that was checked: every operand is a float and has as many elements as the output.
pub(super) struct Checked<'a> {
    pub(super) base: Option<Values<'a>>,
    pub(super) terms: Vec<(Values<'a>, f64)>,
    pub(super) lambda: f64,
    pub(super) float: Float,
    pub(super) elements: usize,
    pub(super) rules: Option<&'a Rules<'a>>,
}

impl<'a> Checked<'a> {
    pub(super) fn new(tile: &BlendTile<'a>, out: &[u8]) -> Result<Self> {
        let float = Float::of(tile.dtype).ok_or_else(|| not_a_float(tile.dtype))?;
        let elements = out.len() / float.size();
        let base = tile.base.as_ref().map(Values::new).transpose()?;
        let terms: Vec<_> = tile
            .terms
            .iter()
            .map(|(operand, weight)| Ok((Values::new(operand)?, *weight)))
            .collect::<Result<_>>()?;
        if terms.is_empty() {
            let problem = "a blend has no terms".into();
            return Err(Error::Plan { problem });
        }
        if let Some(rules) = tile.rules {
            check_rules(rules, terms.len(), base.is_some(), elements)?;
        }
        let output = Values { float, bytes: out };
        for values in base.iter().chain(terms.iter().map(|(v, _)| v)).chain([&output]) {
            if values.bytes.len() != elements * values.float.size() {
                let problem = format!(
                    "a blend of {elements} elements has an operand of {} bytes",
                    values.bytes.len()
                );
                return Err(Error::Plan { problem });
            }
        }
        Ok(Self { base, terms, lambda: tile.lambda, float, elements, rules: tile.rules })
    }

    /// Base first.
    pub(super) fn inputs(&self) -> impl Iterator<Item = &Values<'a>> {
        self.base.iter().chain(self.terms.iter().map(|(values, _)| values))
    }

    /// Whether the arithmetic is f64's.
    pub(super) fn is_double(&self) -> bool {
        self.float == Float::F64 || self.inputs().any(|values| values.float == Float::F64)
    }

    /// Counts an element of the result that is not finite.
    pub(super) fn count(&self, health: &mut Health, index: usize, is_nan: bool) {
        health.nan += u64::from(is_nan);
        health.infinite += u64::from(!is_nan);
        let finite = self.inputs().all(|values| values.at(index).is_finite());
        health.broken += u64::from(finite);
    }
}

fn check_rules(rules: &Rules<'_>, terms: usize, base: bool, elements: usize) -> Result<()> {
    let problem = if rules.terms.len() != terms {
        format!("{} rules for {terms} terms", rules.terms.len())
    } else if rules.deltas && !base {
        "deltas without a base".into()
    } else {
        return rules.terms.iter().try_for_each(|rule| check_mask(&rule.mask, elements));
    };
    Err(Error::Plan { problem })
}

/// Whether a mask fits a tile.
pub(super) fn check_mask(mask: &Mask<'_>, elements: usize) -> Result<()> {
    let problem = match *mask {
        Mask::Bits(bits) if bits.len() != elements.div_ceil(8) => {
            format!("{} bytes of bits for {elements} elements", bits.len())
        }
        Mask::Random { below, .. } if below > 1 << 32 => {
            format!("random numbers are less than 2^32, the bound is {below}")
        }
        _ => return Ok(()),
    };
    Err(Error::Plan { problem })
}

pub(super) fn not_a_float(dtype: &Dtype) -> Error {
    let problem = format!("a device computes on floats, not on {dtype}");
    Error::Plan { problem }
}
