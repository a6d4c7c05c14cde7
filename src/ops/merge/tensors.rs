//! Working through the output's tensors: each gets its formula, or its problem is written down.

mod chained;
mod elements;
mod walk;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Merge;
use super::config::Config;
use super::dtypes::output_dtype;
use super::expression::Place;
use super::extension::Rule;
use super::importance::Importances;
use super::methods::{Formula, Parameter, Site, Values};
use super::read::Problems;
use super::reference::Reference;
use super::slices::{Input, Slice};
use super::vocabulary::Alignment;
use crate::checkpoint::{Checkpoint, Modules, Role, Stretch, locate, quantization};
use crate::error::{Error, Result};
use crate::format::{Dtype, Shape};
use crate::ops::draft::{Draft, as_dtype};
use crate::ops::operand::{effective, is_buffer, line_up};
use crate::ops::quantised::refuse_quantised;
use crate::plan::{self, Numerics, Part};

/// What is said of a tensor whose shapes differ.
pub(super) const DIFFERS: &str = "differs in shape";

/// What is said of a tensor that the result has no place for.
pub(super) const LOST: &str = "would be lost";

/// Works through the output's tensors and collects every problem.
pub(super) struct Tensors<'a> {
    pub(super) config: &'a Config,
    pub(super) slices: &'a [Slice<'a>],
    modules: &'a Modules,
    pub(super) donor: &'a Checkpoint,
    pub(super) draft: Draft,
    pub(super) problems: Problems,
    /// Shard and place of each tensor of the donor.
    places: HashMap<&'a str, (usize, usize)>,
    /// Float dtypes of the output, and whether one differs from the donor's.
    pub(super) dtypes: BTreeSet<Dtype>,
    pub(super) differs: bool,
    /// Whether mergekit would have rounded some input before the arithmetic.
    rounded: bool,
    /// Whether something is made by a method that has precise arithmetic only, although mergekit's is asked for.
    pub(super) precise: bool,
    /// How the result is to be made.
    request: &'a Merge,
    /// Inputs besides the base are saved vectors.
    pub(super) vectors: bool,
    /// What models count for each tensor.
    pub(super) importances: &'a Importances,
    /// Which rules of the extension fit some tensor.
    pub(super) used: Vec<bool>,
    /// Tensors that were left out: of a model the first, and how many.
    dropped: BTreeMap<String, (String, u64)>,
    /// Problems that many tensors have: place, cause, the first of them, how many more.
    causes: Vec<(String, String, String, u64)>,
    /// The last of the names that an output tensor's inputs have: random numbers are drawn in their order.
    pub(super) drawn: BTreeMap<String, String>,
    /// The rows that were left of a vocabulary.
    pub(super) rows: Option<u64>,
    /// The one vocabulary of the result.
    pub(super) alignment: Option<&'a Alignment<'a>>,
}

/// An output tensor and where its counterparts are.
pub(super) struct Wanted<'a> {
    /// Its name in the output.
    pub(super) name: String,
    /// The model that names it, and the name there.
    pub(super) template: &'a Checkpoint,
    pub(super) own: String,
    pub(super) slice: &'a Slice<'a>,
    /// The layer within the slice; none for tensors outside the layers.
    pub(super) layer: Option<u64>,
    /// The donor's shard that it belongs to, and its place in file order.
    pub(super) place: (usize, usize),
}

/// An input's tensor.
pub(super) struct Operand<'a> {
    /// Its name in that model.
    name: String,
    pub(super) shape: Shape,
    stretches: Vec<Stretch<'a>>,
    /// Its rows in the order of the result's vocabulary.
    pub(super) aligned: Option<plan::Operand>,
}

impl Wanted<'_> {
    /// The tensor that an input has for it.
    pub(super) fn operand<'m>(&self, input: &Input<'m>) -> Option<Operand<'m>> {
        let name = self.name_in(input);
        let (shape, stretches) = effective(self.template, &name, input.model)?;
        Some(Operand { name, shape, stretches, aligned: None })
    }

    /// What an input calls it.
    pub(super) fn name_in(&self, input: &Input<'_>) -> String {
        match self.layer {
            Some(layer) => self.template.anatomy().renumbered(&self.own, input.first + layer),
            None => self.own.clone(),
        }
    }
}

impl<'a> Tensors<'a> {
    pub(super) fn new(
        config: &'a Config,
        (slices, modules): (&'a [Slice<'a>], &'a Modules),
        donor: &'a Checkpoint,
        draft: Draft,
        request: &'a Merge,
    ) -> Self {
        let names = donor.names_in_file_order().enumerate();
        let places = names.map(|(at, (home, entry))| (entry.name.as_str(), (home, at)));
        Self {
            config,
            slices,
            modules,
            donor,
            draft,
            problems: Problems::default(),
            places: places.collect(),
            dtypes: BTreeSet::new(),
            differs: false,
            rounded: false,
            precise: false,
            request,
            vectors: false,
            importances: &Importances::None,
            used: vec![false; config.extension.rules.len()],
            dropped: BTreeMap::new(),
            causes: Vec::new(),
            drawn: BTreeMap::new(),
            rows: None,
            alignment: None,
        }
    }

    /// A problem of a tensor that others may have too.
    pub(super) fn blame(&mut self, at: &str, cause: String, tensor: &str) {
        match self.causes.iter_mut().find(|known| (known.0.as_str(), &known.1) == (at, &cause)) {
            Some(known) => known.3 += 1,
            None => self.causes.push((at.to_owned(), cause, tensor.to_owned(), 0)),
        }
    }

    /// Embedding and head come from several slices or rules: they have one vocabulary, or the result cannot be loaded.
    fn check_rows(&mut self) {
        let donor = self.donor;
        let rows_of = |role: Role| {
            let name = donor.names_with_role(role).first().copied()?;
            Some((name, donor.tensor(name)?.1.shape.rows()))
        };
        let (Some((embedding, own)), head) = (rows_of(Role::Embedding), rows_of(Role::Head)) else {
            return;
        };
        let tensors = &self.draft.plan().tensors;
        let made = |name: &str| tensors.iter().find(|t| t.name == name).map(|t| t.shape.rows());
        let Some(rows) = made(embedding) else { return };
        if let Some((head, _)) = head.filter(|(_, rows)| *rows == own)
            && let Some(other) = made(head).filter(|other| *other != rows)
        {
            let what =
                format!("tensor `{embedding}` {DIFFERS} from `{head}`: {rows} rows and {other}");
            self.problems.add("", what);
        }
        if self.alignment.is_none() && rows != own {
            self.rows = self.rows.or(Some(rows));
        }
    }

    /// Everything that is wrong.
    pub(super) fn take_problems(&mut self) -> Problems {
        self.check_rows();
        let mut problems = std::mem::take(&mut self.problems);
        for (at, cause, tensor, more) in self.causes.drain(..) {
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            problems.add(&at, format!("{cause} (`{tensor}`{more})"));
        }
        let rules = self.config.extension.rules.iter().zip(&self.used);
        for (rule, _) in rules.filter(|(_, used)| !**used) {
            problems.add(&rule.at, "fits no tensor of the result");
        }
        for (model, (first, count)) in std::mem::take(&mut self.dropped) {
            let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
            self.draft.note(format!("`{first}`{more} of `{model}` were left out"));
        }
        if let (true, Some(dtype)) = (self.rounded, &self.config.dtype) {
            self.draft.note(format!(
                "inputs are not rounded to `dtype` {dtype} first, as mergekit does: only the result is rounded"
            ));
        }
        problems
    }

    pub(super) fn add(&mut self, wanted: &Wanted<'_>) -> Result<()> {
        let Wanted { name, template, own, slice, layer, place } = wanted;
        let (layer, home) = (*layer, place.0);
        if is_buffer(name) && slice.inputs.len() > 1 {
            self.keep(wanted);
            return Ok(());
        }
        let rules = self.rules(name);
        if let Some(origin) = rules.iter().find_map(|rule| rule.copy.as_ref()) {
            return self.copy(wanted, origin);
        }
        let mut operands = Vec::new();
        let mut missing = Vec::new();
        for (i, input) in slice.inputs.iter().enumerate() {
            match wanted.operand(input) {
                Some(operand) => operands.push(operand),
                None => missing.push(i),
            }
        }
        if !missing.is_empty() {
            return self.incomplete(wanted, &missing);
        }
        let ordered = self.align(wanted, slice, &mut operands)?;
        if self.request.truncate_embeddings
            && !ordered
            && template.anatomy().role(own).is_vocabulary()
        {
            self.truncate(name, &mut operands);
        }
        if template.anatomy().role(own).is_vocabulary() && !self.knows_rows(wanted, &operands) {
            return Ok(());
        }
        if operands.iter().any(|operand| operand.shape != operands[0].shape) {
            let shapes = slice.inputs.iter().zip(&operands);
            let shapes: Vec<String> =
                shapes.map(|(i, o)| format!("`{}` {}", i.model.name(), o.shape)).collect();
            let problem = format!("tensor `{name}` {DIFFERS}: {}", shapes.join(", "));
            self.problems.add("", problem);
            return Ok(());
        }
        let Some(mut values) = self.values(slice, name, &operands, layer, &rules) else {
            return Ok(());
        };
        let names: Vec<&str> = operands.iter().map(|operand| operand.name.as_str()).collect();
        if let Err(problem) = self.importances.weigh(&mut values, slice, &names) {
            self.blame("elo_surgery.importance", problem, name);
            return Ok(());
        }
        let gathers = |o: &Operand<'_>| o.aligned.as_ref().is_some_and(|o| o.gather.is_some());
        if self.request.numerics == Numerics::Mergekit && operands.iter().any(gathers) {
            self.draft.note(format!(
                "`{name}` is computed in precise arithmetic: its rows are put together"
            ));
        } else if self.request.numerics == Numerics::Mergekit
            && self.chain(name, home, slice, &operands, &values)?
        {
            return Ok(());
        }
        let shape = operands[0].shape.clone();
        let seed = self.request.random_seed;
        let (variant, vectors) = (self.config.extension.variant, self.vectors);
        let of_part = |part| {
            let site = Site { name, shape: &shape, part, seed, variant };
            let formula = self.config.method.formula(&values, slice.base, &site);
            formula.map(|formula| if vectors { formula.of_differences() } else { formula })
        };
        match of_part(0) {
            Ok(formula) if self.shares(&operands, &formula) => {
                self.share(wanted, operands, formula)
            }
            Ok(formula) => self.place(name, home, slice, &operands, &formula, of_part),
            Err(problem) => {
                self.blame("", problem, name);
                Ok(())
            }
        }
    }

    /// Cuts tensors with one row a token to the rows that all models have.
    fn truncate(&mut self, name: &str, operands: &mut [Operand<'_>]) {
        let rows = operands.iter().map(|operand| operand.shape.rows()).min().unwrap_or(0);
        let mut cut = false;
        for operand in operands.iter_mut().filter(|operand| operand.shape.rows() > rows) {
            let shape = operand.shape.with_rows(rows);
            if let [stretch] = operand.stretches.as_mut_slice()
                && let Some(len) = shape.byte_len(stretch.dtype)
            {
                stretch.bytes.end = stretch.bytes.start + len;
                stretch.shape = shape.clone();
                operand.shape = shape;
                cut = true;
            }
        }
        if cut {
            self.rows = Some(rows);
            self.draft.note(format!("`{name}` has the {rows} rows that all models have"));
        }
    }

    /// A buffer that models compute anew stays as it is: sums would only add noise.
    fn keep(&mut self, wanted: &Wanted<'_>) {
        let Some((shape, stretches)) = locate(wanted.template, &wanted.own) else { return };
        let slices = self.draft.slices("model", &stretches);
        let Some(dtype) = slices.first().map(|slice| slice.dtype.clone()) else { return };
        let parts = slices.into_iter().map(Part::Copy).collect();
        self.draft.push(wanted.place.0, &wanted.name, dtype, shape, parts);
    }

    /// The parameters of a tensor; problems for those that have no value.
    fn values(
        &mut self,
        slice: &Slice<'_>,
        name: &str,
        operands: &[Operand<'_>],
        layer: Option<u64>,
        rules: &[&Rule],
    ) -> Option<Values> {
        let config = self.config;
        let t = layer.map_or(0.0, |layer| slice.progress(layer));
        let alike = self.slices.iter().filter(|other| other.module == slice.module);
        let layers = alike.map(|slice| slice.length).sum();
        let place = match self.donor.anatomy().role(name) {
            Role::Layer(layer) => Some(Place { layer, layers, t }),
            _ => None,
        };
        let everywhere = |parameter: &Parameter, name: &str| {
            let value = slice.of.parameters.at(parameter.name, name, t);
            value.or_else(|| config.parameters.at(parameter.name, name, t)).or(parameter.default)
        };
        let mut values = Values::default();
        let mut complete = true;
        for parameter in config.method.shared {
            let rule = self.ruled(parameter, name, (t, place), None, rules);
            complete &= rule.is_ok();
            if let Some(value) = rule.ok().flatten().or_else(|| everywhere(parameter, name)) {
                values.shared.insert(parameter.name, value);
            } else if parameter.required {
                complete = false;
                self.blame("parameters", format!("`{}` has no value", parameter.name), name);
            }
        }
        for (i, (input, operand)) in slice.inputs.iter().zip(operands).enumerate() {
            let theirs = operand.name.as_str();
            let mut own = BTreeMap::new();
            let apart = config.method.sets_base_apart() && slice.base == Some(i);
            for parameter in config.method.own {
                let model = Some(&input.of.model);
                let rule = self.ruled(parameter, name, (t, place), model, rules);
                complete &= rule.is_ok();
                let rule = rule.ok().flatten();
                let value = rule.or_else(|| input.of.parameters.at(parameter.name, theirs, t));
                if let Some(value) = value.or_else(|| everywhere(parameter, theirs)) {
                    own.insert(parameter.name, value);
                } else if parameter.required && !apart {
                    complete = false;
                    let cause = format!("`{}` has no value", parameter.name);
                    self.blame(&input.of.at, cause, theirs);
                }
            }
            values.own.push(own);
        }
        complete.then_some(values)
    }

    fn push(&mut self, home: usize, name: &str, dtype: Dtype, shape: Shape, parts: Vec<Part>) {
        let donors = self.donor.tensor(name).map(|(_, entry)| &entry.dtype);
        self.differs |= donors.is_some_and(|donors| *donors != dtype);
        self.dtypes.insert(dtype.clone());
        self.draft.push(home, name, dtype, shape, parts);
    }

    /// Writes a tensor's formula down, or its problem.
    pub(super) fn place(
        &mut self,
        name: &str,
        home: usize,
        slice: &Slice<'_>,
        operands: &[Operand<'_>],
        formula: &Formula,
        of_part: impl Fn(u32) -> Result<Formula, String>,
    ) -> Result<()> {
        let copied = formula.copied();
        // Vectors are saved wider than the models they are of.
        let counts = |input: usize| match copied {
            Some(copied) => input == copied,
            None => !self.vectors || slice.base == Some(input),
        };
        // What follows the inputs are importances.
        let (operands, importances) = operands.split_at(slice.inputs.len());
        let counting = operands.iter().enumerate().filter(|(input, _)| counts(*input));
        let used: Vec<&Dtype> =
            counting.flat_map(|(_, o)| o.stretches.iter().map(|s| s.dtype)).collect();
        let shape = operands[0].shape.clone();
        let floats = used.iter().filter(|dtype| dtype.is_float()).count();
        if floats == 0 {
            return self.place_integers(name, home, slice, operands, copied);
        }
        if floats < used.len() {
            let names: Vec<&str> = used.iter().map(|dtype| dtype.as_str()).collect();
            self.problems.add("", format!("tensor `{name}` is {} in the models", names.join(", ")));
            return Ok(());
        }
        let (dtype, out) = (self.config.dtype.as_ref(), self.config.out_dtype.as_ref());
        let dtype = match output_dtype(&used, dtype, out, copied.is_none()) {
            Ok((dtype, rounded)) => {
                self.rounded |= rounded;
                dtype
            }
            Err(problem) => {
                self.blame("", problem, name);
                return Ok(());
            }
        };
        let changes = copied.is_none() || used.iter().any(|used| **used != dtype);
        if changes {
            for (input, operand) in slice.inputs.iter().zip(operands) {
                refuse_quantised(&[input.model], &operand.name)?;
                refuse_codes(input.model, &operand.name, &used)?;
            }
        }
        let inputs = slice.inputs.iter().map(|input| self.role(input));
        let inputs: Vec<_> = operands.iter().zip(inputs).collect();
        let importances = importances.iter().map(|operand| (operand, "importance"));
        let operands: Vec<Vec<_>> = inputs
            .into_iter()
            .chain(importances)
            .map(|(operand, role)| match &operand.aligned {
                Some(aligned) => vec![aligned.clone()],
                None => self.draft.operands(role, &operand.stretches),
            })
            .collect();
        let parts: Vec<Part> = if let Some(input) = copied {
            operands[input].iter().map(|values| as_dtype(values.clone(), &dtype)).collect()
        } else {
            // Where expert layouts differ, a tensor is several blends, none of which sees it whole.
            let groups = line_up(&operands).unwrap_or_default();
            if formula.looks_around() && groups.len() > 1 {
                let cause = format!(
                    "{} of models that lay out their experts differently is not supported yet",
                    self.config.method.name
                );
                self.blame("", cause, name);
                return Ok(());
            }
            let blend = |(part, group): (u32, &Vec<plan::Operand>)| {
                Ok(Part::Blend(Box::new(of_part(part)?.blend(group))))
            };
            match (0..).zip(&groups).map(blend).collect() {
                Ok(parts) => parts,
                Err(problem) => {
                    self.blame("", problem, name);
                    return Ok(());
                }
            }
        };
        self.push(home, name, dtype, shape, parts);
        Ok(())
    }

    /// Integer buffers are copied, from the base where there is one; integer weights are quantised codes.
    fn place_integers(
        &mut self,
        name: &str,
        home: usize,
        slice: &Slice<'_>,
        operands: &[Operand<'_>],
        copied: Option<usize>,
    ) -> Result<()> {
        let from = copied.or(slice.base).unwrap_or(0);
        let (input, operand) = (&slice.inputs[from], &operands[from]);
        let Some(dtype) = operand.stretches.first().map(|stretch| stretch.dtype.clone()) else {
            return Ok(());
        };
        if copied.is_none() {
            let method = slice.inputs.iter().find_map(|i| quantization(i.model.config()?));
            if let (Some(method), Role::Layer(_)) = (method, self.donor.anatomy().role(name)) {
                return Err(codes(name, &dtype, &method));
            }
            let model = input.model.name();
            self.draft.note(format!("`{name}` ({dtype}) is that of `{model}`: not a float"));
        }
        let slices = self.draft.slices(self.role(input), &operand.stretches);
        let parts = slices.into_iter().map(Part::Copy).collect();
        self.draft.push(home, name, dtype, operand.shape.clone(), parts);
        Ok(())
    }

    fn role(&self, input: &Input<'_>) -> &'static str {
        role(self.config, &input.of.model)
    }
}

/// Refuses 8-bit floats of a quantised model, whose scales may bear any name.
fn refuse_codes(model: &Checkpoint, name: &str, dtypes: &[&Dtype]) -> Result<()> {
    let method = model.config().and_then(quantization);
    match (method, dtypes.iter().find(|dtype| dtype.is_f8())) {
        (Some(method), Some(dtype)) => Err(codes(name, dtype, &method)),
        _ => Ok(()),
    }
}

fn codes(name: &str, dtype: &Dtype, method: &str) -> Error {
    Error::Unsupported {
        what: format!("tensor `{name}` ({dtype})"),
        reason: format!("the models are quantised ({method})"),
        hint: "use the unquantised checkpoints of the models".into(),
    }
}

/// What a model is to the merge, for sources and parents.
pub(super) fn role(config: &Config, model: &Reference) -> &'static str {
    if config.base.as_ref() == Some(model) { "base" } else { "model" }
}
