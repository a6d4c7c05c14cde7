//! The weighted sum of adapters as one: matrices side by side, so that ranks add up and nothing is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ndarray::{Array2, Axis, concatenate};
use serde_json::{Value, json};

use super::output::{Made, Piece, create_work, plan, read_work, work_folder, write_work};
use crate::checkpoint::{Adapter, ModuleFactors};
use crate::engine::{BlendTile, Device as _, Operand, Simd};
use crate::error::{Error, Result};
use crate::format::{Dtype, TensorEntry};

/// `adapter_config.json` of an adapter whose products have the scale 1 and these ranks.
pub(super) fn settings(
    base: &str,
    common: u64,
    ranks: &BTreeMap<String, u64>,
    whole: &[String],
) -> Value {
    let other: BTreeMap<&String, u64> =
        ranks.iter().filter(|(_, rank)| **rank != common).map(|(m, rank)| (m, *rank)).collect();
    let modules: Vec<&String> = ranks.keys().collect();
    json!({
        "alpha_pattern": other,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": common,
        "lora_dropout": 0.0,
        "modules_to_save": if whole.is_empty() { Value::Null } else { json!(whole) },
        "peft_type": "LORA",
        "r": common,
        "rank_pattern": other,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    })
}

/// Makes one adapter of several: `sum(weight * scale * B A)` as one product a module, in f32, to be written to `out`. All
/// matrices of a module are in memory at once.
///
/// # Errors
/// Adapters with tensors that are no products (whole ones, embeddings), or whose modules are of different sizes.
pub fn join(adapters: &[(&Adapter, f64)], out: &Path, dtype: &Dtype) -> Result<Made> {
    let mut problems = Vec::new();
    let mut modules: BTreeMap<String, Vec<(usize, ModuleFactors)>> = BTreeMap::new();
    for (i, (adapter, _)) in adapters.iter().enumerate() {
        match adapter.factors() {
            Ok(factors) => {
                for factor in factors {
                    modules.entry(factor.module.clone()).or_default().push((i, factor));
                }
            }
            Err(found) => problems.extend(found),
        }
    }
    let transposed: BTreeSet<bool> =
        adapters.iter().map(|(adapter, _)| adapter.settings().fan_in_fan_out).collect();
    if transposed.len() > 1 {
        problems.push("some of the adapters have `fan_in_fan_out` and some have not".into());
    }
    for (module, factors) in &modules {
        let size = |f: &ModuleFactors| (f.down.shape.0.get(1).copied(), f.up.shape.rows());
        if factors.iter().any(|(_, f)| size(f) != size(&factors[0].1)) {
            problems.push(format!("module `{module}` has different sizes in the adapters"));
        }
    }
    if !problems.is_empty() {
        return Err(Error::Mismatch {
            what: "the adapters cannot be added up".into(),
            problems,
            hint: "apply them to the model instead: `elo-surgery lora apply --adapter A:0.5 --adapter B:0.5`".into(),
        });
    }
    let work = work_folder(out);
    let lock = create_work(&work, out)?;
    let mut ranks = BTreeMap::new();
    let mut pieces = Vec::new();
    for (number, (module, factors)) in modules.iter().enumerate() {
        let (mut downs, mut ups) = (Vec::new(), Vec::new());
        for (i, factor) in factors {
            let (adapter, weight) = adapters[*i];
            let scale = weight * factor.scale;
            downs.push(matrix(adapter, &factor.down, scale)?);
            ups.push(matrix(adapter, &factor.up, 1.0)?);
        }
        let odd = |e: ndarray::ShapeError| Error::Plan { problem: e.to_string() };
        let views: Vec<_> = downs.iter().map(|matrix| matrix.view()).collect();
        let down = concatenate(Axis(0), &views).map_err(odd)?;
        let views: Vec<_> = ups.iter().map(|matrix| matrix.view()).collect();
        let up = concatenate(Axis(1), &views).map_err(odd)?;
        ranks.insert(module.clone(), down.nrows() as u64);
        let path = work.join(format!("{number:06}.safetensors"));
        let numbers = |matrix: &Array2<f32>| matrix.iter().copied().collect::<Vec<f32>>();
        let matrices = [
            ("down", [down.nrows(), down.ncols()], &numbers(&down)[..]),
            ("up", [up.nrows(), up.ncols()], &numbers(&up)[..]),
        ];
        write_work(&path, BTreeMap::new(), &matrices)?;
        for (piece, side) in read_work(&path)?.into_iter().flat_map(|(_, p)| p).zip(["A", "B"]) {
            let name = format!("base_model.model.{module}.lora_{side}.weight");
            pieces.push(Piece { name, ..piece });
        }
    }
    let common = ranks.values().copied().max().unwrap_or(1);
    let first = adapters.first().map(|(adapter, _)| adapter.settings().all().clone());
    let named = first.as_ref().and_then(|all| all.get("base_model_name_or_path")?.as_str());
    let mut all = settings(named.unwrap_or_default(), common, &ranks, &[]);
    all["fan_in_fan_out"] = json!(transposed.contains(&true));
    let weights: Vec<f64> = adapters.iter().map(|(_, weight)| *weight).collect();
    let parameters = json!({ "weights": weights, "dtype": dtype });
    let parameters = parameters.as_object().cloned().unwrap_or_default();
    let parents = adapters.iter().map(|(adapter, _)| adapter.as_parent()).collect();
    let plan = plan(("lora-merge", parameters), pieces, dtype, &all, parents)?;
    Ok(Made { plan, work, _lock: lock })
}

/// A matrix times a factor, as f32.
fn matrix(adapter: &Adapter, entry: &TensorEntry, factor: f64) -> Result<Array2<f32>> {
    let shard = adapter.shard();
    let source = shard.source()?;
    let range = shard.bytes(entry);
    let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(usize::MAX)];
    source.read_exact_at(&mut bytes, range.start)?;
    let count = usize::try_from(entry.shape.elements().unwrap_or(0)).unwrap_or(usize::MAX);
    let mut wide = vec![0; count * 4];
    let terms = [(Operand { dtype: &entry.dtype, bytes: &bytes }, factor)];
    let tile =
        BlendTile { base: None, terms: &terms, lambda: 1.0, dtype: &Dtype::F32, rules: None };
    Simd::new().blend(&tile, &mut wide)?;
    let numbers: Vec<f32> =
        wide.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let rows = usize::try_from(entry.shape.rows()).unwrap_or(usize::MAX);
    let shape = (rows, count / rows.max(1));
    Array2::from_shape_vec(shape, numbers).map_err(|e| Error::Plan { problem: e.to_string() })
}
