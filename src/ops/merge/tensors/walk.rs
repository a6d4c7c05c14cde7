//! Which tensors the output has: module by module, whole or by slices of layers.

use super::{LOST, Tensors, Wanted};
use crate::checkpoint::{Modules, Role};
use crate::error::Result;
use crate::ops::merge::slices::{Input, Slice};
use crate::ops::operand::{counterpart, is_buffer};
use crate::ops::vector::is_saved_rows;

impl<'a> Tensors<'a> {
    /// Every tensor of every module; of the stack of layers those that `described` says.
    pub(in super::super) fn add_all(&mut self, described: &[u64]) -> Result<()> {
        for (number, module) in self.modules.all().iter().enumerate() {
            let slices: Vec<&Slice<'_>> =
                self.slices.iter().filter(|slice| slice.module == number).collect();
            match slices.as_slice() {
                [] => self.leave_out(number, &module.name)?,
                [slice] if slice.of.whole => self.add_whole(number, slice)?,
                slices => self.add_slices(number, slices, described)?,
            }
        }
        Ok(())
    }

    /// The donor's tensors of a module, in file order.
    fn names_of(&self, module: usize) -> impl Iterator<Item = &'a str> + use<'a> {
        let (modules, donor) = (self.modules, self.donor);
        let names = donor.names_in_file_order().map(|(_, entry)| entry.name.as_str());
        names.filter(move |name| modules.at(name) == module)
    }

    /// A module that the document does not name: what no rule copies would be lost.
    fn leave_out(&mut self, module: usize, called: &str) -> Result<()> {
        let Some(slice) = self.slices.first() else { return Ok(()) };
        let mut lost = Vec::new();
        for name in self.names_of(module) {
            if self.rules(name).iter().any(|rule| rule.copy.is_some()) {
                self.add(&self.own(name, slice))?;
            } else {
                lost.push(name);
            }
        }
        let Some(first) = lost.first() else { return Ok(()) };
        let (count, donor) = (lost.len(), self.donor.name());
        if self.config.extension.drops_extra {
            let note = format!("`{called}` was left out: {count} tensors (`{first}`, ..)");
            self.draft.note(note);
        } else {
            let what = format!(
                "`{called}` of `{donor}` is not there: its {count} tensors {LOST} (`{first}`, ..); give its `models`, or a rule with `copy`"
            );
            self.problems.add("modules", what);
        }
        Ok(())
    }

    /// Whole models: the donor's tensors, each with its counterparts.
    fn add_whole(&mut self, module: usize, slice: &'a Slice<'a>) -> Result<()> {
        for name in self.names_of(module) {
            let layer = match self.donor.anatomy().role(name) {
                Role::Layer(layer) => Some(layer),
                Role::Other => self.modules.layer(name),
                _ => None,
            };
            self.add(&Wanted { layer, ..self.own(name, slice) })?;
        }
        let called = &self.modules.all()[module].name;
        for input in &slice.inputs {
            let model = input.model;
            let modules = Modules::of(model);
            // A model that is the text decoder alone is one module.
            let alone = modules.all().len() == 1 && self.modules.all()[module].is_stack;
            let own = modules.find(called).or(alone.then_some(0));
            for (name, _) in model.tensors().filter(|(name, _)| !is_buffer(name)) {
                let at = modules.at(name);
                // What the donor has no module for is told once.
                let unknown =
                    || module == 0 && self.modules.find(&modules.all()[at].name).is_none();
                let here = self.modules.all().len() == 1 || own == Some(at) || unknown();
                if here && counterpart(model, name, self.donor).is_none() {
                    self.lost(*input, name);
                }
            }
        }
        Ok(())
    }

    /// Slices: embedding from the first, layers in their new order, final norm and head from the last.
    fn add_slices(
        &mut self,
        module: usize,
        slices: &[&'a Slice<'a>],
        described: &[u64],
    ) -> Result<()> {
        let (Some(first), Some(last)) = (slices.first(), slices.last()) else {
            return Ok(());
        };
        let whole = described.iter().copied().eq(0..self.donor.layers());
        let mut dropped = 0_u64;
        let mut wanted = Vec::new();
        for name in self.names_of(module) {
            match self.donor.anatomy().role(name) {
                Role::Layer(_) => {}
                Role::MultiToken if !whole => dropped += 1,
                Role::FinalNorm | Role::Head => wanted.push(self.own(name, last)),
                _ => wanted.push(self.own(name, first)),
            }
        }
        let mut described = described.iter().enumerate();
        for slice in slices {
            for layer in 0..slice.length {
                if let Some((new, old)) = described.next() {
                    self.want_layer(&mut wanted, slice, layer, new as u64, *old);
                }
            }
        }
        // Shards keep the donor's order as far as they have its tensors.
        wanted.sort_by_key(|wanted| wanted.place);
        for wanted in &wanted {
            self.add(wanted)?;
        }
        for input in &last.inputs {
            if let (true, Some(head)) =
                (self.donor.is_tied(), input.model.names_with_role(Role::Head).first())
            {
                self.lost(*input, head);
            }
        }
        if dropped > 0 {
            let note = format!("{dropped} tensors of multi-token prediction layers were left out");
            self.draft.note(note);
        }
        Ok(())
    }

    /// A tensor of the donor under its own name, outside the layers.
    fn own(&self, name: &str, slice: &'a Slice<'a>) -> Wanted<'a> {
        let place = self.places.get(name).copied().unwrap_or_default();
        let (name, own) = (name.to_owned(), name.to_owned());
        Wanted { name, template: self.donor, own, slice, layer: None, place }
    }

    /// One output layer: the template's tensors under their new number.
    fn want_layer(
        &mut self,
        wanted: &mut Vec<Wanted<'a>>,
        slice: &'a Slice<'a>,
        layer: u64,
        new: u64,
        old: u64,
    ) {
        let Some(template) = slice.template(self.donor) else { return };
        let model = template.model;
        let from = template.first + layer;
        for own in model.layer_tensors(from) {
            let Some((_, suffix)) = model.anatomy().layer_suffix(own) else { continue };
            let prefix = &self.donor.anatomy().layer_prefix;
            let (name, own) = (format!("{prefix}{new}.{suffix}"), own.to_owned());
            let place = self.places.get(format!("{prefix}{old}.{suffix}").as_str()).copied();
            let place = place.unwrap_or((0, usize::MAX));
            wanted.push(Wanted { name, template: model, own, slice, layer: Some(layer), place });
        }
        for input in slice.inputs.iter().filter(|input| !std::ptr::eq(input.model, model)) {
            for theirs in input.model.layer_tensors(input.first + layer) {
                let name = input.model.anatomy().renumbered(theirs, from);
                if !is_buffer(theirs) && counterpart(input.model, &name, model).is_none() {
                    self.lost(*input, theirs);
                }
            }
        }
    }

    /// A tensor that would be left out in silence.
    fn lost(&mut self, input: Input<'_>, name: &str) {
        if self.vectors && is_saved_rows(name) {
            return;
        }
        if self.config.extension.drops_extra {
            let model = input.model.name().to_owned();
            self.dropped.entry(model).or_insert_with(|| (name.to_owned(), 0)).1 += 1;
            return;
        }
        let (model, donor) = (input.model, self.donor.name());
        let head = model.anatomy().role(name) == Role::Head && self.donor.is_tied();
        let why = if head { "ties its head to the embedding" } else { "has none like it" };
        let what = format!("tensor `{name}` of `{}` {LOST}: `{donor}` {why}", model.name());
        self.problems.add(&input.of.at, what);
    }
}
