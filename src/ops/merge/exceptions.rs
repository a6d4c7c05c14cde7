//! Tensors that are not merged as all others are: rules of the extension, and tensors that some models lack.

use super::expression::Place;
use super::extension::{Missing, Origin, Rule};
use super::methods::{Formula, Parameter};
use super::parameters::Scalar;
use super::reference::Reference;
use super::slices::{Input, Slice};
use super::tensors::{Operand, Tensors, Wanted};
use crate::checkpoint::Role;
use crate::error::Result;
use crate::ops::vector::vocabulary_of;

/// A value that is refused; the problem is written down.
pub(super) struct Refused;

/// What is said of a tensor that some model lacks.
pub(super) const MISSING: &str = "is missing in";

impl<'a> Tensors<'a> {
    /// The rules that fit a tensor of the result.
    pub(super) fn rules(&mut self, name: &str) -> Vec<&'a Rule> {
        let layer = match self.donor.anatomy().role(name) {
            Role::Layer(layer) => Some(layer),
            _ => None,
        };
        let mut rules = Vec::new();
        for (number, rule) in self.config.extension.of(name, layer) {
            self.used[number] = true;
            rules.push(rule);
        }
        rules
    }

    /// What the first rule that says something says of a parameter; a problem where that is out of range.
    pub(super) fn ruled(
        &mut self,
        parameter: &Parameter,
        tensor: &str,
        place: (f64, Option<Place>),
        model: Option<&Reference>,
        rules: &[&Rule],
    ) -> std::result::Result<Option<Scalar>, Refused> {
        let name = parameter.name;
        let says = |rule: &&&Rule| rule.parameter(name, tensor, place, model).is_some();
        let Some(rule) = rules.iter().find(says) else { return Ok(None) };
        let found = rule.parameter(name, tensor, place, model);
        let misfit = found.and_then(|value| parameter.misfit(value.number()));
        match misfit {
            None => Ok(found),
            Some(misfit) => {
                self.blame(&rule.at, format!("`{name}` {misfit}"), tensor);
                Err(Refused)
            }
        }
    }

    /// A tensor that is one model's, whatever the others have.
    pub(super) fn copy(&mut self, wanted: &Wanted<'_>, origin: &Origin) -> Result<()> {
        let slice = wanted.slice;
        let model = match origin {
            Origin::Base => slice.of.base.as_ref().or(self.config.base.as_ref()),
            Origin::Model(model) => Some(model),
        };
        let of_it = |input: &&Input<'_>| Some(&input.of.model) == model;
        // Another module's will do where layers have the same numbers.
        let same =
            |other: &&Slice<'_>| wanted.layer.is_none() || (slice.of.whole && other.of.whole);
        let elsewhere = || self.slices.iter().filter(same).flat_map(|s| &s.inputs).find(of_it);
        let input = slice.inputs.iter().find(of_it).or_else(elsewhere).copied();
        let Some(input) = input else {
            let cause = match origin {
                Origin::Base => "is to be the base model's, and there is none here".to_owned(),
                Origin::Model(model) => format!("is to be that of `{model}`, which is not here"),
            };
            self.problems.add(&slice.of.at, format!("`{}` {cause}", wanted.name));
            return Ok(());
        };
        self.copy_of(wanted, input)
    }

    fn copy_of(&mut self, wanted: &Wanted<'_>, input: Input<'_>) -> Result<()> {
        let slice = wanted.slice;
        let Some(mut operand) = wanted.operand(&input) else {
            self.lacks(wanted, &input, "");
            return Ok(());
        };
        let alone = Slice { of: slice.of, inputs: vec![input], base: None, ..*slice };
        self.align(wanted, &alone, std::slice::from_mut(&mut operand))?;
        let formula = Formula::copy(0);
        let same = |_| Ok(formula.clone());
        self.place(&wanted.name, wanted.place.0, &alone, &[operand], &formula, same)
    }

    /// A tensor that some inputs lack.
    pub(super) fn incomplete(&mut self, wanted: &Wanted<'_>, missing: &[usize]) -> Result<()> {
        let slice = wanted.slice;
        let lacks = |input: usize| missing.contains(&input);
        if let (true, Some(base)) = (self.vectors, slice.base.filter(|base| !lacks(*base))) {
            // A vector that lacks a tensor changes nothing there.
            if missing.len() + 1 == slice.inputs.len() {
                return self.copy_of(wanted, slice.inputs[base]);
            }
            return self.without(wanted, missing);
        }
        match self.config.extension.missing {
            Missing::Refuse => {
                self.refuse_missing(wanted, missing, "");
                Ok(())
            }
            Missing::Base => match slice.base.filter(|base| !lacks(*base)) {
                Some(base) => self.copy_of(wanted, slice.inputs[base]),
                None => {
                    self.refuse_missing(wanted, missing, ", and so it is in the base");
                    Ok(())
                }
            },
            Missing::Present => {
                let method = self.config.method;
                let present = || (0..slice.inputs.len()).filter(|input| !lacks(*input));
                let apart = slice.base.filter(|_| method.sets_base_apart());
                let others = present().filter(|input| Some(*input) != apart).count();
                if apart.is_some_and(lacks) || others < method.least {
                    let why = format!(", and {} cannot do without it", method.name);
                    self.refuse_missing(wanted, missing, &why);
                    return Ok(());
                }
                self.without(wanted, missing)
            }
        }
    }

    /// A tensor made of the other inputs.
    fn without(&mut self, wanted: &Wanted<'_>, missing: &[usize]) -> Result<()> {
        let slice = wanted.slice;
        let present = || (0..slice.inputs.len()).filter(|input| !missing.contains(input));
        let base = slice.base.and_then(|base| present().position(|input| input == base));
        let inputs = present().map(|input| slice.inputs[input]).collect();
        let slice = Slice { of: slice.of, inputs, base, ..*slice };
        let (name, own) = (wanted.name.clone(), wanted.own.clone());
        self.add(&Wanted { name, own, slice: &slice, ..*wanted })
    }

    /// Whether saved vectors have differences for every row of a vocabulary; a problem if not.
    pub(super) fn knows_rows(&mut self, wanted: &Wanted<'_>, operands: &[Operand<'_>]) -> bool {
        if !self.vectors {
            return true;
        }
        let mut known = true;
        for (input, operand) in wanted.slice.inputs.iter().zip(operands) {
            let rows = vocabulary_of(input.model).filter(|rows| *rows < operand.shape.rows());
            if let Some(rows) = rows {
                known = false;
                let (name, model, all) = (&wanted.name, input.model.name(), operand.shape.rows());
                let what = format!(
                    "`{name}`: the vector `{model}` has differences for {rows} of {all} rows: add it with `chat-vector --vector`, which has rules for the others"
                );
                self.problems.add(&input.of.at, what);
            }
        }
        known
    }

    fn refuse_missing(&mut self, wanted: &Wanted<'_>, missing: &[usize], why: &str) {
        for input in missing.iter().map(|input| &wanted.slice.inputs[*input]) {
            self.lacks(wanted, input, why);
        }
    }

    fn lacks(&mut self, wanted: &Wanted<'_>, input: &Input<'_>, why: &str) {
        let (theirs, model) = (wanted.name_in(input), input.model.name());
        let what = format!("tensor `{theirs}` {MISSING} `{model}`{why}");
        self.problems.add(&input.of.at, what);
    }
}
