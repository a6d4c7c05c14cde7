//! Where a chat vector comes from: two models, or a difference saved earlier as a checkpoint of its own.
//!
//! A saved vector is a checkpoint of f32 tensors (f64 where an input is): the very values that the direct form computes
//! before it scales and adds. Its header metadata says what it is and how many rows the base's vocabulary had.

use std::collections::BTreeMap;

use serde_json::json;

use super::draft::{Derived, Draft, as_dtype};
use super::filter::TensorFilter;
use super::operand::{effective, is_buffer, line_up, rows_of};
use super::quantised::refuse_quantised;
use super::sums::{is_vocabulary, mismatch, missing_layers};
use super::values::{Seen, explained};
use crate::checkpoint::{Checkpoint, Role, SidecarFile, Stretch, locate};
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::plan::{Blend, Operand, Part, Plan, Term};

/// Header metadata of a saved vector: rows of the base model's vocabulary.
const BASE_ROWS: &str = "elo_surgery.base_vocabulary_rows";
/// Prefix of a copy of the instruct model's vocabulary-sized tensors: an extended vocabulary takes rows from it.
const ROWS: &str = "elo_surgery.rows.";
/// Header metadata that marks a saved vector.
const KIND: &str = "elo_surgery.kind";
const KIND_VECTOR: &str = "chat-vector";

/// Where the vector comes from.
#[derive(Clone, Copy)]
pub(super) enum Vector<'a> {
    /// The difference of two models.
    Pair { inst: &'a Checkpoint, base: &'a Checkpoint },
    /// A difference saved earlier, and the rows of the base model's vocabulary.
    Saved { vector: &'a Checkpoint, base_rows: Option<u64> },
}

impl<'a> Vector<'a> {
    /// Recognises a saved vector.
    pub(super) fn saved(vector: &'a Checkpoint) -> Result<Self> {
        if !is_saved_vector(vector) {
            return Err(Error::Unsupported {
                what: format!("`{}`", vector.name()),
                reason: "it is not a saved chat vector".into(),
                hint: "make one with `elo-surgery chat-vector --inst A --base B --save-vector DIR`"
                    .into(),
            });
        }
        let base_rows = metadata(vector, BASE_ROWS).and_then(|rows| rows.parse().ok());
        Ok(Self::Saved { vector, base_rows })
    }

    pub(super) fn models(self) -> Vec<(&'static str, &'a Checkpoint)> {
        match self {
            Self::Pair { inst, base } => vec![("inst", inst), ("base", base)],
            Self::Saved { vector, .. } => vec![("vector", vector)],
        }
    }

    /// The copy of the instruct model's rows beside a saved difference; a tied head's are the embedding's.
    pub(super) fn saved_rows(self, role: Role) -> Option<Stretch<'a>> {
        let Self::Saved { vector, .. } = self else {
            return None;
        };
        let own = vector.names_with_role(role).first().copied();
        let name = own.or_else(|| vector.names_with_role(Role::Embedding).first().copied())?;
        let (_, stretches) = locate(vector, &format!("{ROWS}{name}"))?;
        stretches.into_iter().next()
    }

    /// The model whose rows a larger vocabulary comes from.
    fn inst(self) -> &'a Checkpoint {
        match self {
            Self::Pair { inst, .. } => inst,
            Self::Saved { vector, .. } => vector,
        }
    }

    /// The target's files; with an extended vocabulary, the instruct model's tokenizer instead of the target's.
    pub(super) fn sidecars(self, into: &Checkpoint, extended: bool) -> Vec<SidecarFile> {
        if !extended {
            return into.sidecars().to_vec();
        }
        let own = into.sidecars().iter().filter(|s| !is_tokenizer(&s.file));
        let new = self.inst().sidecars().iter().filter(|s| is_tokenizer(&s.file));
        own.chain(new).cloned().collect()
    }
}

fn metadata<'a>(checkpoint: &'a Checkpoint, key: &str) -> Option<&'a str> {
    checkpoint.shards().first()?.header.metadata.get(key).map(String::as_str)
}

pub(super) fn is_saved_vector(checkpoint: &Checkpoint) -> bool {
    metadata(checkpoint, KIND) == Some(KIND_VECTOR)
}

/// Refuses a saved vector where a model is meant: differences are no weights.
pub(super) fn refuse_vectors(models: &[&Checkpoint]) -> Result<()> {
    match models.iter().find(|model| is_saved_vector(model)) {
        None => Ok(()),
        Some(vector) => Err(Error::Unsupported {
            what: format!("`{}`", vector.name()),
            reason: "it is a saved chat vector, not a model".into(),
            hint: "add it with `elo-surgery chat-vector --vector DIR --into MODEL`, or with `merge` by task_arithmetic and the like".into(),
        }),
    }
}

/// Rows of the vocabulary that a saved vector has differences for; further rows are values.
#[cfg(feature = "merge")]
pub(super) fn vocabulary_of(vector: &Checkpoint) -> Option<u64> {
    metadata(vector, BASE_ROWS)?.parse().ok()
}

/// Whether a tensor of a saved vector is a copy of rows, not a difference.
pub(super) fn is_saved_rows(name: &str) -> bool {
    name.starts_with(ROWS)
}

/// Tensors of the base's layers that the instruct model lacks: their difference cannot be told.
fn unmatched_layer_tensors(
    base: &Checkpoint,
    inst: &Checkpoint,
    filter: &TensorFilter,
) -> Vec<String> {
    let in_layer =
        |name: &&str| matches!(base.anatomy().role(name), Role::Layer(l) if l < inst.layers());
    let lost = |name: &&str| {
        filter.selects(name) && !is_buffer(name) && effective(base, name, inst).is_none()
    };
    let names = base.tensors().map(|(name, _)| name).filter(in_layer).filter(lost);
    names.map(|name| format!("tensor `{name}` is missing in inst `{}`", inst.name())).collect()
}

fn is_tokenizer(file: &str) -> bool {
    let names = ["special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"];
    file.starts_with("tokenizer") || file.starts_with("chat_template") || names.contains(&file)
}

/// Plans the difference `inst - base` as a checkpoint of f32 tensors (f64 where an input is): exactly what
/// [`chat_vector`](super::chat_vector()) computes before it scales and adds, so nothing is lost by saving it.
///
/// # Errors
/// Tensors that are missing or of another shape; quantised weights.
pub fn save_vector(
    inst: &Checkpoint,
    base: &Checkpoint,
    filter: &TensorFilter,
    shard_size: Option<u64>,
) -> Result<Plan> {
    refuse_vectors(&[inst, base])?;
    let all = |_: &Checkpoint, _: &str| true;
    let (inst, base) = (Seen::new(inst, all), Seen::new(base, all));
    let planned = saved(&inst.checkpoint, &base.checkpoint, filter, shard_size);
    explained(planned, [inst, base].map(Seen::refusal))
}

fn saved(
    inst: &Checkpoint,
    base: &Checkpoint,
    filter: &TensorFilter,
    shard_size: Option<u64>,
) -> Result<Plan> {
    filter.check(&[inst, base])?;
    let parameters = json!({ "filter": filter.describe(), "shard_size": shard_size });
    let mut draft = Draft::new("save-vector", &parameters);
    draft.parent("inst", inst);
    draft.parent("base", base);
    let mut problems = missing_layers(base, inst);
    let own_head = inst.names_with_role(Role::Head).is_empty() && inst.is_tied();
    let base_head = base.names_with_role(Role::Head).into_iter().filter(|_| own_head);
    let names = inst.names_in_file_order().map(|(home, entry)| (home, entry.name.as_str()));
    // A head that only the base stores has a difference too: to the instruct model's embedding.
    for (home, name) in names.chain(base_head.map(|name| (0, name))) {
        let Some((shape, a)) = effective(base, name, inst) else {
            continue;
        };
        let float = a.iter().all(|stretch| stretch.dtype.is_float());
        if !filter.selects(name) || !float {
            draft.note(format!("`{name}` is not part of the vector"));
            continue;
        }
        refuse_quantised(&[inst, base], name)?;
        let Some((base_shape, b)) = effective(inst, name, base).or_else(|| locate(base, name))
        else {
            problems.push(format!("tensor `{name}` is missing in base `{}`", base.name()));
            continue;
        };
        let vocabulary = is_vocabulary(inst.anatomy().role(name));
        let same_columns = shape.0.get(1..) == base_shape.0.get(1..);
        if !same_columns || (!vocabulary && shape != base_shape) {
            problems.push(format!("tensor `{name}`: inst {shape}, base {base_shape}"));
            continue;
        }
        let wide = a.iter().chain(&b).any(|s| *s.dtype == Dtype::F64);
        let dtype = if wide { Dtype::F64 } else { Dtype::F32 };
        let kept = a.first().map_or(Dtype::F32, |stretch| stretch.dtype.clone());
        let (a, b) = (draft.operands("inst", &a), draft.operands("base", &b));
        let parts = difference(&a, &b, &dtype);
        if vocabulary {
            let rows = a.iter().map(|values| as_dtype(values.clone(), &kept)).collect();
            draft.push(home, &format!("{ROWS}{name}"), kept, shape.clone(), rows);
        }
        draft.push(home, name, dtype, shape, parts);
    }
    problems.extend(unmatched_layer_tensors(base, inst, filter));
    if !problems.is_empty() {
        return Err(mismatch("the vector cannot be computed", problems));
    }
    let mut metadata = BTreeMap::from([(KIND.to_owned(), KIND_VECTOR.to_owned())]);
    if let Some(rows) = base.vocabulary_rows() {
        metadata.insert(BASE_ROWS.to_owned(), rows.to_string());
    }
    draft.finish(&Derived { shard_size, metadata, ..Derived::from(inst, "inst") })
}

/// Rows both have as differences, further rows of the instruct model as they are.
fn difference(a: &[Operand], b: &[Operand], dtype: &Dtype) -> Vec<Part> {
    let subtract = |a: Operand, b: Operand| {
        let terms = vec![Term::new(a, 1.0), Term::new(b, -1.0)];
        Part::Blend(Box::new(Blend::sum(None, terms, 1.0)))
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
    let (rows, shared) = (a.shape().rows(), a.shape().rows().min(b.shape().rows()));
    let mut parts = vec![subtract(rows_of(a, 0, shared), rows_of(b, 0, shared))];
    if shared < rows {
        parts.push(as_dtype(rows_of(a, shared, rows), dtype));
    }
    parts
}
