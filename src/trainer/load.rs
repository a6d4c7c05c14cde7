//! A checkpoint's tensors as f32 masters, with a digest of all of them.

use std::collections::HashSet;

use super::model::{Design, Weight, Weights};
use super::values;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// A model in memory.
pub(super) struct Loaded {
    pub(super) design: Design,
    pub(super) weights: Weights,
    /// BLAKE3 over names and bytes of every tensor.
    pub(super) digest: String,
}

/// Reads the design of a model, or refuses it with all reasons.
pub(super) fn design(model: &Checkpoint) -> Result<Design> {
    Design::of(model).map_err(|problems| Error::Mismatch {
        what: format!("`{}` cannot be trained exactly by the built-in trainer", model.name()),
        problems,
        hint: "train it with another backend".to_owned(),
    })
}

/// Loads a model; `trainable` are the names of the tensors to train.
pub(super) fn load(model: &Checkpoint, trainable: &[String]) -> Result<Loaded> {
    let design = design(model)?;
    let wanted: HashSet<&str> = trainable.iter().map(String::as_str).collect();
    let missing: Vec<String> = trainable
        .iter()
        .filter(|name| model.tensor(name).is_none() || name.ends_with(".inv_freq"))
        .map(|name| format!("`{name}` is to be trained, but is not a weight of the model"))
        .collect();
    if !missing.is_empty() {
        return Err(Error::Mismatch {
            what: format!("`{}` does not have what is to be trained", model.name()),
            problems: missing,
            hint: "give exact tensor names: `elo-surgery inspect --tensors`".to_owned(),
        });
    }
    let mut weights = Weights::default();
    let mut hasher = blake3::Hasher::new();
    for shard in model.shards() {
        let source = shard.source()?;
        for entry in &shard.header.tensors {
            let belongs = model.tensor(&entry.name).is_some_and(|(s, _)| s.file == shard.file);
            if !belongs || entry.name.ends_with(".inv_freq") {
                continue;
            }
            let range = shard.bytes(entry);
            let mut scratch = Vec::new();
            let tile = source.tile(range, &mut scratch)?;
            hasher.update(entry.name.as_bytes());
            hasher.update(&tile);
            let Some(values) = values::decode(&entry.dtype, &tile) else {
                continue;
            };
            let size = |i: usize| usize::try_from(entry.shape.0[i]).unwrap_or(usize::MAX);
            let is_matrix = entry.shape.0.len() == 2;
            let (rows, cols) = if is_matrix { (size(0), size(1)) } else { (1, values.len()) };
            weights.push(Weight {
                name: entry.name.clone(),
                rows,
                cols,
                is_matrix,
                trainable: wanted.contains(entry.name.as_str()),
                values,
            });
        }
        source.check_unchanged(None)?;
    }
    Ok(Loaded { design, weights, digest: hasher.finalize().to_hex().to_string() })
}
