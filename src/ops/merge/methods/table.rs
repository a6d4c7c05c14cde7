//! The row of every method of mergekit 0.1.5: its name, inputs and parameters with their defaults and ranges.

use super::super::parameters::Scalar;
use super::{Base, Kind, Method};

/// A parameter of a method.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Parameter {
    pub(in super::super) name: &'static str,
    /// True or false, not a number.
    pub(in super::super) flag: bool,
    /// Its value where nothing is said; none if it must be given (or has no value).
    pub(in super::super) default: Option<Scalar>,
    pub(in super::super) required: bool,
    /// The smallest and the largest value that makes sense.
    pub(in super::super) range: (f64, f64),
}

impl Parameter {
    /// What a number is wrong with, if it is outside the range.
    pub(in super::super) fn misfit(&self, number: f64) -> Option<String> {
        let (least, most) = self.range;
        if !number.is_finite() {
            return Some(format!("is {number}, expected a finite number"));
        }
        if (least..=most).contains(&number) {
            return None;
        }
        Some(match (least.is_finite(), most.is_finite()) {
            (true, true) => format!("is {number}, expected {least} to {most}"),
            _ => format!("is {number}, expected at least {least}"),
        })
    }

    const fn within(self, least: f64, most: f64) -> Self {
        Self { range: (least, most), ..self }
    }

    const fn positive(self) -> Self {
        self.within(0.0, f64::INFINITY)
    }
}

/// Taken by every method, without effect.
pub(super) const INT8_MASK: Parameter = flag("int8_mask", false);

const ANYTHING: (f64, f64) = (f64::NEG_INFINITY, f64::INFINITY);

const fn number(name: &'static str, default: f64) -> Parameter {
    let default = Some(Scalar::Number(default));
    Parameter { name, flag: false, default, required: false, range: ANYTHING }
}

const fn flag(name: &'static str, default: bool) -> Parameter {
    let default = Some(Scalar::Flag(default));
    Parameter { name, flag: true, default, required: false, range: ANYTHING }
}

const fn optional(name: &'static str) -> Parameter {
    Parameter { name, flag: false, default: None, required: false, range: ANYTHING }
}

const fn required(name: &'static str) -> Parameter {
    Parameter { required: true, ..optional(name) }
}

const WEIGHT: Parameter = required("weight");
const DENSITY: Parameter = number("density", 1.0).within(0.0, 1.0);
const GAMMA: Parameter = number("gamma", 0.01).within(0.0, 1.0);
/// How far probabilities of DELLA go to either side of the density.
const SPREAD: Parameter = number("epsilon", 0.15).within(0.0, 0.5);
/// The change that RAM takes for one.
const ACTIVE: Parameter = number("epsilon", 1e-5).positive();

const WEIGHT_AND_DENSITY: &[Parameter] = &[WEIGHT, DENSITY];
const CRUMBS: &[Parameter] = &[WEIGHT, DENSITY, GAMMA];
const DELLA: &[Parameter] = &[WEIGHT, DENSITY, SPREAD];

/// Parameters of every method that adds task vectors.
const fn vectors(normalize: bool, rescale: bool) -> [Parameter; 4] {
    [flag("normalize", normalize), flag("rescale", rescale), number("lambda", 1.0), INT8_MASK]
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
pub(in super::super) const METHODS: &[Method] = &[
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
        &[flag("normalize_weights", true), number("eps", 1e-8).positive()],
        &[WEIGHT],
    ),
    row(
        Kind::Karcher,
        "karcher",
        Base::Input,
        (1, ANY),
        &[number("max_iter", 10.0).within(0.0, 10_000.0), number("tol", 1e-5).positive()],
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
        &[number("select_topk", 1.0).within(0.0, 1.0), INT8_MASK],
        &[],
    ),
    row(Kind::Ram, "ram", Base::Required, (1, ANY), &[ACTIVE], &[]),
    row(
        Kind::RamPlus,
        "ramplus_tl",
        Base::Required,
        (1, ANY),
        &[ACTIVE, number("r", 0.1), number("alpha", 0.2).positive()],
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
    row(Kind::Nearswap, "nearswap", Base::Required, (1, 1), &[required("t").positive()], &[]),
    row(Kind::ArceeFusion, "arcee_fusion", Base::Required, (1, 1), &[], &[]),
    row(Kind::Passthrough, "passthrough", Base::Donor, (1, 1), &[], &[optional("scale")]),
];
