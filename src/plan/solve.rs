//! Weights that depend on the tensors themselves: which method finds them, and from what.

use serde::{Deserialize, Serialize};

use super::Blend;

/// How the weights of a [`Blend`] are found from norms and angles of its whole part.
///
/// The values `v_i` are the terms' elements as one long vector, minus the base if there is one. Norms and products are those of
/// [`engine::sweep`](crate::engine::sweep), all that follows is f64. A value that is zero throughout gets weight 0. If a sum
/// is not finite, no weight is a number.
///
/// In JSON: `{"slerp": {"t": 0.5}}`, `"nuslerp"`, `{"multislerp": {"normalize": true, "eps": 1e-8}}`,
/// `{"karcher": {"max_iter": 10, "tol": 1e-5}}`, `"model_stock"`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Solve {
    /// Along the arc from the first term (`t` 0) to the second (`t` 1): `sin((1-t)a)/sin a` and `sin(ta)/sin a` of the
    /// angle `a` between them, `1-t` and `t` if `|cos a| > 0.9995`. A norm up to 1e-8 counts as 1. Two terms of weight 1, no base.
    Slerp {
        /// Where on the arc.
        t: f64,
    },
    /// The same with `t` the second weight's share of both, a half if they sum up to less than 1e-6. Norms count as 1e-7
    /// at least. Straight only where the cosine would round to 1 or -1 in f32. Two terms; a base makes it an arc between deltas.
    Nuslerp,
    /// The weighted mean of the directions `v_i / (|v_i| + eps)`, as long as the weighted mean of the norms. If the directions
    /// cancel each other, two terms are blended by their weights, more are an error. Two terms or more; a base as above.
    Multislerp {
        /// Weights are divided by their sum.
        normalize: bool,
        /// Added to norms; directions whose mean is shorter cancel each other.
        eps: f64,
    },
    /// The Karcher mean of the directions on the sphere, as long as the mean of the norms. From the mean direction (the first
    /// term's, if that is shorter than `tol`) it moves along the mean of the arcs to the terms, until that is shorter than
    /// `tol`. Terms that are shorter than `tol`, nearer than `tol`, or opposite do not pull. Terms of weight 1, no base.
    Karcher {
        /// Most moves.
        max_iter: u32,
        /// What is too short to count.
        tol: f64,
    },
    /// From the base towards the mean of the `n` terms, as far as the mean cosine `c` of every two deltas says:
    /// `n c / (1 + (n-1) c)`, 0 if the divisor is less than 1e-6. Products of two norms count as 1e-6 at least. Two terms or more of
    /// weight 1, and a base.
    ModelStock,
    /// Weights are the mean squares of the kept values (0 where they are not kept), divided by their sum; all alike if that is less than
    /// `least` (SCE, arXiv 2408.07990). Terms of weight 1, and a base.
    Energy {
        /// Too little to tell terms apart.
        least: f64,
    },
    /// Not the weight, but `alone` of each term is found: `1 + r * min(shared / own, alpha)`, of the numbers of elements where it is
    /// kept beside another term, and where it is kept alone (mergekit's `ramplus_tl`). Terms of weight 1, and a base.
    Overlap {
        /// How much.
        r: f64,
        /// At most.
        alpha: f64,
    },
}

impl Solve {
    /// Most terms: with the base as one more they are as many as every device takes.
    pub const MAX_TERMS: usize = 63;

    /// Most moves that a plan may ask for.
    const MAX_ITER: u32 = 10_000;

    /// Whether a blend has what the method wants.
    pub(super) fn check(self, blend: &Blend) -> Result<(), String> {
        let count = blend.terms.len();
        let weights = || blend.terms.iter().map(|term| term.weight);
        let (terms, base, weighted) = match self {
            Self::Slerp { .. } => (2..=2, Some(false), false),
            Self::Nuslerp => (2..=2, None, true),
            Self::Multislerp { .. } => (2..=Self::MAX_TERMS, None, true),
            Self::Karcher { .. } => (1..=Self::MAX_TERMS, Some(false), false),
            Self::ModelStock => (2..=Self::MAX_TERMS, Some(true), false),
            Self::Energy { .. } | Self::Overlap { .. } => (1..=Self::MAX_TERMS, Some(true), false),
        };
        let name = self.name();
        if !terms.contains(&count) {
            let (least, most) = (terms.start(), terms.end());
            return Err(format!("{name} of {count} terms; it takes {least} to {most}"));
        }
        if base.is_some_and(|wanted| wanted != blend.base.is_some()) {
            let with = if blend.base.is_some() { "with" } else { "without" };
            return Err(format!("{name} {with} a base"));
        }
        if !weights().all(f64::is_finite) || !blend.lambda.is_finite() {
            return Err(format!("{name} with weights that are not finite"));
        }
        if !weighted && weights().any(|weight| weight.to_bits() != 1.0_f64.to_bits()) {
            return Err(format!("{name} has no weights: all are 1"));
        }
        let fits = match self {
            Self::Slerp { t } => t.is_finite(),
            Self::Multislerp { normalize, eps } => {
                eps.is_finite() && eps >= 0.0 && !(normalize && weights().sum::<f64>().abs() == 0.0)
            }
            Self::Karcher { max_iter, tol } => {
                max_iter <= Self::MAX_ITER && tol.is_finite() && tol > 0.0
            }
            Self::Nuslerp | Self::ModelStock => true,
            Self::Energy { least } => least.is_finite() && least >= 0.0,
            Self::Overlap { r, alpha } => r.is_finite() && alpha.is_finite(),
        };
        if fits { Ok(()) } else { Err(format!("{name} cannot work with {self:?}")) }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Slerp { .. } => "slerp",
            Self::Nuslerp => "nuslerp",
            Self::Multislerp { .. } => "multislerp",
            Self::Karcher { .. } => "karcher",
            Self::ModelStock => "model_stock",
            Self::Energy { .. } => "energy",
            Self::Overlap { .. } => "overlap",
        }
    }
}
