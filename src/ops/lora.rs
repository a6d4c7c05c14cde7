//! LoRA adapters applied to a model: `W + weight * scale * B A`, tensor by tensor, nothing but tiles in memory.

use serde_json::{Value, json};

use super::draft::{Derived, Draft, as_dtype};
use super::vector::refuse_vectors;
use crate::checkpoint::{Adapter, Checkpoint, locate, set_dtype};
use crate::error::Result;
use crate::format::Dtype;
use crate::plan::Plan;

/// Plans `model` with adapters applied, each with a weight, in the model's layout and in its dtypes or `dtype`. A quantised
/// model becomes its values.
///
/// The sum of weight and products is in f64 and rounded to f32, then to the dtype (PEFT's `merge_and_unload` rounds the
/// product to the dtype first).
///
/// # Errors
/// Tensors of an adapter that have no place in the model, all at once; a quantised model that cannot be read.
pub fn apply(
    model: &Checkpoint,
    adapters: &[(&Adapter, f64)],
    dtype: Option<&Dtype>,
    shard_size: Option<u64>,
) -> Result<Plan> {
    refuse_vectors(&[model])?;
    let model = model.with_adapters(adapters)?;
    let weights: Vec<Value> = adapters
        .iter()
        .map(|(adapter, weight)| json!({ "adapter": adapter.as_parent().structure, "weight": weight }))
        .collect();
    let parameters = json!({ "adapters": weights, "dtype": dtype, "shard_size": shard_size });
    let mut draft = Draft::new("lora-apply", &parameters);
    draft.parent("model", &model);
    for (home, entry) in model.names_in_file_order() {
        let stretches = locate(&model, &entry.name).map(|(_, s)| s).unwrap_or_default();
        let values = draft.operands("model", &stretches);
        let dtype = dtype.filter(|_| entry.dtype.is_float()).unwrap_or(&entry.dtype);
        let parts = values.into_iter().map(|values| as_dtype(values, dtype)).collect();
        draft.push(home, &entry.name, dtype.clone(), entry.shape.clone(), parts);
    }
    let mut derived = Derived { shard_size, ..Derived::from(&model, "model") };
    if let (Some(config), Some(dtype)) = (&mut derived.config, dtype) {
        set_dtype(config, dtype);
    }
    draft.finish(&derived)
}
