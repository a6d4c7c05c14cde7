//! The merge methods: what they take ([`table`]) and the formula that each makes of a tensor.
//!
//! Formulas are points of one normal form, [`Blend`](crate::plan::Blend):
//!
//! * [`whole`]: every element of every input counts, with weights that are given or found from norms and angles;
//! * [`sparse`]: differences from a base, of which some elements count.
//!
//! To add a method: its row in [`METHODS`], its arm in [`Method::formula`], its golden cases.

mod formula;
mod sparse;
mod table;
mod whole;

use std::collections::BTreeMap;

pub(super) use self::formula::{Formula, Site, Variant};
use self::table::INT8_MASK;
pub(super) use self::table::{METHODS, Parameter};
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
    /// Whether it adds task vectors to a base.
    pub(super) fn adds_vectors(self) -> bool {
        use Kind as K;
        matches!(self, K::TaskArithmetic | K::Ties | K::DareLinear | K::DareTies)
            || matches!(self, K::Breadcrumbs | K::BreadcrumbsTies | K::Della | K::DellaLinear)
    }

    /// Whether terms vote on a sign.
    pub(super) fn votes(self) -> bool {
        matches!(self, Self::Ties | Self::DareTies | Self::BreadcrumbsTies | Self::Della)
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

/// Whether some method has a parameter of this name.
pub(super) fn is_parameter(name: &str) -> bool {
    METHODS.iter().any(|method| method.parameter(name).is_some())
}

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

    /// A parameter of the whole merge; every one that is a number has a default or must be given.
    pub(super) fn number(&self, name: &str) -> f64 {
        self.shared.get(name).map_or(0.0, |value| value.number())
    }

    /// A parameter of every input; inputs without one count as 0 (only a base has none).
    pub(super) fn numbers(&self, name: &str) -> Vec<f64> {
        (0..self.own.len()).map(|input| self.of(input, name)).collect()
    }

    fn of(&self, input: usize, name: &str) -> f64 {
        self.own.get(input).and_then(|own| own.get(name)).map_or(0.0, |value| value.number())
    }

    /// Multiplies the weights of inputs and keeps the sum of these; none if they would have none.
    pub(super) fn weigh(&mut self, factors: &[(usize, f64)]) -> Option<()> {
        let sum: f64 = factors.iter().map(|(input, _)| self.of(*input, "weight")).sum();
        let product = |(input, factor): &(usize, f64)| self.of(*input, "weight") * factor;
        let products: Vec<f64> = factors.iter().map(product).collect();
        let scale = sum / products.iter().sum::<f64>();
        if !scale.is_finite() {
            return None;
        }
        for ((input, _), product) in factors.iter().zip(products) {
            self.own.get_mut(*input)?.insert("weight", Scalar::Number(product * scale));
        }
        Some(())
    }

    /// The inputs besides the base.
    fn others(&self, base: Option<usize>) -> impl Iterator<Item = usize> {
        (0..self.own.len()).filter(move |input| Some(*input) != base)
    }
}

impl Method {
    pub(super) fn parameter(&self, name: &str) -> Option<&Parameter> {
        let everywhere = std::iter::once(&INT8_MASK);
        self.shared.iter().chain(self.own).chain(everywhere).find(|p| p.name == name)
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

    /// The formula of the tensor at `site` with `values` for its inputs, `base` among them.
    ///
    /// Methods that look at a whole tensor first are formulas whose weights and thresholds the engine finds.
    pub(super) fn formula(
        &self,
        values: &Values,
        base: Option<usize>,
        site: &Site<'_>,
    ) -> Result<Formula, String> {
        let needed = || base.ok_or_else(|| "it has no base model".to_owned());
        match self.kind {
            Kind::Linear => whole::linear(values),
            Kind::Passthrough => Ok(whole::passthrough(values)),
            Kind::Slerp => Ok(whole::slerp(values, needed()?)),
            Kind::Nuslerp => Ok(whole::nuslerp(values, base, site)),
            Kind::Multislerp => whole::multislerp(values, base),
            Kind::Karcher => whole::karcher(values),
            Kind::ModelStock => Ok(whole::model_stock(values, needed()?, site)),
            Kind::TaskArithmetic
            | Kind::Ties
            | Kind::DareLinear
            | Kind::DareTies
            | Kind::Breadcrumbs
            | Kind::BreadcrumbsTies
            | Kind::Della
            | Kind::DellaLinear => sparse::task_vectors(self.kind, values, needed()?, site),
            Kind::Sce => Ok(sparse::sce(values, needed()?)),
            Kind::Ram | Kind::RamPlus => Ok(sparse::ram(self.kind, values, needed()?)),
            Kind::Nearswap => Ok(sparse::nearswap(values, needed()?)),
            Kind::ArceeFusion => Ok(sparse::arcee_fusion(values, needed()?, site)),
        }
    }
}

#[cfg(test)]
mod tests;
