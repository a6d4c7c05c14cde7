//! Methods in which every element counts: weighted sums, and weights found from norms and angles.

use super::Values;
use super::formula::{Formula, Site, Weighted};
use crate::plan::{Solve, Span};

/// `sum(w_i x_i)`, by default divided by `sum(w_i)`.
pub(super) fn linear(values: &Values) -> Result<Formula, String> {
    let mut weights = values.numbers("weight");
    if values.flag("normalize") {
        let sum: f64 = weights.iter().sum();
        for weight in &mut weights {
            *weight /= sum;
        }
        if weights.iter().any(|weight| !weight.is_finite()) {
            return Err("the weights add up to 0, so they cannot be normalised: set `normalize: false`, or other weights".into());
        }
    }
    let terms = weights.into_iter().enumerate();
    Ok(Formula::sum(None, terms.map(|(input, weight)| Weighted::new(input, weight)).collect()))
}

/// The only input, times `scale`.
pub(super) fn passthrough(values: &Values) -> Formula {
    let scale = values.own.first().and_then(|own| own.get("scale"));
    let scale = scale.map_or(1.0, |value| value.number());
    Formula::sum(None, vec![Weighted::new(0, scale)])
}

/// Weights that are found from the whole tensor by `solve`; deltas are taken to the base, if there is one.
fn solved(base: Option<usize>, terms: Vec<Weighted>, solve: Solve) -> Formula {
    Formula { solve: Some(solve), ..Formula::sum(base, terms) }
}

/// Along the arc from the base (`t` 0) to the other model (`t` 1).
pub(super) fn slerp(values: &Values, base: usize) -> Formula {
    let ends = std::iter::once(base).chain(values.others(Some(base)));
    let terms = ends.map(|input| Weighted::new(input, 1.0)).collect();
    solved(None, terms, Solve::Slerp { t: values.number("t") })
}

/// Along the arc between two models, or between their deltas to the base: of whole tensors, or row by row
/// (`nuslerp_flatten: false`), or column by column (`nuslerp_row_wise` besides, mergekit's word for it).
pub(super) fn nuslerp(values: &Values, base: Option<usize>, site: &Site<'_>) -> Formula {
    let span = match (values.flag("nuslerp_flatten"), values.flag("nuslerp_row_wise")) {
        (true, _) => Span::Part,
        (false, false) => rows(site),
        (false, true) => columns(site),
    };
    Formula { span, ..solved(base, others(values, base), Solve::Nuslerp) }
}

/// The weighted mean of directions, as long as the weighted mean of lengths. A single model is itself.
pub(super) fn multislerp(values: &Values, base: Option<usize>) -> Result<Formula, String> {
    let terms = others(values, base);
    if let [only] = terms.as_slice() {
        return Ok(Formula::copy(only.input));
    }
    let (eps, normalize) = (values.number("eps"), values.flag("normalize_weights"));
    let sum: f64 = terms.iter().map(|term| term.weight).sum();
    if normalize && sum.abs() == 0.0 {
        return Err("the weights add up to 0, so they cannot be normalised: set `normalize_weights: false`, or other weights".into());
    }
    Ok(solved(base, terms, Solve::Multislerp { normalize, eps }))
}

/// The mean on the sphere; every model counts alike.
pub(super) fn karcher(values: &Values) -> Result<Formula, String> {
    let (tol, moves) = (values.number("tol"), values.number("max_iter"));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to fit")]
    let max_iter = if moves.fract() == 0.0 && (0.0..=10_000.0).contains(&moves) {
        moves as u32
    } else {
        return Err(format!("`max_iter: {moves}` is not a whole number from 0 to 10000"));
    };
    if tol <= 0.0 {
        return Err(format!("`tol: {tol}` is not greater than 0"));
    }
    let terms = (0..values.own.len()).map(|input| Weighted::new(input, 1.0)).collect();
    Ok(solved(None, terms, Solve::Karcher { max_iter, tol }))
}

/// From the base towards the mean of the models, as far as the angles between them say; with `filter_wise` row by row.
pub(super) fn model_stock(values: &Values, base: usize, site: &Site<'_>) -> Formula {
    let terms = values.others(Some(base)).map(|input| Weighted::new(input, 1.0)).collect();
    let span = if values.flag("filter_wise") { rows(site) } else { Span::Part };
    Formula { span, ..solved(Some(base), terms, Solve::ModelStock) }
}

/// Runs along the last axis; a vector is one.
fn rows(site: &Site<'_>) -> Span {
    match site.shape.0.len() {
        0 | 1 => Span::Part,
        _ => Span::Rows { columns: site.columns() },
    }
}

/// Runs along the first axis; a vector is one.
fn columns(site: &Site<'_>) -> Span {
    match site.shape.0.len() {
        0 | 1 => Span::Part,
        _ => Span::Columns { columns: site.inner() },
    }
}

/// The inputs without the base, with their weights.
fn others(values: &Values, base: Option<usize>) -> Vec<Weighted> {
    let weighted = |input| Weighted::new(input, values.of(input, "weight"));
    values.others(base).map(weighted).collect()
}
