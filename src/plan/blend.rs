//! The normal form of everything that is computed: which elements of the operands count, what they weigh, and how
//! they are joined.

use serde::{Deserialize, Serialize};

use super::{Chain, Operand, Slice, Solve};

/// `base + lambda * (w0*v0 + w1*v1 + ...)`, element by element.
///
/// Inputs widen exactly to f32 (f64 if any operand or the output is `F64`); the sum runs over the terms in order, starting
/// from `w0*v0`; every product and sum is rounded once, without fused multiply-add; the result is rounded once, to
/// nearest even, into the output dtype. NaNs are canonical. Without a base the result is `lambda * (...)`.
///
/// The values `v` are the operands' elements, with [`deltas`](Self::deltas) minus the base's. Then, for each element:
///
/// 1. **Keep**: a term counts where its [`Keep`] says so. It contributes `p = (weight * gain) * v`, that factor rounded once
///    to the type of the arithmetic.
/// 2. **Vote**: with a [`Vote`], only terms count whose contribution has the elected sign.
/// 3. **Sum**: contributions of the terms that count, in order. Of none it is negative zero, which adds nothing to any base.
///    Where exactly one term counts, the sum is multiplied by that term's `alone`, unless that is 1.
/// 4. **Divide**: with a [`Divide`], the sum is divided by the sum of the `weight`s of the terms that count.
/// 5. `base + lambda * sum`.
///
/// With [`Blend::solve`] weights come from a look at the whole part. Without keeps, vote and divide it is then
/// `base + lambda * (c0*(x0 - base) + c1*(x1 - base) + ...)`, or `lambda * (c0*x0 + ...)` without a base. With a base it is
/// computed as a blend without one whose first term is the base: weight `1 - lambda * (c0 + c1 + ...)`, then `lambda * c0`, ..;
/// the arithmetic is the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blend {
    /// What the weighted sum is added to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Operand>,
    /// The weighted terms; at least one.
    pub terms: Vec<Term>,
    /// Factor of the weighted sum.
    pub lambda: f64,
    /// Values are differences from the base, of which there must be one. A [`Solve`] with a base implies it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub deltas: bool,
    /// How the weights are found, if they are not those of the terms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solve: Option<Solve>,
    /// What they are found for.
    #[serde(default, skip_serializing_if = "Span::is_part")]
    pub span: Span,
    /// Whether terms must agree on a sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vote: Option<Vote>,
    /// Whether the sum becomes a mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divide: Option<Divide>,
    /// mergekit's operations and roundings, which then say what is computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Chain>,
}

/// What a [`Solve`] finds weights for, each from its elements alone.
///
/// In JSON: `"part"`, `{"rows": {"columns": 4096}}`, `{"columns": {"columns": 4096}}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Span {
    /// The part.
    #[default]
    Part,
    /// Each row. Each worker holds whole ones: they have 2^24 elements at most.
    Rows {
        /// Elements of a row.
        columns: u64,
    },
    /// Each column. The sums of all columns are held at once: they are 2^22 at most, `n + n * (n + 1) / 2` for each column
    /// of `n` terms.
    Columns {
        /// Elements of a row.
        columns: u64,
    },
}

/// One weighted operand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// The operand.
    pub operand: Operand,
    /// Its weight; with a [`Solve`], what that makes of it.
    pub weight: f64,
    /// Where it counts.
    #[serde(default, skip_serializing_if = "Keep::is_all")]
    pub keep: Keep,
    /// One more factor of its values, of which a [`Divide`] knows nothing.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub gain: f64,
    /// Values are multiplied by `|v|_1 / |kept v|_1`, so that what is kept weighs as much as the whole (mergekit's `rescale`). Not if
    /// either norm is less than 1e-7. The f64 quotient is multiplied with weight and gain before that is rounded.
    #[serde(default, skip_serializing_if = "is_false")]
    pub rescale: bool,
    /// Factor of the sum where no other term counts.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub alone: f64,
}

/// Where a term counts. Magnitudes are those of its values `v` as f32 (f64 values are rounded to it); a NaN is larger than infinity.
/// Of equal magnitudes those of elements that come first are the larger ones. Rows and elements are counted within the part.
///
/// In JSON: `"all"`, `{"largest": {"skip": 0, "count": 10}}`, `{"random": {"probability": 0.5, "seed": 7}}`, ..
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Keep {
    /// Everywhere.
    #[default]
    All,
    /// Where its magnitude is among the `count` largest that follow the `skip` largest.
    Largest {
        /// The largest, which do not count: outliers.
        skip: u64,
        /// How many do.
        count: u64,
    },
    /// Where its magnitude is not smaller than that of the element which has `floor(share * n)` larger ones among the `n` values of all
    /// terms of its group, in all tensors of the plan; everywhere if there is no such element (the trim of TIES as its authors' code has it,
    /// arXiv 2306.01708). Of operands that are slices only.
    LargestOfAll {
        /// Terms of the same number are one group.
        group: u32,
        /// From 0 to 1, the same in a group.
        share: f64,
    },
    /// Where its magnitude is greater.
    Above {
        /// Rounded once to f32.
        magnitude: f64,
    },
    /// Where a random number says so.
    Random {
        /// From 0 (never) to 1 (always), rounded to a multiple of 2^-32.
        probability: f64,
        /// Of the stream of numbers: element `i` has word `i mod 4` of Philox4x32-10 (Salmon et al. 2011) with the counter
        /// `(i / 4, 0)` and the key `seed`, low words first, and is kept if it is less than `probability * 2^32`.
        seed: u64,
    },
    /// As `Random`, but the probability rises linearly with the rank of the magnitude within a row, from the smallest to the largest
    /// (DELLA, arXiv 2406.11617). A row of one element has the mean of both.
    Ranked {
        /// Of the smallest.
        low: f64,
        /// Of the largest.
        high: f64,
        /// As for `Random`.
        seed: u64,
        /// Elements of a row.
        columns: u64,
    },
    /// Where the variance of all terms' values around their mean is among the largest (SCE, arXiv 2408.07990): so many of those
    /// where it is not zero, rounded down. The same for all terms. It is the mean of the squares of `v - m`, where `m` is the mean of
    /// the values; both are added up in the order of the terms in f64 and divided by their number. What comes of it is rounded to
    /// f32.
    Varied {
        /// From 0 to 1.
        share: f64,
    },
    /// Where `|v|` times the Kullback-Leibler divergence of the row's softmax from that of the base's row is at least the median
    /// plus 1.5 times the interquartile range of that over the part (mergekit's `arcee_fusion`).
    ///
    /// The divergence is the sum of `p * ln(p/q)` over the row in order, of the softmaxes plus 1e-8. All arithmetic is f64 with exponentials
    /// and logarithms in software; the product is rounded to f32. Median and quartiles are the elements `floor(q * (n - 1))` of
    /// all `n` in order. A NaN is at least anything, and anything is at least a NaN.
    Important {
        /// Elements of a row.
        columns: u64,
    },
    /// Everywhere, but values are multiplied by `min(1, t / max(|v|, 1e-6))` and by 0 if that is negative (mergekit's `nearswap`).
    Near {
        /// The magnitude that is left of larger values.
        t: f64,
    },
}

/// Which sign is elected: that of the sum of all contributions; that of a zero sum is plus. A term counts if its contribution has
/// that sign, or is not a number; zeros never do (TIES, arXiv 2306.01708).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Vote {
    /// Of contributions as they are, weights included (mergekit).
    Weighted,
    /// Of the values `v` of terms that are kept, without weights and gains; it is these that have the sign or not (the paper).
    Plain,
}

/// The sum divided by the sum of the weights of the terms that count, in order. If that is smaller than `least` in magnitude,
/// it is taken for `instead`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Divide {
    /// Too little to divide by.
    pub least: f64,
    /// What is divided by then.
    pub instead: f64,
}

impl Blend {
    /// A weighted sum: `base + lambda * (w0*x0 + ...)`.
    pub const fn sum(base: Option<Operand>, terms: Vec<Term>, lambda: f64) -> Self {
        Self {
            base,
            terms,
            lambda,
            deltas: false,
            solve: None,
            span: Span::Part,
            vote: None,
            divide: None,
            chain: None,
        }
    }

    /// How often its inputs are read at most: once to compute, and as often as needed to know weights and thresholds before. Sums
    /// take one look, thresholds two, and a third where equal magnitudes must be told apart by their places; importance takes one
    /// more. Weights of rows are found when the rows are computed.
    pub fn sweeps(&self) -> u32 {
        match &self.chain {
            _ if self.terms.is_empty() => 0,
            Some(chain) => 1 + u32::from(chain.looks(self)),
            None => 1 + self.looks().count() + 2 * u32::from(self.is_trimmed_as_whole()),
        }
    }

    /// Elements of each operand and of what it makes; they agree in a valid plan.
    pub fn elements(&self) -> u64 {
        self.terms.first().and_then(|term| term.operand.elements()).unwrap_or(0)
    }

    /// Whether some term counts where its values are among the largest of the whole plan.
    pub(crate) fn is_trimmed_as_whole(&self) -> bool {
        self.terms.iter().any(|term| matches!(term.keep, Keep::LargestOfAll { .. }))
    }

    /// Base and operands.
    pub fn operands(&self) -> impl Iterator<Item = &Operand> {
        self.base.iter().chain(self.terms.iter().map(|term| &term.operand))
    }

    /// Everything that base and operands are made of.
    pub fn slices(&self) -> impl Iterator<Item = &Slice> {
        self.operands().flat_map(Operand::slices)
    }

    /// Whether every term counts everywhere, as what it is.
    pub fn is_plain(&self) -> bool {
        let plain = |term: &Term| {
            term.keep.is_all() && is_one(&term.gain) && !term.rescale && is_one(&term.alone)
        };
        let sum = !self.deltas && self.chain.is_none();
        sum && self.vote.is_none() && self.divide.is_none() && self.terms.iter().all(plain)
    }
}

impl Span {
    const fn is_part(&self) -> bool {
        matches!(self, Self::Part)
    }
}

impl Term {
    /// An operand that counts everywhere.
    pub fn new(operand: impl Into<Operand>, weight: f64) -> Self {
        let operand = operand.into();
        Self { operand, weight, keep: Keep::All, gain: 1.0, rescale: false, alone: 1.0 }
    }
}

impl Keep {
    pub(crate) const fn is_all(&self) -> bool {
        matches!(self, Self::All)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

const fn one() -> f64 {
    1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
const fn is_one(factor: &f64) -> bool {
    factor.to_bits() == 1.0_f64.to_bits()
}
