//! A blend with everything known that must be known before an element is computed, and the masks of a tile of it.

use std::ops::Range;
use std::sync::Arc;

use super::look::{Factors, Known, with_weights};
use super::span::Spanned;
use crate::engine::device::{Edge, Mask, TermRule};
use crate::engine::float::single;
use crate::engine::tile::{Filler, Operands};
use crate::error::Result;
use crate::plan::{Blend, Keep, Span, Term};

/// A blend as it is computed.
pub(in crate::engine) struct Ready {
    /// With the weights that devices take.
    pub(in crate::engine) blend: Blend,
    /// One for each term, if the blend is not plain.
    pub(in crate::engine) terms: Option<Vec<Counting>>,
    /// Its weights, if each row or column has its own.
    pub(in crate::engine) spanned: Option<Spanned>,
}

/// Where a term counts, and as what.
pub(in crate::engine) struct Counting {
    pub(super) recipe: Recipe,
    pub(super) share: f64,
    pub(super) alone: f64,
}

/// How a term's mask is made for any tile.
#[derive(Clone, Debug)]
pub(super) enum Recipe {
    /// The same for every tile.
    Mask(Mask<'static>),
    /// By the rank of magnitudes in a row.
    Ranked { low: f64, high: f64, seed: u64, columns: u64 },
    /// Where the variance of all terms lies inside.
    Varied(Edge),
    /// Where the importance is enough: that of each row's divergence.
    Important { columns: u64, divergences: Arc<Vec<f64>>, least: f64 },
}

/// Bits of the masks of a tile that have any, by term.
pub(in crate::engine) type Bits = Vec<Option<Arc<Vec<u8>>>>;

impl Recipe {
    /// Of a keep that can be told from the plan alone.
    pub(super) fn of(keep: Keep) -> Option<Self> {
        Some(Self::Mask(match keep {
            Keep::All => Mask::All,
            Keep::Above { magnitude } => Mask::Band { low: above(magnitude), high: Edge::NONE },
            Keep::Random { probability, seed } => Mask::Random { seed, below: bound(probability) },
            Keep::Near { t } => Mask::Near(single(t)),
            Keep::Ranked { low, high, seed, columns } => {
                return Some(Self::Ranked { low, high, seed, columns });
            }
            // Never here: the threshold stands in the plan before it is carried out.
            Keep::LargestOfAll { .. } => Mask::Band { low: Edge::NONE, high: Edge::NONE },
            Keep::Largest { .. } | Keep::Varied { .. } | Keep::Important { .. } => return None,
        }))
    }

    fn mask<'a>(&self, bits: Option<&'a Arc<Vec<u8>>>) -> Mask<'a> {
        match (self, bits) {
            (Self::Mask(mask), _) => *mask,
            (_, Some(bits)) => Mask::Bits(bits),
            (_, None) => Mask::Bits(&[]),
        }
    }
}

/// The masks of a tile.
pub(super) fn masks<'a>(recipes: &[Recipe], bits: &'a Bits) -> Vec<Mask<'a>> {
    recipes.iter().zip(bits).map(|(recipe, bits)| recipe.mask(bits.as_ref())).collect()
}

impl Ready {
    /// Whether masks are made for every tile.
    pub(in crate::engine) fn has_bits(&self) -> bool {
        let counting = self.terms.iter().flatten();
        counting.into_iter().any(|counting| !matches!(counting.recipe, Recipe::Mask(_)))
    }

    /// The rules of a tile's terms.
    pub(in crate::engine) fn rules<'a>(&self, bits: &'a Bits) -> Option<Vec<TermRule<'a>>> {
        let rule = |(counting, bits): (&Counting, &'a Option<Arc<Vec<u8>>>)| {
            let Counting { recipe, share, alone } = counting;
            TermRule { mask: recipe.mask(bits.as_ref()), share: *share, alone: *alone }
        };
        Some(self.terms.as_ref()?.iter().zip(bits).map(rule).collect())
    }
}

impl Filler<'_> {
    /// The bits of the masks of a tile.
    pub(in crate::engine) fn bits(
        &self,
        ready: &Ready,
        elements: &Range<u64>,
        buffers: &mut Vec<Operands>,
    ) -> Result<Bits> {
        let terms = ready.terms.iter().flatten();
        let recipes: Vec<Recipe> = terms.map(|counting| counting.recipe.clone()).collect();
        self.bits_of(&ready.blend, &recipes, elements, buffers)
    }

    pub(super) fn bits_of(
        &self,
        blend: &Blend,
        recipes: &[Recipe],
        elements: &Range<u64>,
        buffers: &mut Vec<Operands>,
    ) -> Result<Bits> {
        let mut varied: Option<Arc<Vec<u8>>> = None;
        let mut all = Bits::with_capacity(recipes.len());
        for (term, recipe) in recipes.iter().enumerate() {
            all.push(match recipe {
                Recipe::Mask(_) => None,
                Recipe::Varied(edge) => {
                    let bits = match varied.take() {
                        Some(bits) => bits,
                        None => Arc::new(self.varied_bits(blend, *edge, elements, buffers)?),
                    };
                    Some(Arc::clone(varied.insert(bits)))
                }
                Recipe::Ranked { low, high, seed, columns } => {
                    let probabilities = (*low, *high);
                    let ranked = (probabilities, *seed, *columns);
                    Some(Arc::new(self.ranked_bits(blend, term, ranked, elements, buffers)?))
                }
                Recipe::Important { columns, divergences, least } => {
                    let important = (*columns, divergences.as_slice(), *least);
                    Some(Arc::new(self.important_bits(blend, term, important, elements, buffers)?))
                }
            });
        }
        Ok(all)
    }
}

/// Inside is what is greater.
fn above(magnitude: f64) -> Edge {
    Edge { magnitude: single(magnitude).to_bits() & 0x7fff_ffff, end: 0 }
}

/// Random numbers below this are kept.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a probability: from 0 to 2^32"
)]
pub(super) fn bound(probability: f64) -> u64 {
    (probability.clamp(0.0, 1.0) * 4_294_967_296.0).round_ties_even() as u64
}

/// What is computed, if nothing more is to be found out of the plan's blend.
pub(super) fn without_looks(blend: &Blend) -> Ready {
    match (blend.span, blend.solve) {
        (Span::Rows { columns }, Some(solve)) => spanned(blend, Spanned::Rows { columns, solve }),
        _ => with(blend, &Known::new(blend), &Factors::of(blend)),
    }
}

/// What is computed, once all is known.
pub(super) fn with(blend: &Blend, known: &Known, factors: &Factors) -> Ready {
    let Factors { weights, alone, rescale } = factors;
    if blend.counts_everywhere() && (blend.solve.is_some() || !blend.deltas) {
        return Ready { blend: sum(blend, weights), terms: None, spanned: None };
    }
    let recipes = known.recipes(blend);
    let shares = weights.iter().zip(alone);
    let counting = shares.zip(recipes).map(|((share, alone), recipe)| Counting {
        recipe,
        share: *share,
        alone: *alone,
    });
    let factors = weights.iter().zip(rescale);
    let weigh = |(term, (weight, rescale)): (&Term, (&f64, &f64))| {
        weighed(term, weight * term.gain * rescale)
    };
    let terms = blend.terms.iter().zip(factors).map(weigh).collect();
    let deltas = blend.is_of_deltas();
    let blend = Blend { terms, deltas, solve: None, ..blend.clone() };
    Ready { blend, terms: Some(counting.collect()), spanned: None }
}

/// The weighted sum of all operands.
fn sum(blend: &Blend, weights: &[f64]) -> Blend {
    let (lambda, weights) = with_weights(blend, weights);
    let first = blend.base.iter().map(|base| Term::new(base.clone(), 1.0));
    let terms = first.chain(blend.terms.iter().cloned()).zip(weights);
    let terms = terms.map(|(term, weight)| Term { weight, ..term }).collect();
    Blend::sum(None, terms, lambda)
}

/// What is computed, if rows or columns have weights of their own.
pub(super) fn spanned(blend: &Blend, spanned: Spanned) -> Ready {
    Ready { blend: blend.clone(), terms: None, spanned: Some(spanned) }
}

/// A term that weighs so much.
fn weighed(term: &Term, weight: f64) -> Term {
    Term { weight, ..term.clone() }
}
