//! Inject: put trained layers back into the model they came from, or into a relative of it.

use std::collections::HashMap;

use serde_json::json;

use super::draft::{Derived, Draft, as_dtype};
use super::extract::check_layer_count;
use super::operand::{counterpart, effective, is_buffer};
use super::vector::refuse_vectors;
use crate::checkpoint::{Checkpoint, LayerSelector, Role, locate};
use crate::error::{Error, Result};
use crate::format::{Dtype, TensorEntry};
use crate::plan::{Part, Plan};

/// What to inject.
#[derive(Clone, Debug, Default)]
pub struct Inject {
    /// The layers of the target to replace. Without it the part's own record of where it came from decides.
    pub layers: Option<LayerSelector>,
    /// Also everything outside the layers: embedding, position embedding, final norm, head, and what else the part has.
    pub all: bool,
    /// Data bytes of a shard, to lay the output out anew.
    pub shard_size: Option<u64>,
}

/// Plans an inject. The output is `into` with the layers of `part`, in `into`'s names, dtypes, layout and config.
///
/// `part` is an extract (of as many layers as are selected) or a whole model (of as many layers as `into`). Trained
/// weights of another float dtype are rounded once, to nearest even.
///
/// # Errors
/// Layers, names, shapes or dtypes that do not fit: all of them, before anything is written.
pub fn inject(part: &Checkpoint, into: &Checkpoint, request: &Inject) -> Result<Plan> {
    refuse_vectors(&[part, into])?;
    check_layer_count(into)?;
    check_layer_count(part)?;
    let map = layer_mapping(part, into, request.layers.as_ref())?;
    let mut numbers: Vec<u64> = map.keys().map(|layer| layer + 1).collect();
    numbers.sort_unstable();
    let parameters =
        json!({ "layers": numbers, "all": request.all, "shard_size": request.shard_size });
    let mut draft = Draft::new("inject", &parameters);
    draft.parent("into", into);
    draft.parent("part", part);

    let mut problems = Vec::new();
    for (home, entry) in into.names_in_file_order() {
        let wanted = match into.anatomy().role(&entry.name) {
            Role::Layer(layer) => {
                map.get(&layer).map(|own| into.anatomy().renumbered(&entry.name, *own))
            }
            Role::MultiToken => None,
            // What else lies outside the layers (a vision tower, an embedding's norm) stays where the part lacks it.
            Role::Other if counterpart(into, &entry.name, part).is_none() => None,
            _ => request.all.then(|| entry.name.clone()),
        };
        let parts = match wanted {
            None => {
                let stretches = locate(into, &entry.name).map(|(_, s)| s).unwrap_or_default();
                Ok(draft.slices("into", &stretches).into_iter().map(Part::Copy).collect())
            }
            Some(name) => replacement(&mut draft, part, into, &name, entry),
        };
        match parts {
            Ok(parts) => {
                draft.push(home, &entry.name, entry.dtype.clone(), entry.shape.clone(), parts);
            }
            Err(problem) => problems.push(problem),
        }
    }
    problems.extend(unplaced(part, into, &map, request.all));
    if !problems.is_empty() {
        return Err(Error::Mismatch {
            what: format!("`{}` does not fit into `{}`", part.name(), into.name()),
            problems,
            hint: "inject the part into the model it was extracted from; `elo-surgery inspect` shows both".into(),
        });
    }
    draft.finish(&Derived { shard_size: request.shard_size, ..Derived::from(into, "into") })
}

/// The part's tensor `name` in the dtype of the target's `entry`, or why it does not fit.
fn replacement(
    draft: &mut Draft,
    part: &Checkpoint,
    into: &Checkpoint,
    name: &str,
    entry: &TensorEntry,
) -> Result<Vec<Part>, String> {
    let Some((shape, stretches)) = effective(into, name, part) else {
        return Err(format!("tensor `{name}` is missing in `{}`", part.name()));
    };
    let (own, model) = (&entry.name, into.name());
    if shape != entry.shape {
        return Err(format!(
            "tensor `{name}` has shape {shape}, `{own}` in `{model}` has {}",
            entry.shape
        ));
    }
    let slices = draft.slices("part", &stretches);
    let quantised = || scaled(part, into, name);
    match slices.iter().find(|s| !converts(&s.dtype, &entry.dtype, quantised)) {
        Some(odd) => {
            Err(format!("tensor `{name}` is {}, `{model}` needs {}", odd.dtype, entry.dtype))
        }
        None => Ok(slices.into_iter().map(|s| as_dtype(s, &entry.dtype)).collect()),
    }
}

/// Whether values can become another dtype by rounding alone.
fn converts(from: &Dtype, to: &Dtype, quantised: impl Fn() -> bool) -> bool {
    from == to || (from.is_float() && to.is_float() && !quantised())
}

/// A quantised weight means nothing without its scale: its codes must not be converted alone.
fn scaled(part: &Checkpoint, into: &Checkpoint, name: &str) -> bool {
    [part, into].into_iter().any(|model| super::quantised::scale_of(model, name).is_some())
}

/// Which layer of the target gets which layer of the part, both from 0.
fn layer_mapping(
    part: &Checkpoint,
    into: &Checkpoint,
    selector: Option<&LayerSelector>,
) -> Result<HashMap<u64, u64>> {
    let recorded = part.provenance().and_then(|p| p.layer_map.as_ref());
    let recorded = recorded.filter(|map| map.layers.len() as u64 == part.layers());
    let selected = selector.map(|s| s.resolve(into.layers(), into.name())).transpose()?;
    let usage = |problem: String| Error::Usage {
        problem,
        hint: "the full form: `elo-surgery inject PART --into MODEL --layers 1,32 --out DIR`"
            .into(),
    };
    if let Some(map) = recorded {
        if map.of != into.layers() {
            return Err(usage(format!(
                "`{}` was extracted from a model of {} layers, `{}` has {}",
                part.name(),
                map.of,
                into.name(),
                into.layers()
            )));
        }
        let mut origin = HashMap::new();
        for (own, layer) in (0_u64..).zip(&map.layers) {
            if !(1..=map.of).contains(layer) || origin.insert(layer - 1, own).is_some() {
                return Err(Error::Mismatch {
                    what: format!("the record of layers of `{}` is not usable", part.name()),
                    problems: vec![format!("layer {layer} of {}", map.of)],
                    hint:
                        "remove `layer_map` from its `elo-surgery.json` and choose with `--layers`"
                            .into(),
                });
            }
        }
        let Some(selected) = selected else {
            return Ok(origin);
        };
        if let Some(absent) = selected.iter().find(|layer| !origin.contains_key(layer)) {
            let has: Vec<String> = map.layers.iter().map(u64::to_string).collect();
            return Err(usage(format!(
                "`{}` does not hold layer {}: it holds {}",
                part.name(),
                absent + 1,
                has.join(", ")
            )));
        }
        return Ok(selected.into_iter().map(|layer| (layer, origin[&layer])).collect());
    }
    match selected {
        // A whole model: layer for layer.
        Some(selected) if part.layers() == into.layers() => {
            Ok(selected.into_iter().map(|layer| (layer, layer)).collect())
        }
        Some(selected) if part.layers() == selected.len() as u64 => {
            Ok(selected.into_iter().zip(0..).collect())
        }
        Some(selected) => Err(usage(format!(
            "{} layers are selected, `{}` has {}",
            selected.len(),
            part.name(),
            part.layers()
        ))),
        None if part.layers() == into.layers() && part.layers() > 0 => {
            Ok((0..into.layers()).map(|layer| (layer, layer)).collect())
        }
        None => Err(usage(format!(
            "`{}` has {} layers and no record of where they belong in the {} of `{}`",
            part.name(),
            part.layers(),
            into.layers(),
            into.name()
        ))),
    }
}

/// Tensors of the part that have no place in the target: a lost bias or scale must not pass in silence.
fn unplaced(
    part: &Checkpoint,
    into: &Checkpoint,
    map: &HashMap<u64, u64>,
    all: bool,
) -> Vec<String> {
    let home: HashMap<u64, u64> = map.iter().map(|(layer, own)| (*own, *layer)).collect();
    let mut lost = Vec::new();
    for (name, _) in part.tensors() {
        let target = match part.anatomy().role(name) {
            Role::Layer(own) if home.contains_key(&own) => {
                part.anatomy().renumbered(name, home[&own])
            }
            Role::Embedding | Role::PositionEmbedding | Role::FinalNorm | Role::Head if all => {
                name.to_owned()
            }
            _ => continue,
        };
        if !is_buffer(name) && counterpart(part, &target, into).is_none() {
            lost.push(format!(
                "tensor `{name}` of `{}` has no place in `{}`",
                part.name(),
                into.name()
            ));
        }
    }
    lost
}
