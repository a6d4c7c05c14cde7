//! Working through the target's tensors: each gets its sum, or its problem is written down.

use super::chat_vector::ChatVector;
use super::draft::{Draft, as_dtype};
use super::operand::{effective, is_buffer, line_up};
use super::quantised::refuse_quantised;
use super::vector::{Vector, is_saved_rows};
use super::vocabulary::{Rows, VocabularyPolicy};
use crate::checkpoint::{Checkpoint, Role, Stretch, locate, quantization};
use crate::error::{Error, Result};
use crate::format::{Dtype, Shape, TensorEntry};
use crate::plan::{Blend, Operand, Output, Part, Term};

/// Works through the target's tensors and collects every problem.
pub(super) struct Sums<'a> {
    vector: Vector<'a>,
    into: &'a Checkpoint,
    request: &'a ChatVector,
    problems: Vec<String>,
    vocabularies: Vec<String>,
    /// Rows of the extended vocabulary.
    rows: Option<u64>,
    /// Tensors that no model of the vector has.
    untouched: u64,
}

/// Whether a tensor has one row a token.
pub(super) fn is_vocabulary(role: Role) -> bool {
    matches!(role, Role::Embedding | Role::Head)
}

/// The operands of one tensor.
struct Found<'a> {
    shape: Shape,
    inst: Vec<Stretch<'a>>,
    base: Option<(Shape, Vec<Stretch<'a>>)>,
}

impl<'a> Sums<'a> {
    pub(super) fn new(vector: Vector<'a>, into: &'a Checkpoint, request: &'a ChatVector) -> Self {
        let mut problems = Vec::new();
        for (_, model) in vector.models() {
            problems.extend(missing_layers(model, into));
            problems.extend(missing_layers(into, model));
        }
        Self { vector, into, request, problems, vocabularies: Vec::new(), rows: None, untouched: 0 }
    }

    /// The rows of an extended vocabulary, or everything that is wrong.
    pub(super) fn finish(mut self, tensors: &[Output]) -> Result<Option<u64>> {
        if let Some(rows) = self.rows {
            let vocabulary = |t: &&Output| is_vocabulary(self.into.anatomy().role(&t.name));
            for tensor in tensors.iter().filter(vocabulary).filter(|t| t.shape.rows() != rows) {
                self.problems.push(format!(
                    "`--vocab extend` gives {rows} rows, but `{}` is left at {}: extend both or none",
                    tensor.name,
                    tensor.shape.rows()
                ));
            }
        }
        if !self.vocabularies.is_empty() {
            return Err(Error::Vocabulary { problems: self.vocabularies });
        }
        if !self.problems.is_empty() {
            return Err(mismatch("the models do not fit together", self.problems));
        }
        Ok(self.rows)
    }

    /// The vector's operands for a tensor of the target; a problem is recorded if they are missing.
    fn find(&mut self, name: &str) -> Option<Found<'a>> {
        let mut lookup = |role: &str, model: &'a Checkpoint| {
            let found = effective(self.into, name, model);
            if found.is_none() {
                self.problems
                    .push(format!("tensor `{name}` is missing in {role} `{}`", model.name()));
            }
            found
        };
        match self.vector {
            Vector::Pair { inst, base } => {
                let (a, b) = (lookup("inst", inst), lookup("base", base));
                let ((shape, inst), base) = (a?, b?);
                Some(Found { shape, inst, base: Some(base) })
            }
            Vector::Saved { vector, .. } => {
                let (shape, inst) = lookup("vector", vector)?;
                Some(Found { shape, inst, base: None })
            }
        }
    }

    pub(super) fn add(
        &mut self,
        draft: &mut Draft,
        home: usize,
        entry: &TensorEntry,
        scale: f64,
    ) -> Result<()> {
        let role = self.into.anatomy().role(&entry.name);
        let vocabulary = is_vocabulary(role);
        let chosen = self.request.filter.selects(&entry.name)
            && !(vocabulary && self.request.skip_embeddings);
        let dtype = match &self.request.dtype {
            Some(dtype) if entry.dtype.is_float() => dtype.clone(),
            _ => entry.dtype.clone(),
        };
        let own = locate(self.into, &entry.name).map(|(_, s)| s).unwrap_or_default();
        let own = draft.operands("into", &own);
        let copied = |own: Vec<_>| own.into_iter().map(|s| as_dtype(s, &dtype)).collect();
        if !chosen || !entry.dtype.is_float() {
            if chosen {
                self.check_integers(draft, entry)?;
            }
            draft.push(home, &entry.name, dtype.clone(), entry.shape.clone(), copied(own));
            return Ok(());
        }
        let models: Vec<&Checkpoint> = self.vector.models().into_iter().map(|(_, m)| m).collect();
        refuse_quantised(&[&models[..], &[self.into]].concat(), &entry.name)?;
        if matches!(role, Role::Other | Role::MultiToken) && self.is_unknown(&entry.name) {
            self.untouched += 1;
            draft.push(home, &entry.name, dtype.clone(), entry.shape.clone(), copied(own));
            return Ok(());
        }
        let Some(found) = self.find(&entry.name) else {
            return Ok(());
        };
        let fits = found.shape == entry.shape
            && found.base.as_ref().is_none_or(|(shape, _)| *shape == entry.shape)
            && self.saved_rows(vocabulary).is_none_or(|rows| rows == entry.shape.rows());
        if fits {
            let parts = sum(draft, &own, &found, scale);
            draft.push(home, &entry.name, dtype, entry.shape.clone(), parts);
            return Ok(());
        }
        let columns = entry.shape.0.get(1..);
        let same_columns = found.shape.0.get(1..) == columns
            && found.base.as_ref().is_none_or(|(shape, _)| shape.0.get(1..) == columns);
        match self.request.vocabulary {
            _ if !vocabulary || !same_columns => self.problems.push(self.shapes(entry, &found)),
            VocabularyPolicy::Error => self.vocabularies.push(self.shapes(entry, &found)),
            VocabularyPolicy::Skip => {
                draft.note(format!("`{}` stays the target's: vocabularies differ", entry.name));
                draft.push(home, &entry.name, dtype.clone(), entry.shape.clone(), copied(own));
            }
            policy => self.add_rows(draft, home, entry, &own, &found, &dtype, scale, policy),
        }
        Ok(())
    }

    /// A vocabulary-sized tensor under `overlap` or `extend`.
    #[expect(
        clippy::too_many_arguments,
        reason = "one call, right above; they share no other life"
    )]
    fn add_rows(
        &mut self,
        draft: &mut Draft,
        home: usize,
        entry: &TensorEntry,
        own: &[Operand],
        found: &Found<'_>,
        dtype: &Dtype,
        scale: f64,
        policy: VocabularyPolicy,
    ) {
        let Some(rows) = self.rows_of(draft, &entry.name, own, found, scale) else {
            self.problems.push(self.shapes(entry, found));
            return;
        };
        let (shape, parts) = rows.parts(policy, dtype);
        let (old, new) = (entry.shape.rows(), shape.rows());
        if new != old {
            self.rows = Some(new);
        }
        let shared = old.min(rows.inst.shape().rows()).min(rows.base_rows);
        draft.note(format!("`{}`: {shared} of {new} rows get the vector", entry.name));
        draft.push(home, &entry.name, dtype.clone(), shape, parts);
    }

    /// Whether no model of the vector has a tensor, so that there is no difference to add: a vision tower.
    fn is_unknown(&self, name: &str) -> bool {
        self.vector.models().iter().all(|(_, model)| effective(self.into, name, model).is_none())
    }

    /// Rows of the base model behind a saved vector.
    fn saved_rows(&self, vocabulary: bool) -> Option<u64> {
        match self.vector {
            Vector::Saved { base_rows, .. } if vocabulary => base_rows,
            _ => None,
        }
    }

    fn rows_of(
        &self,
        draft: &mut Draft,
        name: &str,
        own: &[Operand],
        found: &Found<'_>,
        scale: f64,
    ) -> Option<Rows> {
        let [into] = own else { return None };
        let [inst] = found.inst.as_slice() else {
            return None;
        };
        let inst = draft.operand("inst", inst);
        let base = match &found.base {
            Some((_, stretches)) => {
                let [base] = stretches.as_slice() else {
                    return None;
                };
                Some(draft.operand("base", base))
            }
            None => None,
        };
        let base_rows = match &base {
            Some(base) => base.shape().rows(),
            None => self.saved_rows(true).unwrap_or(inst.shape().rows()),
        };
        let further = match self.vector.saved_rows(self.into.anatomy().role(name)) {
            Some(stretch) => draft.operand("vector", &stretch),
            None => inst.clone(),
        };
        Some(Rows { into: into.clone(), inst, base, base_rows, further, scale })
    }

    fn shapes(&self, entry: &TensorEntry, found: &Found<'_>) -> String {
        let base = match (&found.base, self.saved_rows(true)) {
            (Some((shape, _)), _) => format!(", base {shape}"),
            (None, Some(rows)) => format!(", base {rows} rows"),
            (None, None) => String::new(),
        };
        format!("tensor `{}`: into {}, inst {}{base}", entry.name, entry.shape, found.shape)
    }

    /// Integer buffers stay the target's; integer weights are quantised codes.
    fn check_integers(&self, draft: &mut Draft, entry: &TensorEntry) -> Result<()> {
        let quantised = self.into.config().and_then(quantization);
        if let (Some(method), Role::Layer(_)) = (&quantised, self.into.anatomy().role(&entry.name))
        {
            return Err(Error::Unsupported {
                what: format!("tensor `{}` ({})", entry.name, entry.dtype),
                reason: format!("`{}` is quantised ({method})", self.into.name()),
                hint: "use the unquantised checkpoint of the model".into(),
            });
        }
        draft.note(format!("`{}` ({}) stays the target's: not a float", entry.name, entry.dtype));
        Ok(())
    }

    /// A tied target has no head to add the vector's head to.
    pub(super) fn add_missing_head(&mut self, draft: &mut Draft) -> Result<()> {
        let heads =
            self.vector.models().into_iter().flat_map(|(_, m)| m.names_with_role(Role::Head));
        let Some(head) = heads.map(str::to_owned).next().filter(|_| self.into.is_tied()) else {
            return Ok(());
        };
        if self.request.skip_embeddings || !self.request.filter.selects(&head) {
            return Ok(());
        }
        let embedding = self.into.names_with_role(Role::Embedding).first().map(|n| (*n).to_owned());
        let entry = embedding.and_then(|name| {
            let home = self.into.names_in_file_order().find(|(_, e)| e.name == name)?.0;
            let head = head_beside(&name, &head);
            Some((home, TensorEntry { name: head, ..self.into.tensor(&name)?.1.clone() }))
        });
        match entry {
            Some((home, entry)) if self.request.untie => {
                draft.note(format!("`{head}` was added: the target's head is no longer tied"));
                self.add_head(draft, home, &entry)
            }
            _ => {
                self.problems.push(format!(
                    "the vector changes `{head}`, `{}` ties its head to the embedding: `--untie` gives it a head of its own, `--exclude {head}` leaves the head's change out",
                    self.into.name()
                ));
                Ok(())
            }
        }
    }

    /// The untied head: the target's embedding plus the vector's head.
    fn add_head(&mut self, draft: &mut Draft, home: usize, entry: &TensorEntry) -> Result<()> {
        refuse_quantised(&[self.into], &entry.name)?;
        let Some(found) = self.find(&entry.name) else {
            return Ok(());
        };
        let Some((shape, own)) = effective(self.into, &entry.name, self.into) else {
            return Ok(());
        };
        if found.shape != shape || found.base.as_ref().is_some_and(|(s, _)| *s != shape) {
            self.problems.push(self.shapes(entry, &found));
            return Ok(());
        }
        let own = draft.operands("into", &own);
        let parts = sum(draft, &own, &found, self.request.scale);
        let dtype = self.request.dtype.clone().unwrap_or_else(|| entry.dtype.clone());
        draft.push(home, &entry.name, dtype, shape, parts);
        Ok(())
    }

    /// Tensors of the vector that the target does not have: in a layer a problem, elsewhere worth a note.
    pub(super) fn check_extras(&mut self, draft: &mut Draft) {
        if self.untouched > 0 {
            draft.note(format!(
                "{} tensors outside the layers stay the target's: the vector has none of them",
                self.untouched
            ));
        }
        for (role, model) in self.vector.models() {
            let mut extras = Vec::new();
            for (name, _) in model.tensors() {
                let known = is_buffer(name) || is_saved_rows(name);
                if known || effective(model, name, self.into).is_some() {
                    continue;
                }
                match model.anatomy().role(name) {
                    // Whole layers too many are told of by their number.
                    Role::Layer(layer) if layer >= self.into.layers() => {}
                    Role::Layer(_) if self.request.filter.selects(name) => {
                        let target = self.into.name();
                        let problem =
                            format!("tensor `{name}` of {role} has no place in `{target}`");
                        self.problems.push(problem);
                    }
                    Role::Head => {}
                    _ => extras.push(name),
                }
            }
            if let Some(first) = extras.first() {
                draft.note(format!(
                    "{} tensors of {role} have no counterpart in the target (first: `{first}`)",
                    extras.len()
                ));
            }
        }
    }
}

/// The name of a new head: in wrappers that hold a whole text model (`language_model.model.*`) it lies in there.
fn head_beside(embedding: &str, head: &str) -> String {
    match embedding.strip_suffix(".model.embed_tokens.weight") {
        Some(wrapper) => format!("{wrapper}.lm_head.weight"),
        None => head.to_owned(),
    }
}

/// `own + scale * (inst - base)`, piece by piece where expert layouts differ.
fn sum(draft: &mut Draft, own: &[Operand], found: &Found<'_>, scale: f64) -> Vec<Part> {
    let mut operands = vec![own.to_vec(), draft.operands("inst", &found.inst)];
    if let Some((_, base)) = &found.base {
        operands.push(draft.operands("base", base));
    }
    let blend = |group: Vec<Operand>| {
        let mut group = group.into_iter();
        let base = group.next();
        let weights = [1.0, -1.0];
        let terms = group.zip(weights).map(|(values, weight)| Term::new(values, weight)).collect();
        Part::Blend(Box::new(Blend::sum(base, terms, scale)))
    };
    line_up(&operands).unwrap_or_default().into_iter().map(blend).collect()
}

/// Decoder layers that `model` has and `other` lacks, by their first tensor.
pub(super) fn missing_layers(model: &Checkpoint, other: &Checkpoint) -> Vec<String> {
    (other.layers()..model.layers())
        .filter_map(|layer| {
            let first = model.layer_tensors(layer).next()?;
            Some(format!(
                "layer {} (`{first}`, ...) of `{}` is missing in `{}`",
                layer + 1,
                model.name(),
                other.name()
            ))
        })
        .collect()
}

pub(super) fn mismatch(what: &str, problems: Vec<String>) -> Error {
    let hint = "the models must be of one family; `--exclude GLOB` leaves tensors as they are in the target";
    Error::Mismatch { what: what.to_owned(), problems, hint: hint.to_owned() }
}
