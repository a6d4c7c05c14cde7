//! What methods are under mergekit's arithmetic: the same inputs and parameters, but nothing is folded, so that every
//! rounding is where mergekit has it.

use std::collections::BTreeMap;

use super::methods::{Kind, Values};
use crate::format::{Dtype, Shape};
use crate::plan::{Blend, Chain, Divide, Keep, Operand, Part, Plan, Steps, Term, Vote};

/// Smaller than this, the sum of weights is not divided by.
const LEAST_DIVISOR: f64 = 1e-8;

/// A tensor's operations, whose inputs are meant by their position.
#[derive(Debug, PartialEq)]
pub(super) struct Recipe {
    pub(super) steps: Steps,
    base: Option<usize>,
    terms: Vec<Ingredient>,
    lambda: f64,
    vote: Option<Vote>,
    divide: Option<Divide>,
}

#[derive(Debug, PartialEq)]
struct Ingredient {
    input: usize,
    weight: f64,
    keep: Keep,
    rescale: bool,
}

impl Recipe {
    /// The input that is copied, if that is all.
    pub(super) fn copied(&self) -> Option<usize> {
        match (self.steps, self.terms.as_slice()) {
            #[expect(clippy::float_cmp, reason = "only an exact 1 leaves every bit as it is")]
            (Steps::Scaled, [only]) if only.weight == 1.0 => Some(only.input),
            _ => None,
        }
    }

    /// Whether it looks at all of a tensor before it computes any element.
    pub(super) fn looks_ahead(&self) -> bool {
        let by_element =
            |keep: &Keep| matches!(keep, Keep::All | Keep::Above { .. } | Keep::Near { .. });
        let kept = self.terms.iter().all(|term| by_element(&term.keep));
        !kept || matches!(self.steps, Steps::SharesTimes { .. })
    }

    const fn of(steps: Steps, base: Option<usize>, terms: Vec<Ingredient>) -> Self {
        Self { steps, base, terms, lambda: 1.0, vote: None, divide: None }
    }

    /// The part of a group of slices, one for each input.
    pub(super) fn part(&self, dtype: &Dtype, group: &[Operand]) -> Part {
        let term = |of: &Ingredient| Term {
            keep: of.keep,
            rescale: of.rescale,
            ..Term::new(group[of.input].clone(), of.weight)
        };
        let base = self.base.map(|base| group[base].clone());
        let sum = Blend::sum(base, self.terms.iter().map(term).collect(), self.lambda);
        Part::Blend(Box::new(Blend {
            deltas: self.base.is_some(),
            vote: self.vote,
            divide: self.divide,
            chain: Some(Chain { dtype: dtype.clone(), steps: self.steps, draws: 0 }),
            ..sum
        }))
    }
}

impl Ingredient {
    const fn all(input: usize, weight: f64) -> Self {
        Self { input, weight, keep: Keep::All, rescale: false }
    }
}

/// The operations of a tensor; none for methods that have precise arithmetic only.
///
/// # Errors
/// Parameters that mergekit fails with, or that are not carried out in its arithmetic.
pub(super) fn recipe(
    kind: Kind,
    values: &Values,
    base: Option<usize>,
    (dtype, shape): (&Dtype, &Shape),
    seed: u64,
) -> Result<Option<Recipe>, String> {
    let needs_base = || base.ok_or_else(|| "it has no base model".to_owned());
    Ok(Some(match kind {
        Kind::Passthrough => {
            let scale = values.own.first().and_then(|own| own.get("scale"));
            let weight = scale.map_or(1.0, |value| value.number());
            Recipe::of(Steps::Scaled, None, vec![Ingredient::all(0, weight)])
        }
        Kind::Linear => linear(values)?,
        Kind::TaskArithmetic
        | Kind::Ties
        | Kind::DareLinear
        | Kind::DareTies
        | Kind::Breadcrumbs
        | Kind::BreadcrumbsTies
        | Kind::Della
        | Kind::DellaLinear => task_vectors(kind, values, needs_base()?, (dtype, shape), seed)?,
        Kind::Nearswap => {
            let base = needs_base()?;
            let t = shared(values, "t", 0.0);
            let terms = others(values, base, Keep::Near { t });
            Recipe::of(Steps::Near, Some(base), terms)
        }
        Kind::Ram | Kind::RamPlus => {
            let base = needs_base()?;
            let magnitude = shared(values, "epsilon", 1e-5);
            let steps = if kind == Kind::Ram {
                Steps::Shares
            } else {
                let (r, alpha) = (shared(values, "r", 0.1), shared(values, "alpha", 0.2));
                Steps::SharesTimes { r, alpha }
            };
            Recipe::of(steps, Some(base), others(values, base, Keep::Above { magnitude }))
        }
        _ => return Ok(None),
    }))
}

fn shared(values: &Values, name: &str, default: f64) -> f64 {
    values.shared.get(name).map_or(default, |value| value.number())
}

/// Every input but the base, with weight 1.
fn others(values: &Values, base: usize, keep: Keep) -> Vec<Ingredient> {
    let inputs = (0..values.own.len()).filter(|input| *input != base);
    inputs.map(|input| Ingredient { keep, ..Ingredient::all(input, 1.0) }).collect()
}

fn linear(values: &Values) -> Result<Recipe, String> {
    let weights = values.numbers("weight");
    let divide = values.flag("normalize").then_some(Divide { least: 0.0, instead: 1.0 });
    #[expect(clippy::cast_possible_truncation, reason = "as mergekit adds them up")]
    let sum = weights.iter().fold(0.0, |sum, weight| sum + *weight as f32);
    if divide.is_some() && sum.abs() <= 0.0 {
        return Err("the weights add up to 0, so they cannot be normalised: set `normalize: false`, or other weights".into());
    }
    let terms = weights.into_iter().enumerate().map(|(i, weight)| Ingredient::all(i, weight));
    Ok(Recipe { divide, ..Recipe::of(Steps::Linear, None, terms.collect()) })
}

fn task_vectors(
    kind: Kind,
    values: &Values,
    base: usize,
    (dtype, shape): (&Dtype, &Shape),
    seed: u64,
) -> Result<Recipe, String> {
    let votes = matches!(kind, Kind::Ties | Kind::DareTies | Kind::BreadcrumbsTies | Kind::Della);
    let (weights, densities) = (values.numbers("weight"), values.numbers("density"));
    let (gammas, epsilons) = (values.numbers("gamma"), values.numbers("epsilon"));
    let rescale = values.flag("rescale");
    let mut terms = Vec::new();
    for input in (0..values.own.len()).filter(|input| *input != base) {
        let density = densities[input];
        let keep = match kind {
            Kind::TaskArithmetic => Keep::All,
            _ if density >= 1.0 => Keep::All,
            Kind::Ties => largest(shape, density),
            Kind::DareLinear | Kind::DareTies => Keep::Random { probability: density, seed },
            Kind::Breadcrumbs | Kind::BreadcrumbsTies => crumbs(shape, density, gammas[input]),
            _ => ranked(shape, density, epsilons[input], seed)?,
        };
        let doubles = *dtype == Dtype::F64 && keep != Keep::All;
        let random = matches!(keep, Keep::Random { .. });
        if doubles && (matches!(keep, Keep::Ranked { .. }) || rescale && !random) {
            return Err(
                "mergekit's arithmetic in float64 is not supported here: use `dtype: float32`, or `--numerics precise`".into()
            );
        }
        let rescale = rescale && keep != Keep::All;
        terms.push(Ingredient { input, weight: weights[input], keep, rescale });
    }
    let least = if votes { f64::from_bits(1) } else { LEAST_DIVISOR };
    Ok(Recipe {
        lambda: shared(values, "lambda", 1.0),
        vote: votes.then_some(Vote::Weighted),
        divide: values.flag("normalize").then_some(Divide { least, instead: 1.0 }),
        ..Recipe::of(
            Steps::TaskVectors {
                ascending: matches!(kind, Kind::Breadcrumbs | Kind::BreadcrumbsTies),
            },
            Some(base),
            terms,
        )
    })
}

fn elements(shape: &Shape) -> u64 {
    shape.elements().unwrap_or(0)
}

/// A share of a number of elements, rounded down.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as mergekit does; shares are not negative"
)]
fn share(of: u64, share: f64) -> u64 {
    (share * of as f64) as u64
}

fn largest(shape: &Shape, density: f64) -> Keep {
    let n = elements(shape);
    let count = if density <= 0.0 { 0 } else { share(n, density).max(1).min(n) };
    Keep::Largest { skip: 0, count }
}

fn crumbs(shape: &Shape, density: f64, gamma: f64) -> Keep {
    let n = elements(shape);
    let count = share(n, density).min(n);
    // Where both are more than there is, fewer outliers are left out.
    let skip = share(n, gamma).min(n - count);
    Keep::Largest { skip, count }
}

fn ranked(shape: &Shape, density: f64, epsilon: f64, seed: u64) -> Result<Keep, String> {
    if density <= 0.0 {
        return Ok(Keep::Largest { skip: 0, count: 0 });
    }
    let (low, high) = (density - epsilon, density + epsilon);
    if low <= 0.0 || high >= 1.0 {
        return Err(format!(
            "`density: {density}` plus or minus `epsilon: {epsilon}` must be between 0 and 1"
        ));
    }
    let columns = match shape.0.as_slice() {
        [columns] | [_, columns] => *columns,
        _ => {
            return Err("ranks within tensors of more than two dimensions are not supported in mergekit's arithmetic".into());
        }
    };
    if columns < 2 {
        return Err("ranks within rows of one element do not exist: mergekit fails here; give such tensors `density: 1`".into());
    }
    Ok(Keep::Ranked { low, high, seed, columns })
}

/// Deals the random stream out: tensors take their words in the order of the last of their inputs' names, models in the order
/// of the document. `names` has those names, by name in the output.
pub(super) fn deal(plan: &mut Plan, names: &BTreeMap<String, String>) {
    let mut order: Vec<usize> = (0..plan.tensors.len()).collect();
    order.sort_by_key(|tensor| {
        let name = &plan.tensors[*tensor].name;
        (names.get(name).unwrap_or(name).clone(), name.clone())
    });
    let mut taken = 0_u64;
    for tensor in order {
        for part in &mut plan.tensors[tensor].parts {
            let Part::Blend(blend) = part else { continue };
            let words = Chain::words(blend);
            if let (Some(chain), true) = (&mut blend.chain, words > 0) {
                chain.draws = taken;
                taken = taken.saturating_add(words);
            }
        }
    }
}
