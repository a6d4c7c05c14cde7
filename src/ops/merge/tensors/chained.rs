//! Tensors in mergekit's arithmetic.

use super::super::chain::recipe;
use super::super::dtypes::chain_dtypes;
use super::super::methods::{Kind, Values, Variant};
use super::super::slices::Slice;
use super::{Operand, Tensors, refuse_codes};
use crate::error::Result;
use crate::format::Dtype;
use crate::ops::operand::line_up;
use crate::ops::quantised::refuse_quantised;

impl Tensors<'_> {
    /// Writes a tensor down in mergekit's arithmetic, or its problem; says whether that is done.
    pub(super) fn chain(
        &mut self,
        name: &str,
        home: usize,
        slice: &Slice<'_>,
        operands: &[Operand<'_>],
        values: &Values,
    ) -> Result<bool> {
        let used: Vec<&Dtype> =
            operands.iter().flat_map(|o| o.stretches.iter().map(|s| s.dtype)).collect();
        if !used.iter().all(|dtype| dtype.is_float()) {
            return Ok(false);
        }
        let variant = self.config.extension.variant;
        if self.vectors || variant != Variant::default() {
            let cause = "mergekit's arithmetic knows neither saved vectors nor the papers' variants: use `--numerics precise`";
            self.blame("", cause.to_owned(), name);
            return Ok(true);
        }
        let kind = self.config.method.kind;
        let (dtype, out) = (self.config.dtype.as_ref(), self.config.out_dtype.as_ref());
        let wider = kind == Kind::RamPlus;
        let found = chain_dtypes(&used, dtype, out, wider).and_then(|(dtype, out)| {
            let (seed, shape) = (self.request.random_seed, &operands[0].shape);
            let recipe = recipe(kind, values, slice.base, (&dtype, shape), seed)?;
            Ok((dtype, out, recipe))
        });
        let (dtype, out, recipe) = match found {
            Ok((dtype, out, Some(recipe))) => (dtype, out, recipe),
            Ok((_, _, None)) => {
                self.precise = true;
                return Ok(false);
            }
            Err(problem) => {
                self.blame("", problem, name);
                return Ok(true);
            }
        };
        let as_is = recipe.copied().is_some() && used.iter().all(|used| **used == dtype);
        if as_is && out == dtype {
            return Ok(false);
        }
        if operands.iter().flat_map(|o| &o.stretches).any(|stretch| stretch.recipe.is_some()) {
            let cause = "mergekit's arithmetic is not defined for adapters and quantised weights: use `--numerics precise`";
            self.blame("", cause.to_owned(), name);
            return Ok(true);
        }
        for (input, operand) in slice.inputs.iter().zip(operands) {
            refuse_quantised(&[input.model], &operand.name)?;
            refuse_codes(input.model, &operand.name, &used)?;
        }
        let shape = operands[0].shape.clone();
        let last = operands.iter().map(|operand| operand.name.clone()).max();
        self.drawn.insert(name.to_owned(), last.unwrap_or_default());
        let operands: Vec<Vec<_>> = operands
            .iter()
            .zip(&slice.inputs)
            .map(|(operand, input)| self.draft.operands(self.role(input), &operand.stretches))
            .collect();
        let groups = line_up(&operands).unwrap_or_default();
        if recipe.looks_ahead() && groups.len() > 1 {
            let cause = format!(
                "{} of models that lay out their experts differently is not supported yet",
                self.config.method.name
            );
            self.blame("", cause, name);
            return Ok(true);
        }
        let parts = groups.iter().map(|group| recipe.part(&dtype, group)).collect();
        self.push(home, name, out, shape, parts);
        Ok(true)
    }
}
