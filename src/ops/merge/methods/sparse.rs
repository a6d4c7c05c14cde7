//! Methods that add differences from a base model, of which some elements count.

use super::formula::{Formula, Site, Weighted};
use super::{Kind, Values};
use crate::plan::{Divide, Keep, Solve, Vote};

/// Weights that add up to less are not divided by, where no vote is taken (mergekit).
const LEAST_SUM: f64 = 1e-8;

/// Where a vote is taken only nothing is not divided by: terms of weight 0, and weights that cancel each other.
const LEAST_AGREED: f64 = f32::MIN_POSITIVE as f64;

/// `base + lambda * sum(w_i s(x_i - base))`, where `s` leaves some elements: task arithmetic (arXiv 2212.04089), TIES (2306.01708),
/// DARE (2311.03099), Model Breadcrumbs (2312.06795), DELLA (2406.11617).
///
/// With `normalize` the sum is divided by that of the weights; after a vote, by that of the terms that count.
pub(super) fn task_vectors(
    kind: Kind,
    values: &Values,
    base: usize,
    site: &Site<'_>,
) -> Result<Formula, String> {
    let mut terms = Vec::new();
    for input in values.others(Some(base)) {
        let (keep, density) = kept(kind, values, input, site, terms.len())?;
        let rescales = values.flag("rescale") && keep != Keep::All;
        let by_paper = rescales && site.variant.rescale && matches!(keep, Keep::Random { .. });
        terms.push(Weighted {
            keep,
            gain: if by_paper && density > 0.0 { 1.0 / density } else { 1.0 },
            rescale: rescales && !by_paper,
            ..Weighted::new(input, values.of(input, "weight"))
        });
    }
    let normalizes = values.flag("normalize");
    let mut formula = Formula { lambda: values.number("lambda"), ..Formula::deltas(base, terms) };
    if kind.votes() {
        formula.vote = Some(if site.variant.consensus { Vote::Plain } else { Vote::Weighted });
        formula.divide = normalizes.then_some(Divide { least: LEAST_AGREED, instead: 1.0 });
    } else if normalizes {
        let sum: f64 = formula.terms.iter().map(|term| term.weight).sum();
        if sum.abs() >= LEAST_SUM {
            for term in &mut formula.terms {
                term.weight /= sum;
            }
        }
    }
    Ok(formula)
}

/// Which elements of an input's difference count, and what share of them.
fn kept(
    kind: Kind,
    values: &Values,
    input: usize,
    site: &Site<'_>,
    term: usize,
) -> Result<(Keep, f64), String> {
    let density = values.of(input, "density");
    let n = site.elements();
    let keep = match kind {
        Kind::Ties if site.variant.trim => {
            let group = u32::try_from(input).unwrap_or(u32::MAX);
            Keep::LargestOfAll { group, share: density.clamp(0.0, 1.0) }
        }
        _ if kind == Kind::TaskArithmetic || density >= 1.0 => Keep::All,
        _ if density <= 0.0 => Keep::Largest { skip: 0, count: 0 },
        Kind::Ties => largest(0, share(density, n).max(1), n),
        Kind::Breadcrumbs | Kind::BreadcrumbsTies => {
            let (outliers, count) = (share(values.of(input, "gamma"), n), share(density, n));
            // Where both are more than there is, fewer outliers are left out.
            let small = n.saturating_sub(count).saturating_sub(outliers);
            largest(n - count - small, count, n)
        }
        Kind::Della | Kind::DellaLinear => {
            let spread = values.of(input, "epsilon");
            let (low, high) = (density - spread, density + spread);
            if low <= 0.0 || high >= 1.0 {
                return Err(format!(
                    "`density` {density} and `epsilon` {spread} make probabilities from {low} to {high}, which must lie between 0 and 1"
                ));
            }
            Keep::Ranked { low, high, seed: site.stream(term), columns: site.columns() }
        }
        _ => Keep::Random { probability: density, seed: site.stream(term) },
    };
    Ok((keep, density))
}

fn largest(skip: u64, count: u64, n: u64) -> Keep {
    if count >= n { Keep::All } else { Keep::Largest { skip, count } }
}

/// So many of `n` elements, rounded down.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "mergekit's own arithmetic: the product in f64, cut"
)]
fn share(of: f64, n: u64) -> u64 {
    ((of * n as f64) as u64).min(n)
}

/// SCE (arXiv 2408.07990): **s**elect the elements that vary most between models, **c**alculate weights from the energy of what is left,
/// **e**rase what disagrees with the majority's sign.
pub(super) fn sce(values: &Values, base: usize) -> Formula {
    const LEAST_ENERGY: f64 = 1e-6;
    let share = values.number("select_topk");
    let keep = if share < 1.0 { Keep::Varied { share } } else { Keep::All };
    let term = |input| Weighted { keep, ..Weighted::new(input, 1.0) };
    Formula {
        solve: Some(Solve::Energy { least: LEAST_ENERGY }),
        vote: Some(Vote::Plain),
        divide: Some(Divide { least: LEAST_ENERGY, instead: LEAST_ENERGY }),
        ..Formula::deltas(base, values.others(Some(base)).map(term).collect())
    }
}

/// RAM (arXiv 2601.13572): elements that one model changed are added, those that several changed are averaged. `ramplus_tl` adds the
/// former with a factor that grows with how much the model shares with others.
pub(super) fn ram(kind: Kind, values: &Values, base: usize) -> Formula {
    let keep = Keep::Above { magnitude: values.number("epsilon") };
    let term = |input| Weighted { keep, ..Weighted::new(input, 1.0) };
    let overlap = || Solve::Overlap { r: values.number("r"), alpha: values.number("alpha") };
    Formula {
        solve: (kind == Kind::RamPlus).then(overlap),
        divide: Some(Divide { least: 0.5, instead: 1.0 }),
        ..Formula::deltas(base, values.others(Some(base)).map(term).collect())
    }
}

/// From the base towards the other model, element by element, by no more than `t`.
pub(super) fn nearswap(values: &Values, base: usize) -> Formula {
    let keep = Keep::Near { t: values.number("t") };
    let term = |input| Weighted { keep, ..Weighted::new(input, 1.0) };
    Formula::deltas(base, values.others(Some(base)).map(term).collect())
}

/// The base, and of the other model the elements whose change matters most.
pub(super) fn arcee_fusion(values: &Values, base: usize, site: &Site<'_>) -> Formula {
    let keep = Keep::Important { columns: site.columns() };
    let term = |input| Weighted { keep, ..Weighted::new(input, 1.0) };
    Formula::deltas(base, values.others(Some(base)).map(term).collect())
}
