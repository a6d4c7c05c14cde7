//! Weighted sums whose elements have importances of their own.

use super::{DIFFERS, Operand, Tensors, Wanted};
use crate::error::Result;
use crate::ops::merge::extension::Missing;
use crate::ops::merge::importance::Importances;
use crate::ops::merge::methods::Formula;
use crate::ops::operand::effective;

impl Tensors<'_> {
    /// Whether a formula is to be shared out by importances: of one input alone nothing changes, nor of integers.
    pub(super) fn shares(&self, operands: &[Operand<'_>], formula: &Formula) -> bool {
        let float = |o: &Operand<'_>| o.stretches.iter().all(|stretch| stretch.dtype.is_float());
        matches!(self.importances, Importances::Elements(_))
            && formula.weighed().len() > 1
            && operands.iter().all(float)
    }

    /// Shares a formula's weights out by the importances of elements, or writes down why that cannot be.
    pub(super) fn share(
        &mut self,
        wanted: &Wanted<'_>,
        operands: Vec<Operand<'_>>,
        formula: Formula,
    ) -> Result<()> {
        let at = "elo_surgery.importance";
        let (name, slice, all) = (&wanted.name, wanted.slice, self.importances);
        let (mut missing, mut found, mut fits) = (Vec::new(), Vec::new(), true);
        for input in formula.weighed() {
            let (of, operand) = (&slice.inputs[input], &operands[input]);
            let coded = of.model.recipe(&operand.name).is_some();
            if coded || operand.aligned.as_ref().is_some_and(|aligned| !aligned.is_plain()) {
                let model = of.model.name();
                let cause = format!(
                    "importances of elements where values are made (adapters, quantised models, another order of rows) are not supported yet: `{model}`"
                );
                self.blame(at, cause, name);
                fits = false;
                continue;
            }
            let model = &of.of.model;
            let Some(importances) = all.elements_of(model) else { continue };
            let Some((shape, stretches)) = effective(of.model, &operand.name, importances) else {
                missing.push(input);
                continue;
            };
            let odd = stretches.iter().find(|stretch| !stretch.dtype.is_float());
            if shape != operand.shape {
                let what = format!(
                    "`{}` {DIFFERS}: the importances of `{model}` have {shape}, the model {}",
                    operand.name, operand.shape
                );
                self.problems.add(at, what);
                fits = false;
            } else if let Some(stretch) = odd {
                let cause = format!("the importances of `{model}` are {}", stretch.dtype);
                self.blame(at, cause, name);
                fits = false;
            }
            let own = operand.name.clone();
            found.push(Operand { name: own, shape, stretches, aligned: None });
        }
        if !missing.is_empty() {
            if self.config.extension.missing != Missing::Refuse {
                return self.incomplete(wanted, &missing);
            }
            for input in missing {
                let model = &slice.inputs[input].of.model;
                let cause = format!("the importances of `{model}` lack this tensor");
                self.blame(at, cause, name);
            }
            return Ok(());
        }
        if !fits {
            return Ok(());
        }
        let numbers: Vec<usize> = (operands.len()..operands.len() + found.len()).collect();
        let Some(formula) = formula.shared(&numbers) else {
            let cause = "weights that importances share out are from 0 and not all 0".to_owned();
            self.blame(at, cause, name);
            return Ok(());
        };
        let operands: Vec<Operand<'_>> = operands.into_iter().chain(found).collect();
        let same = |_| Ok(formula.clone());
        self.place(name, wanted.place.0, slice, &operands, &formula, same)
    }
}
