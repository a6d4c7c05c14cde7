//! The merge methods: their parameters, what they need, and the formula of those that are carried out.
//!
//! To add a method: its row in [`METHODS`] is there already; give [`Method::formula`] its arm and its kind a place in
//! [`Kind::is_supported`].

use std::collections::BTreeMap;

use super::parameters::Scalar;
use crate::plan::Solve;

/// A method, by mergekit's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Linear,
    Slerp,
    Nuslerp,
    Multislerp,
    Karcher,
    TaskArithmetic,
    Ties,
    DareLinear,
    DareTies,
    Breadcrumbs,
    BreadcrumbsTies,
    Della,
    DellaLinear,
    Sce,
    Ram,
    RamPlus,
    ModelStock,
    Nearswap,
    ArceeFusion,
    Passthrough,
}

impl Kind {
    /// Whether this program carries it out.
    pub(super) fn is_supported(self) -> bool {
        matches!(
            self,
            Self::Linear
                | Self::TaskArithmetic
                | Self::Passthrough
                | Self::Slerp
                | Self::Nuslerp
                | Self::Multislerp
                | Self::Karcher
                | Self::ModelStock
                | Self::Ties
                | Self::DareLinear
                | Self::DareTies
                | Self::Breadcrumbs
                | Self::BreadcrumbsTies
                | Self::Della
                | Self::DellaLinear
                | Self::Ram
                | Self::RamPlus
                | Self::Nearswap
        )
    }
}

/// What a base model is to a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// Must be there, and is not one of the inputs.
    Required,
    /// Differences are taken to it if it is there.
    Optional,
    /// An input like the others.
    Input,
    /// Only says where config and tokenizer come from.
    Donor,
}

/// A parameter of a method.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    /// True or false, not a number.
    pub(super) flag: bool,
    /// Its value where nothing is said; none if it must be given (or has no value).
    pub(super) default: Option<Scalar>,
    pub(super) required: bool,
}

/// A method's row.
#[derive(Debug)]
pub(super) struct Method {
    pub(super) kind: Kind,
    pub(super) name: &'static str,
    pub(super) base: Base,
    /// How many models it takes, the base of those that need one left out.
    pub(super) least: usize,
    pub(super) most: usize,
    /// Parameters of the whole merge.
    pub(super) shared: &'static [Parameter],
    /// Parameters of each model.
    pub(super) own: &'static [Parameter],
}

const fn number(name: &'static str, default: f64) -> Parameter {
    Parameter { name, flag: false, default: Some(Scalar::Number(default)), required: false }
}

const fn flag(name: &'static str, default: bool) -> Parameter {
    Parameter { name, flag: true, default: Some(Scalar::Flag(default)), required: false }
}

const fn required(name: &'static str) -> Parameter {
    Parameter { name, flag: false, default: None, required: true }
}

const WEIGHT: Parameter = required("weight");
const DENSITY: Parameter = number("density", 1.0);
const WEIGHT_AND_DENSITY: &[Parameter] = &[WEIGHT, DENSITY];
const CRUMBS: &[Parameter] = &[WEIGHT, DENSITY, number("gamma", 0.01)];
const DELLA: &[Parameter] = &[WEIGHT, DENSITY, number("epsilon", 0.15)];

/// Parameters of every method that adds task vectors.
const fn vectors(normalize: bool, rescale: bool) -> [Parameter; 4] {
    [
        flag("normalize", normalize),
        flag("rescale", rescale),
        number("lambda", 1.0),
        flag("int8_mask", false),
    ]
}

const PLAIN: &[Parameter] = &vectors(false, false);
const NORMALIZED: &[Parameter] = &vectors(true, false);
const RESCALED: &[Parameter] = &vectors(false, true);
const BOTH: &[Parameter] = &vectors(true, true);

const ANY: usize = usize::MAX;

const fn row(
    kind: Kind,
    name: &'static str,
    base: Base,
    (least, most): (usize, usize),
    shared: &'static [Parameter],
    own: &'static [Parameter],
) -> Method {
    Method { kind, name, base, least, most, shared, own }
}

/// Every method of mergekit 0.1.5.
pub(super) const METHODS: &[Method] = &[
    row(Kind::Linear, "linear", Base::Input, (1, ANY), &[flag("normalize", true)], &[WEIGHT]),
    row(Kind::Slerp, "slerp", Base::Required, (1, 1), &[required("t")], &[]),
    row(
        Kind::Nuslerp,
        "nuslerp",
        Base::Optional,
        (2, 2),
        &[flag("nuslerp_flatten", true), flag("nuslerp_row_wise", false)],
        &[WEIGHT],
    ),
    row(
        Kind::Multislerp,
        "multislerp",
        Base::Optional,
        (1, ANY),
        &[flag("normalize_weights", true), number("eps", 1e-8)],
        &[WEIGHT],
    ),
    row(
        Kind::Karcher,
        "karcher",
        Base::Input,
        (1, ANY),
        &[number("max_iter", 10.0), number("tol", 1e-5)],
        &[],
    ),
    row(
        Kind::TaskArithmetic,
        "task_arithmetic",
        Base::Required,
        (1, ANY),
        PLAIN,
        WEIGHT_AND_DENSITY,
    ),
    row(Kind::Ties, "ties", Base::Required, (1, ANY), NORMALIZED, WEIGHT_AND_DENSITY),
    row(Kind::DareLinear, "dare_linear", Base::Required, (1, ANY), RESCALED, WEIGHT_AND_DENSITY),
    row(Kind::DareTies, "dare_ties", Base::Required, (1, ANY), RESCALED, WEIGHT_AND_DENSITY),
    row(Kind::Breadcrumbs, "breadcrumbs", Base::Required, (1, ANY), PLAIN, CRUMBS),
    row(Kind::BreadcrumbsTies, "breadcrumbs_ties", Base::Required, (1, ANY), PLAIN, CRUMBS),
    row(Kind::Della, "della", Base::Required, (1, ANY), BOTH, DELLA),
    row(Kind::DellaLinear, "della_linear", Base::Required, (1, ANY), RESCALED, DELLA),
    row(
        Kind::Sce,
        "sce",
        Base::Required,
        (1, ANY),
        &[number("select_topk", 1.0), flag("int8_mask", false)],
        &[],
    ),
    row(Kind::Ram, "ram", Base::Required, (1, ANY), &[number("epsilon", 1e-5)], &[]),
    row(
        Kind::RamPlus,
        "ramplus_tl",
        Base::Required,
        (1, ANY),
        &[number("epsilon", 1e-5), number("r", 0.1), number("alpha", 0.2)],
        &[],
    ),
    row(
        Kind::ModelStock,
        "model_stock",
        Base::Required,
        (2, ANY),
        &[flag("filter_wise", false)],
        &[],
    ),
    row(Kind::Nearswap, "nearswap", Base::Required, (1, 1), &[required("t")], &[]),
    row(Kind::ArceeFusion, "arcee_fusion", Base::Required, (1, 1), &[], &[]),
    row(
        Kind::Passthrough,
        "passthrough",
        Base::Donor,
        (1, 1),
        &[],
        &[Parameter { name: "scale", flag: false, default: None, required: false }],
    ),
];

/// The parameters of one tensor, each with its value or default.
#[derive(Debug, Default)]
pub(super) struct Values {
    pub(super) shared: BTreeMap<&'static str, Scalar>,
    /// One map an input, in the order of the inputs.
    pub(super) own: Vec<BTreeMap<&'static str, Scalar>>,
}

impl Values {
    pub(super) fn flag(&self, name: &str) -> bool {
        self.shared.get(name).is_some_and(|value| value.flag())
    }

    /// A parameter of every input; inputs without one count as 0 (only a base has none).
    pub(super) fn numbers(&self, name: &str) -> Vec<f64> {
        self.own.iter().map(|own| own.get(name).map_or(0.0, |value| value.number())).collect()
    }
}

/// How a tensor comes from its inputs, which are meant by their position: `base + lambda * (w0*x0 + w1*x1 + ...)`, or
/// what [`Solve`] makes of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Formula {
    pub(super) base: Option<usize>,
    pub(super) terms: Vec<(usize, f64)>,
    pub(super) lambda: f64,
    pub(super) solve: Option<Solve>,
}

impl Formula {
    /// The one input that the result is equal to.
    pub(super) fn copied(&self) -> Option<usize> {
        if self.solve.is_some() {
            return None;
        }
        match (self.base, self.terms.as_slice()) {
            #[expect(clippy::float_cmp, reason = "only an exact 1 leaves every bit as it is")]
            (None, [(input, weight)]) if *weight == 1.0 && self.lambda == 1.0 => Some(*input),
            _ => None,
        }
    }
}

impl Method {
    pub(super) fn parameter(&self, name: &str) -> Option<&Parameter> {
        self.shared.iter().chain(self.own).find(|parameter| parameter.name == name)
    }

    pub(super) fn names(&self) -> Vec<&'static str> {
        self.shared.iter().chain(self.own).map(|parameter| parameter.name).collect()
    }

    /// Whether a parameter may differ between models.
    pub(super) fn of_models(&self, name: &str) -> bool {
        self.own.iter().any(|parameter| parameter.name == name)
    }

    /// Whether the base model is not one of the inputs, but what they are compared with.
    pub(super) fn sets_base_apart(&self) -> bool {
        matches!(self.base, Base::Required | Base::Optional)
    }

    /// The formula of a tensor with `values` for its inputs, `base` among them.
    ///
    /// Methods that look at a whole tensor first are formulas whose weights the engine solves for.
    pub(super) fn formula(&self, values: &Values, base: Option<usize>) -> Result<Formula, String> {
        match self.kind {
            Kind::Linear => linear(values),
            Kind::TaskArithmetic => task_arithmetic(values, base),
            Kind::Passthrough => Ok(passthrough(values)),
            Kind::Slerp => slerp(values, base),
            Kind::Nuslerp => nuslerp(values, base),
            Kind::Multislerp => Ok(multislerp(values, base)),
            Kind::Karcher => karcher(values),
            Kind::ModelStock => model_stock(values, base),
            _ => Err(format!("{} is only supported with `--numerics mergekit` yet", self.name)),
        }
    }
}

/// `sum(w_i x_i)`, by default divided by `sum(w_i)`.
fn linear(values: &Values) -> Result<Formula, String> {
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
    Ok(plain(None, weights.into_iter().enumerate().collect()))
}

/// `base + lambda * sum(w_i (x_i - base))`, with `normalize` divided by `sum(w_i)`.
///
/// Each difference is two terms of opposite weight, so that a model that equals the base there adds exactly nothing.
fn task_arithmetic(values: &Values, base: Option<usize>) -> Result<Formula, String> {
    const LEAST_DIVISOR: f64 = 1e-8;
    let base = base.ok_or("it has no base model")?;
    let weights = values.numbers("weight");
    let others = || weights.iter().copied().enumerate().filter(|(input, _)| *input != base);
    let sum: f64 = others().map(|(_, weight)| weight).sum();
    let divides = values.flag("normalize") && sum.abs() >= LEAST_DIVISOR;
    let divisor = if divides { sum } else { 1.0 };
    let pair = |(input, weight): (usize, f64)| {
        let weight = weight / divisor;
        [(input, weight), (base, -weight)]
    };
    let lambda = values.shared.get("lambda").map_or(1.0, |value| value.number());
    Ok(Formula { lambda, ..plain(Some(base), others().flat_map(pair).collect()) })
}

/// The only input, times `scale`.
fn passthrough(values: &Values) -> Formula {
    let scale = values.own.first().and_then(|own| own.get("scale"));
    plain(None, vec![(0, scale.map_or(1.0, |value| value.number()))])
}

fn plain(base: Option<usize>, terms: Vec<(usize, f64)>) -> Formula {
    Formula { base, terms, lambda: 1.0, solve: None }
}

/// Weights that are found from the whole tensor by `solve`; deltas are taken to the base, if there is one.
fn solved(base: Option<usize>, terms: Vec<(usize, f64)>, solve: Solve) -> Formula {
    Formula { solve: Some(solve), ..plain(base, terms) }
}

/// Along the arc from the base (`t` 0) to the other model (`t` 1).
fn slerp(values: &Values, base: Option<usize>) -> Result<Formula, String> {
    let base = base.ok_or("it has no base model")?;
    let other = usize::from(base == 0);
    let t = values.shared.get("t").map_or(0.0, |value| value.number());
    Ok(solved(None, vec![(base, 1.0), (other, 1.0)], Solve::Slerp { t }))
}

/// Along the arc between two models, or between their deltas to the base.
fn nuslerp(values: &Values, base: Option<usize>) -> Result<Formula, String> {
    if !values.flag("nuslerp_flatten") || values.flag("nuslerp_row_wise") {
        return Err(
            "`nuslerp_flatten: false` and `nuslerp_row_wise: true` are not supported yet".into()
        );
    }
    Ok(solved(base, others(values, base), Solve::Nuslerp))
}

/// The weighted mean of directions, as long as the weighted mean of lengths. A single model is itself.
fn multislerp(values: &Values, base: Option<usize>) -> Formula {
    let terms = others(values, base);
    if let [(only, _)] = terms.as_slice() {
        return plain(None, vec![(*only, 1.0)]);
    }
    let eps = values.shared.get("eps").map_or(1e-8, |value| value.number());
    let normalize = values.flag("normalize_weights");
    solved(base, terms, Solve::Multislerp { normalize, eps })
}

/// The mean on the sphere; every model counts alike.
fn karcher(values: &Values) -> Result<Formula, String> {
    let tol = values.shared.get("tol").map_or(1e-5, |value| value.number());
    let moves = values.shared.get("max_iter").map_or(10.0, |value| value.number());
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to fit")]
    let max_iter = if moves.fract() == 0.0 && (0.0..=10_000.0).contains(&moves) {
        moves as u32
    } else {
        return Err(format!("`max_iter: {moves}` is not a whole number from 0 to 10000"));
    };
    let terms = (0..values.own.len()).map(|input| (input, 1.0)).collect();
    Ok(solved(None, terms, Solve::Karcher { max_iter, tol }))
}

/// From the base towards the mean of the models, as far as the angles between them say.
fn model_stock(values: &Values, base: Option<usize>) -> Result<Formula, String> {
    if values.flag("filter_wise") {
        return Err("`filter_wise: true` is not supported yet".into());
    }
    let terms = others(values, base).into_iter().map(|(input, _)| (input, 1.0)).collect();
    Ok(solved(base, terms, Solve::ModelStock))
}

/// The inputs without the base, with their weights.
fn others(values: &Values, base: Option<usize>) -> Vec<(usize, f64)> {
    let weights = values.numbers("weight").into_iter().enumerate();
    weights.filter(|(input, _)| Some(*input) != base).collect()
}
