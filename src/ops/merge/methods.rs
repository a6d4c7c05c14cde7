//! The merge methods: their parameters, what they need, and the formula of those that are carried out.
//!
//! To add a method: its row in [`METHODS`] is there already; give [`Method::formula`] its arm and its kind a place in
//! [`Kind::is_supported`].

use std::collections::BTreeMap;

use super::parameters::Scalar;

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
        matches!(self, Self::Linear | Self::TaskArithmetic | Self::Passthrough)
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
    fn flag(&self, name: &str) -> bool {
        self.shared.get(name).is_some_and(|value| value.flag())
    }

    /// A parameter of every input; inputs without one count as 0 (only a base has none).
    fn numbers(&self, name: &str) -> Vec<f64> {
        self.own.iter().map(|own| own.get(name).map_or(0.0, |value| value.number())).collect()
    }
}

/// How a tensor comes from its inputs, which are meant by their position: `base + lambda * (w0*x0 + w1*x1 + ...)`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Formula {
    pub(super) base: Option<usize>,
    pub(super) terms: Vec<(usize, f64)>,
    pub(super) lambda: f64,
}

impl Formula {
    /// The one input that the result is equal to.
    pub(super) fn copied(&self) -> Option<usize> {
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
    /// Methods that must look at a whole tensor first (slerp, nuslerp, multislerp, karcher, `model_stock`) belong here
    /// too: a formula whose weights the engine solves for.
    pub(super) fn formula(&self, values: &Values, base: Option<usize>) -> Result<Formula, String> {
        match self.kind {
            Kind::Linear => linear(values),
            Kind::TaskArithmetic => task_arithmetic(values, base),
            Kind::Passthrough => Ok(passthrough(values)),
            Kind::Slerp | Kind::Nuslerp | Kind::Multislerp | Kind::Karcher | Kind::ModelStock => {
                Err(format!("{} is not supported yet", self.name))
            }
            _ => Err(format!("{} is not supported yet", self.name)),
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
    Ok(Formula { base: None, terms: weights.into_iter().enumerate().collect(), lambda: 1.0 })
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
    Ok(Formula { base: Some(base), terms: others().flat_map(pair).collect(), lambda })
}

/// The only input, times `scale`.
fn passthrough(values: &Values) -> Formula {
    let scale = values.own.first().and_then(|own| own.get("scale"));
    Formula { base: None, terms: vec![(0, scale.map_or(1.0, |value| value.number()))], lambda: 1.0 }
}
