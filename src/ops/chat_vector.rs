//! Chat vector: `C + scale * (A - B)`, the instruction tuning of A over its base B added to C.
//!
//! Chat Vector (arXiv 2310.04799); ELO, stage 4. f32 arithmetic and one rounding: with bf16 inputs and a scale of 1 the
//! result is the correctly rounded one.
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::draft::{Derived, Draft};
use super::filter::TensorFilter;
use super::sums::Sums;
use super::values::{Seen, explained};
use super::vector::{Vector, refuse_vectors};
use super::vocabulary::VocabularyPolicy;
use crate::checkpoint::{Checkpoint, LayerSelector, Role, set_dtype, set_tied, set_vocab_size};
use crate::error::Result;
use crate::format::Dtype;
use crate::plan::Plan;

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
    refuse_vectors(&[inst, base])?;
    let all = |_: &Checkpoint, _: &str| true;
    let (inst, base, into) = (Seen::new(inst, all), Seen::new(base, all), request.seen(into));
    let pair = Vector::Pair { inst: &inst.checkpoint, base: &base.checkpoint };
    let planned = plan(pair, &into.checkpoint, request);
    explained(planned, [into, inst, base].map(Seen::refusal))
}

/// Plans `into + scale * vector` with a vector saved by [`save_vector`](super::save_vector). The same bytes as [`chat_vector`] gives.
///
/// # Errors
/// As [`chat_vector`]; a checkpoint that is not a saved vector.
pub fn add_vector(vector: &Checkpoint, into: &Checkpoint, request: &ChatVector) -> Result<Plan> {
    let into = request.seen(into);
    let planned = plan(Vector::saved(vector)?, &into.checkpoint, request);
    explained(planned, [into.refusal()])
}

fn plan(vector: Vector<'_>, into: &Checkpoint, request: &ChatVector) -> Result<Plan> {
    refuse_vectors(&[into])?;
    let models: Vec<&Checkpoint> = vector.models().into_iter().map(|(_, model)| model).collect();
    request.filter.check(&[&[into], &models[..]].concat())?;
    let mut draft = Draft::new("chat-vector", &request.describe());
    draft.parent("into", into);
    for (role, model) in vector.models() {
        draft.parent(role, model);
    }
    let factors = request.factors(into)?;
    let mut sums = Sums::new(vector, into, request);
    for (home, entry) in into.names_in_file_order() {
        let scale = match into.anatomy().role(&entry.name) {
            Role::Layer(layer) => factors.get(&layer).copied().unwrap_or(request.scale),
            _ => request.scale,
        };
        sums.add(&mut draft, home, entry, scale)?;
    }
    sums.add_missing_head(&mut draft)?;
    sums.check_extras(&mut draft);
    let rows = sums.finish(&draft.plan().tensors)?;
    let mut derived = Derived { shard_size: request.shard_size, ..Derived::from(into, "into") };
    if let Some(config) = &mut derived.config {
        if let Some(rows) = rows {
            set_vocab_size(config, rows);
        }
        if let Some(dtype) = &request.dtype {
            set_dtype(config, dtype);
        }
        if request.untie {
            set_tied(config, false);
        }
    }
    let sidecars = vector.sidecars(into, rows.is_some());
    if rows.is_some() {
        draft.note("the vocabulary was extended: the tokenizer files are the instruct model's");
    }
    draft.finish(&Derived { sidecars: &sidecars, ..derived })
}

impl ChatVector {
    /// The target: its codes stay what they are if none of them gets the vector.
    fn seen<'a>(&self, into: &'a Checkpoint) -> Seen<'a> {
        Seen::new(into, |model, name| {
            let vocabulary = model.anatomy().role(name).is_vocabulary();
            self.filter.selects(name) && !(vocabulary && self.skip_embeddings)
        })
    }

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
