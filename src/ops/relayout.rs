//! Reshard and cast: the same weights in other files or another dtype.

use serde_json::json;

use super::draft::{Derived, Draft, as_dtype};
use super::filter::TensorFilter;
use super::quantised::refuse_quantised;
use super::values::{Seen, explained};
use crate::checkpoint::{Checkpoint, Role, locate, set_dtype};
use crate::error::{Error, Result};
use crate::format::{Dtype, TensorEntry};
use crate::plan::{Part, Plan};

/// Plans the same tensors in shards of at most `shard_size` data bytes, in file order. All bytes are copied.
pub fn reshard(model: &Checkpoint, shard_size: u64) -> Result<Plan> {
    let mut draft = Draft::new("reshard", &json!({ "shard_size": shard_size }));
    draft.parent("model", model);
    for (home, entry) in model.names_in_file_order() {
        let stretches = locate(model, &entry.name).map(|(_, s)| s).unwrap_or_default();
        let parts = draft.slices("model", &stretches).into_iter().map(Part::Copy).collect();
        draft.push(home, &entry.name, entry.dtype.clone(), entry.shape.clone(), parts);
    }
    draft.finish(&Derived { shard_size: Some(shard_size), ..Derived::from(model, "model") })
}

/// What to cast.
#[derive(Clone, Debug)]
pub struct Cast {
    /// The float dtype to cast to.
    pub dtype: Dtype,
    /// Which tensors; all floats by default.
    pub filter: TensorFilter,
    /// Data bytes of a shard, to lay the output out anew.
    pub shard_size: Option<u64>,
}

/// Plans the same tensors with every selected float in another dtype, rounded once to nearest even. A quantised model becomes its
/// values.
///
/// # Errors
/// Quantised weights of a format that cannot be read, or only some of them.
pub fn cast(model: &Checkpoint, request: &Cast) -> Result<Plan> {
    let seen = Seen::new(model, |_, name| request.filter.selects(name));
    let left = seen.checkpoint.recipes().find(|(name, _)| !request.filter.selects(name));
    if let Some((left, _)) = left {
        return Err(Error::Unsupported {
            what: format!("`{}`", model.name()),
            reason: format!(
                "it is quantised, and only some of its codes are selected (not `{left}`)"
            ),
            hint: "select all quantised tensors, or none".into(),
        });
    }
    let planned = cast_seen(&seen.checkpoint, request);
    // Scales may bear any name: of what cannot be read, only vectors are no part of a quantised weight.
    let matrix = |(_, entry): (usize, &TensorEntry)| {
        let layer = matches!(model.anatomy().role(&entry.name), Role::Layer(_));
        layer && entry.shape.0.len() > 1 && request.filter.selects(&entry.name)
    };
    let touches = model.names_in_file_order().any(matrix);
    match seen.refusal() {
        Some(refusal) if touches => Err(refusal),
        refusal => explained(planned, [refusal]),
    }
}

fn cast_seen(model: &Checkpoint, request: &Cast) -> Result<Plan> {
    request.filter.check(&[model])?;
    let parameters = json!({
        "dtype": request.dtype, "filter": request.filter.describe(), "shard_size": request.shard_size,
    });
    let mut draft = Draft::new("cast", &parameters);
    draft.parent("model", model);
    let mut untouched = 0_u64;
    for (home, entry) in model.names_in_file_order() {
        let stretches = locate(model, &entry.name).map(|(_, s)| s).unwrap_or_default();
        let values = draft.operands("model", &stretches);
        let chosen = request.filter.selects(&entry.name) && entry.dtype.is_float();
        let changes = chosen && entry.dtype != request.dtype;
        if changes {
            refuse_quantised(&[model], &entry.name)?;
        }
        let dtype = if chosen { request.dtype.clone() } else { entry.dtype.clone() };
        untouched += u64::from(!chosen);
        let parts = values.into_iter().map(|values| as_dtype(values, &dtype)).collect();
        draft.push(home, &entry.name, dtype, entry.shape.clone(), parts);
    }
    if untouched > 0 {
        draft.note(format!("{untouched} tensors keep their dtype (not floats, or not selected)"));
    }
    let mut derived = Derived { shard_size: request.shard_size, ..Derived::from(model, "model") };
    if let Some(config) = &mut derived.config {
        set_dtype(config, &request.dtype);
    }
    draft.finish(&derived)
}
