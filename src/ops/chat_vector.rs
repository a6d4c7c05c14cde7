//! Chat vector: `C + scale * (A - B)`, the instruction tuning of A over its base B added to C.
//!
//! Chat Vector (arXiv 2310.04799); ELO, stage 4. f32 arithmetic and one rounding: with bf16 inputs and a scale of 1 the
//! result is the correctly rounded one.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::draft::{Derived, Draft, as_dtype};
use super::filter::TensorFilter;
use super::operand::{effective, line_up};
use super::relayout::quantised;
use super::vocabulary::{Rows, VocabularyPolicy};
use crate::checkpoint::{
    Checkpoint, LayerSelector, Role, SidecarFile, Stretch, locate, set_dtype, set_vocab_size,
};
use crate::error::{Error, Result};
use crate::format::{Dtype, Shape, TensorEntry};
use crate::plan::{Blend, Part, Plan, Term};

/// Header metadata of a saved vector: rows of the base model's vocabulary.
const BASE_ROWS: &str = "elo_surgery.base_vocabulary_rows";
/// Header metadata that marks a saved vector.
const KIND: &str = "elo_surgery.kind";
const KIND_VECTOR: &str = "chat-vector";

/// How to add a chat vector.
#[derive(Clone, Debug)]
pub struct ChatVector {
    /// Factor of the vector.
    pub scale: f64,
    /// Further factors for some layers; they multiply `scale`.
    pub layer_scales: Vec<LayerScale>,
    /// Which tensors get the vector; the others stay the target's.
    pub filter: TensorFilter,
    /// Leave embedding and head as they are in the target.
    pub skip_embeddings: bool,
    /// What to do when vocabularies differ in size.
    pub vocabulary: VocabularyPolicy,
    /// Give a tied target a head of its own when the vector has one.
    pub untie: bool,
    /// Float dtype of the output; the target's by default.
    pub dtype: Option<Dtype>,
    /// Data bytes of a shard, to lay the output out anew.
    pub shard_size: Option<u64>,
}

impl Default for ChatVector {
    fn default() -> Self {
        Self {
            scale: 1.0,
            layer_scales: Vec::new(),
            filter: TensorFilter::default(),
            skip_embeddings: false,
            vocabulary: VocabularyPolicy::default(),
            untie: false,
            dtype: None,
            shard_size: None,
        }
    }
}

/// A factor for some layers.
#[derive(Clone, Debug)]
pub struct LayerScale {
    /// The layers.
    pub layers: LayerSelector,
    /// The factor.
    pub factor: f64,
}

/// Where the vector comes from.
#[derive(Clone, Copy)]
enum Vector<'a> {
    /// The difference of two models.
    Pair {
        inst: &'a Checkpoint,
        base: &'a Checkpoint,
    },
    /// A difference saved earlier, and the rows of the base model's vocabulary.
    Saved {
        vector: &'a Checkpoint,
        base_rows: Option<u64>,
    },
}

/// Plans `into + scale * (inst - base)`.
///
/// # Errors
/// Tensors that are missing or of another shape, vocabularies that differ without a policy, quantised weights.
pub fn chat_vector(
    inst: &Checkpoint,
    base: &Checkpoint,
    into: &Checkpoint,
    request: &ChatVector,
) -> Result<Plan> {
    plan(Vector::Pair { inst, base }, into, request)
}

/// Plans `into + scale * vector` with a vector saved by [`save_vector`]. The same bytes as [`chat_vector`] gives.
///
/// # Errors
/// As [`chat_vector`]; a checkpoint that is not a saved vector.
pub fn add_vector(vector: &Checkpoint, into: &Checkpoint, request: &ChatVector) -> Result<Plan> {
    let metadata = vector.shards().first().map(|s| &s.header.metadata);
    if metadata
        .and_then(|m| m.get(KIND))
        .is_none_or(|kind| kind != KIND_VECTOR)
    {
        return Err(Error::NotACheckpoint {
            path: vector.root().to_owned(),
            reason: "it is not a saved chat vector (made with `--save-vector`)".into(),
        });
    }
    let base_rows = metadata
        .and_then(|m| m.get(BASE_ROWS))
        .and_then(|rows| rows.parse().ok());
    plan(Vector::Saved { vector, base_rows }, into, request)
}

/// Plans the difference `inst - base` as a checkpoint of f32 tensors (f64 where an input is): exactly what
/// [`chat_vector`] computes before it scales and adds, so nothing is lost by saving it.
///
/// # Errors
/// Tensors that are missing or of another shape; quantised weights.
pub fn save_vector(
    inst: &Checkpoint,
    base: &Checkpoint,
    filter: &TensorFilter,
    shard_size: Option<u64>,
) -> Result<Plan> {
    filter.check(inst)?;
    let parameters = json!({ "filter": filter.describe(), "shard_size": shard_size });
    let mut draft = Draft::new("save-vector", &parameters);
    draft.parent("inst", inst);
    draft.parent("base", base);
    let mut problems = missing_layers(base, inst);
    for (home, entry) in inst.names_in_file_order() {
        if !filter.selects(&entry.name) || !entry.dtype.is_float() {
            draft.note(format!("`{}` is not part of the vector", entry.name));
            continue;
        }
        refuse_quantised(&[inst, base], &entry.name)?;
        let own = locate(inst, &entry.name);
        let (Some((shape, a)), Some((b_shape, b))) = (own, effective(inst, &entry.name, base))
        else {
            problems.push(format!(
                "tensor `{}` is missing in base `{}`",
                entry.name,
                base.name()
            ));
            continue;
        };
        let vocabulary = matches!(
            inst.anatomy().role(&entry.name),
            Role::Embedding | Role::Head
        );
        if shape.0.get(1..) != b_shape.0.get(1..) || (!vocabulary && shape != b_shape) {
            problems.push(format!(
                "tensor `{}`: inst {shape}, base {b_shape}",
                entry.name
            ));
            continue;
        }
        let wide = a.iter().chain(&b).any(|s| *s.dtype == Dtype::F64);
        let dtype = if wide { Dtype::F64 } else { Dtype::F32 };
        let (a, b) = (draft.slices("inst", &a), draft.slices("base", &b));
        let parts = difference(&a, &b, &dtype);
        draft.push(home, &entry.name, dtype, shape, parts);
    }
    if !problems.is_empty() {
        return Err(mismatch("the vector cannot be computed", problems));
    }
    let mut metadata = BTreeMap::from([(KIND.to_owned(), KIND_VECTOR.to_owned())]);
    if let Some(rows) = base.vocabulary_rows() {
        metadata.insert(BASE_ROWS.to_owned(), rows.to_string());
    }
    draft.finish(&Derived {
        shard_size,
        metadata,
        ..Derived::from(inst, "inst")
    })
}

/// Rows both have as differences, further rows of the instruct model as they are.
fn difference(a: &[crate::plan::Slice], b: &[crate::plan::Slice], dtype: &Dtype) -> Vec<Part> {
    let subtract = |a: crate::plan::Slice, b: crate::plan::Slice| {
        let terms = vec![
            Term {
                slice: a,
                weight: 1.0,
            },
            Term {
                slice: b,
                weight: -1.0,
            },
        ];
        Part::Blend(Box::new(Blend {
            base: None,
            terms,
            lambda: 1.0,
        }))
    };
    if let Some(groups) = line_up(&[a.to_vec(), b.to_vec()]) {
        let pair = |group: Vec<_>| {
            let mut group = group.into_iter();
            group.next().zip(group.next()).map(|(a, b)| subtract(a, b))
        };
        return groups.into_iter().filter_map(pair).collect();
    }
    let ([a], [b]) = (a, b) else {
        return Vec::new();
    };
    let (rows, shared) = (a.shape.rows(), a.shape.rows().min(b.shape.rows()));
    let cut = super::operand::rows_of;
    let mut parts = vec![subtract(cut(a, 0, shared), cut(b, 0, shared))];
    if shared < rows {
        parts.push(as_dtype(cut(a, shared, rows), dtype));
    }
    parts
}

fn plan(vector: Vector<'_>, into: &Checkpoint, request: &ChatVector) -> Result<Plan> {
    request.filter.check(into)?;
    let mut draft = Draft::new("chat-vector", &request.describe());
    draft.parent("into", into);
    for (role, model) in vector.models() {
        draft.parent(role, model);
    }
    let factors = request.factors(into)?;
    let mut sums = Sums {
        vector,
        into,
        request,
        problems: vec![],
        vocabularies: vec![],
        rows: None,
    };
    for (_, model) in vector.models() {
        sums.problems.extend(missing_layers(model, into));
        sums.problems.extend(missing_layers(into, model));
    }
    for (home, entry) in into.names_in_file_order() {
        let scale = match into.anatomy().role(&entry.name) {
            Role::Layer(layer) => factors.get(&layer).copied().unwrap_or(request.scale),
            _ => request.scale,
        };
        sums.add(&mut draft, home, entry, scale)?;
    }
    sums.add_missing_head(&mut draft)?;
    sums.note_extras(&mut draft);
    if !sums.vocabularies.is_empty() {
        return Err(Error::Vocabulary {
            problems: sums.vocabularies,
        });
    }
    if !sums.problems.is_empty() {
        return Err(mismatch("the models do not fit together", sums.problems));
    }
    let rows = sums.rows;
    let mut derived = Derived {
        shard_size: request.shard_size,
        ..Derived::from(into, "into")
    };
    if let Some(config) = &mut derived.config {
        if let Some(rows) = rows {
            set_vocab_size(config, rows);
        }
        if let Some(dtype) = &request.dtype {
            set_dtype(config, dtype);
        }
        if request.untie && into.is_tied() {
            config.insert("tie_word_embeddings".to_owned(), Value::Bool(false));
        }
    }
    let sidecars = vector.sidecars(into, rows.is_some());
    if rows.is_some() {
        draft.note("the vocabulary was extended: the tokenizer files are the instruct model's");
    }
    draft.finish(&Derived {
        sidecars: &sidecars,
        ..derived
    })
}

impl ChatVector {
    fn describe(&self) -> Value {
        let scales: Vec<Value> = self
            .layer_scales
            .iter()
            .map(|s| json!({ "layers": s.layers.to_string(), "factor": s.factor }))
            .collect();
        json!({
            "scale": self.scale,
            "layer_scales": scales,
            "filter": self.filter.describe(),
            "skip_embeddings": self.skip_embeddings,
            "vocabulary": self.vocabulary,
            "untie": self.untie,
            "dtype": self.dtype,
            "shard_size": self.shard_size,
        })
    }

    /// Scale by layer, for the layers that have a factor of their own.
    fn factors(&self, into: &Checkpoint) -> Result<BTreeMap<u64, f64>> {
        let mut factors = BTreeMap::new();
        for LayerScale { layers, factor } in &self.layer_scales {
            for layer in layers.resolve(into.layers(), into.name())? {
                *factors.entry(layer).or_insert(self.scale) *= factor;
            }
        }
        Ok(factors)
    }
}

impl<'a> Vector<'a> {
    fn models(self) -> Vec<(&'static str, &'a Checkpoint)> {
        match self {
            Self::Pair { inst, base } => vec![("inst", inst), ("base", base)],
            Self::Saved { vector, .. } => vec![("vector", vector)],
        }
    }

    /// The model whose rows a larger vocabulary comes from.
    fn inst(self) -> &'a Checkpoint {
        match self {
            Self::Pair { inst, .. } => inst,
            Self::Saved { vector, .. } => vector,
        }
    }

    /// The target's files; with an extended vocabulary, the instruct model's tokenizer instead of the target's.
    fn sidecars(self, into: &Checkpoint, extended: bool) -> Vec<SidecarFile> {
        if !extended {
            return into.sidecars().to_vec();
        }
        let own = into.sidecars().iter().filter(|s| !is_tokenizer(&s.file));
        let new = self
            .inst()
            .sidecars()
            .iter()
            .filter(|s| is_tokenizer(&s.file));
        own.chain(new).cloned().collect()
    }
}

fn is_tokenizer(file: &str) -> bool {
    let names = [
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
    ];
    file.starts_with("tokenizer") || file.starts_with("chat_template") || names.contains(&file)
}

/// Works through the target's tensors and collects every problem.
struct Sums<'a> {
    vector: Vector<'a>,
    into: &'a Checkpoint,
    request: &'a ChatVector,
    problems: Vec<String>,
    vocabularies: Vec<String>,
    /// Rows of the extended vocabulary.
    rows: Option<u64>,
}

/// The operands of one tensor.
struct Found<'a> {
    shape: Shape,
    inst: Vec<Stretch<'a>>,
    base: Option<(Shape, Vec<Stretch<'a>>)>,
}

impl<'a> Sums<'a> {
    /// The vector's operands for a tensor of the target; a problem is recorded if they are missing.
    fn find(&mut self, name: &str) -> Option<Found<'a>> {
        let mut lookup = |role: &str, model: &'a Checkpoint| {
            let found = effective(self.into, name, model);
            if found.is_none() {
                self.problems.push(format!(
                    "tensor `{name}` is missing in {role} `{}`",
                    model.name()
                ));
            }
            found
        };
        match self.vector {
            Vector::Pair { inst, base } => {
                let (a, b) = (lookup("inst", inst), lookup("base", base));
                let ((shape, inst), base) = (a?, b?);
                Some(Found {
                    shape,
                    inst,
                    base: Some(base),
                })
            }
            Vector::Saved { vector, .. } => {
                let (shape, inst) = lookup("vector", vector)?;
                Some(Found {
                    shape,
                    inst,
                    base: None,
                })
            }
        }
    }

    fn add(
        &mut self,
        draft: &mut Draft,
        home: usize,
        entry: &TensorEntry,
        scale: f64,
    ) -> Result<()> {
        let role = self.into.anatomy().role(&entry.name);
        let vocabulary = matches!(role, Role::Embedding | Role::Head);
        let chosen = self.request.filter.selects(&entry.name)
            && !(vocabulary && self.request.skip_embeddings);
        let dtype = match &self.request.dtype {
            Some(dtype) if entry.dtype.is_float() => dtype.clone(),
            _ => entry.dtype.clone(),
        };
        let own = locate(self.into, &entry.name)
            .map(|(_, s)| s)
            .unwrap_or_default();
        let own = draft.slices("into", &own);
        let copied = |own: Vec<_>| own.into_iter().map(|s| as_dtype(s, &dtype)).collect();
        if !chosen || !entry.dtype.is_float() {
            if chosen {
                self.check_integers(draft, entry)?;
            }
            draft.push(
                home,
                &entry.name,
                dtype.clone(),
                entry.shape.clone(),
                copied(own),
            );
            return Ok(());
        }
        let models: Vec<&Checkpoint> = self.vector.models().into_iter().map(|(_, m)| m).collect();
        refuse_quantised(&[&models[..], &[self.into]].concat(), &entry.name)?;
        let Some(found) = self.find(&entry.name) else {
            return Ok(());
        };
        let fits = found.shape == entry.shape
            && found
                .base
                .as_ref()
                .is_none_or(|(shape, _)| *shape == entry.shape)
            && self
                .saved_rows(vocabulary)
                .is_none_or(|rows| rows == entry.shape.rows());
        if fits {
            let parts = sum(draft, &own, &found, scale);
            draft.push(home, &entry.name, dtype, entry.shape.clone(), parts);
            return Ok(());
        }
        let columns = entry.shape.0.get(1..);
        let same_columns = found.shape.0.get(1..) == columns
            && found
                .base
                .as_ref()
                .is_none_or(|(shape, _)| shape.0.get(1..) == columns);
        match self.request.vocabulary {
            _ if !vocabulary || !same_columns => self.problems.push(self.shapes(entry, &found)),
            VocabularyPolicy::Error => self.vocabularies.push(self.shapes(entry, &found)),
            VocabularyPolicy::Skip => {
                draft.note(format!(
                    "`{}` stays the target's: vocabularies differ",
                    entry.name
                ));
                draft.push(
                    home,
                    &entry.name,
                    dtype.clone(),
                    entry.shape.clone(),
                    copied(own),
                );
            }
            policy => {
                let Some(rows) = self.rows_of(draft, &own, &found, scale) else {
                    self.problems.push(self.shapes(entry, &found));
                    return Ok(());
                };
                let (shape, parts) = rows.parts(policy, &dtype);
                if shape.rows() != entry.shape.rows() {
                    self.rows = Some(shape.rows());
                }
                draft.note(format!(
                    "`{}`: {} of {} rows get the vector",
                    entry.name,
                    rows.into
                        .shape
                        .rows()
                        .min(rows.inst.shape.rows())
                        .min(rows.base_rows),
                    shape.rows()
                ));
                draft.push(home, &entry.name, dtype, shape, parts);
            }
        }
        Ok(())
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
        own: &[crate::plan::Slice],
        found: &Found<'_>,
        scale: f64,
    ) -> Option<Rows> {
        let [into] = own else { return None };
        let [inst] = found.inst.as_slice() else {
            return None;
        };
        let inst = draft.slice("inst", inst);
        let base = match &found.base {
            Some((_, stretches)) => {
                let [base] = stretches.as_slice() else {
                    return None;
                };
                Some(draft.slice("base", base))
            }
            None => None,
        };
        let base_rows = match &base {
            Some(base) => base.shape.rows(),
            None => self.saved_rows(true).unwrap_or(inst.shape.rows()),
        };
        Some(Rows {
            into: into.clone(),
            inst,
            base,
            base_rows,
            scale,
        })
    }

    fn shapes(&self, entry: &TensorEntry, found: &Found<'_>) -> String {
        let base = match (&found.base, self.saved_rows(true)) {
            (Some((shape, _)), _) => format!(", base {shape}"),
            (None, Some(rows)) => format!(", base {rows} rows"),
            (None, None) => String::new(),
        };
        format!(
            "tensor `{}`: into {}, inst {}{base}",
            entry.name, entry.shape, found.shape
        )
    }

    /// Integer buffers stay the target's; integer weights are quantised codes.
    fn check_integers(&self, draft: &mut Draft, entry: &TensorEntry) -> Result<()> {
        let quantised = self.into.config().and_then(crate::checkpoint::quantization);
        if let (Some(method), Role::Layer(_)) = (&quantised, self.into.anatomy().role(&entry.name))
        {
            return Err(Error::Unsupported {
                what: format!("tensor `{}` ({})", entry.name, entry.dtype),
                reason: format!("`{}` is quantised ({method})", self.into.name()),
                hint: "use the unquantised checkpoint of the model".into(),
            });
        }
        draft.note(format!(
            "`{}` ({}) stays the target's: not a float",
            entry.name, entry.dtype
        ));
        Ok(())
    }

    /// A tied target has no head to add the vector's head to.
    fn add_missing_head(&mut self, draft: &mut Draft) -> Result<()> {
        let heads = self
            .vector
            .models()
            .into_iter()
            .flat_map(|(_, m)| m.names_with_role(Role::Head));
        let Some(head) = heads
            .map(str::to_owned)
            .next()
            .filter(|_| self.into.is_tied())
        else {
            return Ok(());
        };
        if self.request.skip_embeddings || !self.request.filter.selects(&head) {
            return Ok(());
        }
        let embedding = self
            .into
            .names_with_role(Role::Embedding)
            .first()
            .map(|n| (*n).to_owned());
        let entry = embedding.and_then(|name| {
            let home = self
                .into
                .names_in_file_order()
                .find(|(_, e)| e.name == name)?
                .0;
            Some((
                home,
                TensorEntry {
                    name: head.clone(),
                    ..self.into.tensor(&name)?.1.clone()
                },
            ))
        });
        match entry {
            Some((home, entry)) if self.request.untie => {
                draft.note(format!(
                    "`{head}` was added: the target's head is no longer tied"
                ));
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
        let own = draft.slices("into", &own);
        let parts = sum(draft, &own, &found, self.request.scale);
        let dtype = self
            .request
            .dtype
            .clone()
            .unwrap_or_else(|| entry.dtype.clone());
        draft.push(home, &entry.name, dtype, shape, parts);
        Ok(())
    }

    /// Tensors of the vector that the target does not have, outside the layers.
    fn note_extras(&self, draft: &mut Draft) {
        for (role, model) in self.vector.models() {
            let extra = |name: &str| {
                effective(model, name, self.into).is_none()
                    && matches!(model.anatomy().role(name), Role::Other | Role::MultiToken)
            };
            let extras: Vec<&str> = model
                .tensors()
                .map(|(name, _)| name)
                .filter(|n| extra(n))
                .collect();
            if let Some(first) = extras.first() {
                draft.note(format!(
                    "{} tensors of {role} have no counterpart in the target (first: `{first}`)",
                    extras.len()
                ));
            }
        }
    }
}

/// `own + scale * (inst - base)`, piece by piece where expert layouts differ.
fn sum(draft: &mut Draft, own: &[crate::plan::Slice], found: &Found<'_>, scale: f64) -> Vec<Part> {
    let mut operands = vec![own.to_vec(), draft.slices("inst", &found.inst)];
    if let Some((_, base)) = &found.base {
        operands.push(draft.slices("base", base));
    }
    let blend = |group: Vec<crate::plan::Slice>| {
        let mut group = group.into_iter();
        let base = group.next();
        let weights = [1.0, -1.0];
        let terms = group
            .zip(weights)
            .map(|(slice, weight)| Term { slice, weight })
            .collect();
        Part::Blend(Box::new(Blend {
            base,
            terms,
            lambda: scale,
        }))
    };
    line_up(&operands)
        .unwrap_or_default()
        .into_iter()
        .map(blend)
        .collect()
}

/// Decoder layers that `model` has and `other` lacks, by their first tensor.
fn missing_layers(model: &Checkpoint, other: &Checkpoint) -> Vec<String> {
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

fn mismatch(what: &str, problems: Vec<String>) -> Error {
    let hint = "the models must be of one family; `--exclude GLOB` leaves tensors as they are in the target";
    Error::Mismatch {
        what: what.to_owned(),
        problems,
        hint: hint.to_owned(),
    }
}

/// The scale tensor that belongs to a weight, if the checkpoint stores one.
pub(super) fn scale_of(model: &Checkpoint, name: &str) -> Option<String> {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    [
        format!("{name}_scale_inv"),
        format!("{name}_scale"),
        format!("{stem}.scales"),
        format!("{stem}_scales"),
    ]
    .into_iter()
    .find(|scale| model.tensor(scale).is_some())
}

fn refuse_quantised(models: &[&Checkpoint], name: &str) -> Result<()> {
    match models.iter().find_map(|model| scale_of(model, name)) {
        Some(scale) => Err(quantised(name, &scale)),
        None => Ok(()),
    }
}
