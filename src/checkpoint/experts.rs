//! The two layouts of expert weights: one tensor an expert (the Hub's), or all experts fused (transformers 5 in memory).
//!
//! Fused: `mlp.experts.gate_up_proj` `[E, 2I, H]` and `mlp.experts.down_proj` `[E, H, I]`. Per expert:
//! `mlp.experts.{e}.{gate,up,down}_proj.weight`, or Mixtral's `block_sparse_moe.experts.{e}.{w1,w3,w2}.weight`.

use std::ops::Range;

use super::{Checkpoint, Recipe, ShardFile};
use crate::format::{Dtype, Shape, TensorEntry};

/// A run of bytes of one shard that is part of a tensor.
#[derive(Clone, Debug)]
pub struct Stretch<'a> {
    /// The shard.
    pub shard: &'a ShardFile,
    /// Bytes, counted from the start of the file.
    pub bytes: Range<u64>,
    /// Element type.
    pub dtype: &'a Dtype,
    /// Dimensions of this run.
    pub shape: Shape,
    /// What its values come from if not from the bytes, which mean nothing then.
    pub recipe: Option<&'a Recipe>,
    /// The first element of the run, by its number in the tensor.
    pub first: u64,
}

/// Where the values of tensor `name` are in `checkpoint`, in order: the tensor itself, or its counterpart in the other
/// expert layout. The shape is the one the tensor has under `name`.
pub fn locate<'a>(checkpoint: &'a Checkpoint, name: &str) -> Option<(Shape, Vec<Stretch<'a>>)> {
    if let Some((shard, entry)) = checkpoint.tensor(name) {
        return Some((entry.shape.clone(), vec![whole(checkpoint, shard, entry)]));
    }
    from_fused(checkpoint, name).or_else(|| from_experts(checkpoint, name)).or_else(|| {
        let (shard, entry) = checkpoint.tensor(&router_twin(name)?)?;
        Some((entry.shape.clone(), vec![whole(checkpoint, shard, entry)]))
    })
}

fn whole<'a>(
    checkpoint: &'a Checkpoint,
    shard: &'a ShardFile,
    entry: &'a TensorEntry,
) -> Stretch<'a> {
    Stretch {
        shard,
        bytes: shard.bytes(entry),
        dtype: &entry.dtype,
        shape: entry.shape.clone(),
        recipe: checkpoint.recipe(&entry.name),
        first: 0,
    }
}

fn router_twin(name: &str) -> Option<String> {
    let (mixtral, fused) = (".block_sparse_moe.gate.weight", ".mlp.gate.weight");
    let swap = |from, to| name.strip_suffix(from).map(|stem| format!("{stem}{to}"));
    swap(mixtral, fused).or_else(|| swap(fused, mixtral))
}

/// Which matrix of an expert: `gate` and `up` share a fused tensor, gate first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Matrix {
    Gate,
    Up,
    Down,
}

/// Splits `PREFIX.mlp.experts.7.up_proj.weight` into prefix, expert and matrix.
fn parse_expert(name: &str) -> Option<(&str, u64, Matrix)> {
    let (prefix, rest) = name
        .split_once(".mlp.experts.")
        .or_else(|| name.split_once(".block_sparse_moe.experts."))?;
    let (expert, matrix) = rest.split_once('.')?;
    let matrix = match matrix {
        "gate_proj.weight" | "w1.weight" => Matrix::Gate,
        "up_proj.weight" | "w3.weight" => Matrix::Up,
        "down_proj.weight" | "w2.weight" => Matrix::Down,
        _ => return None,
    };
    Some((prefix, expert.parse().ok()?, matrix))
}

fn from_fused<'a>(checkpoint: &'a Checkpoint, name: &str) -> Option<(Shape, Vec<Stretch<'a>>)> {
    let (prefix, expert, matrix) = parse_expert(name)?;
    let fused = if matrix == Matrix::Down { "down_proj" } else { "gate_up_proj" };
    let (shard, entry) = checkpoint.tensor(&format!("{prefix}.mlp.experts.{fused}"))?;
    let [experts, rows, columns] = *entry.shape.0.as_slice() else {
        return None;
    };
    if expert >= experts || (matrix != Matrix::Down && rows % 2 != 0) {
        return None;
    }
    let row_bytes = columns.checked_mul(entry.dtype.bytes()?)?;
    let (first, count) = match matrix {
        Matrix::Down => (0, rows),
        Matrix::Gate => (0, rows / 2),
        Matrix::Up => (rows / 2, rows / 2),
    };
    let start = shard.bytes(entry).start + (expert * rows + first) * row_bytes;
    let shape = Shape(vec![count, columns]);
    let bytes = start..start + count * row_bytes;
    let (recipe, first) = (checkpoint.recipe(&entry.name), (expert * rows + first) * columns);
    let stretch =
        Stretch { shard, bytes, dtype: &entry.dtype, shape: shape.clone(), recipe, first };
    Some((shape, vec![stretch]))
}

fn from_experts<'a>(checkpoint: &'a Checkpoint, name: &str) -> Option<(Shape, Vec<Stretch<'a>>)> {
    let (prefix, fused) = name.split_once(".mlp.experts.")?;
    let (hub, mixtral): (&[&str], &[&str]) = match fused {
        "gate_up_proj" => (&["gate_proj", "up_proj"], &["w1", "w3"]),
        "down_proj" => (&["down_proj"], &["w2"]),
        _ => return None,
    };
    let find = |expert: u64, i: usize| {
        checkpoint.tensor(&format!("{prefix}.mlp.experts.{expert}.{}.weight", hub[i])).or_else(
            || {
                let w = mixtral[i];
                checkpoint.tensor(&format!("{prefix}.block_sparse_moe.experts.{expert}.{w}.weight"))
            },
        )
    };
    let mut stretches = Vec::new();
    let mut experts = 0;
    while find(experts, 0).is_some() {
        for i in 0..hub.len() {
            let (shard, entry) = find(experts, i)?;
            stretches.push(whole(checkpoint, shard, entry));
        }
        experts += 1;
    }
    let first = stretches.first()?;
    let [rows, columns] = *first.shape.0.as_slice() else {
        return None;
    };
    if stretches.iter().any(|s| s.shape != first.shape || s.dtype != first.dtype) {
        return None;
    }
    Some((Shape(vec![experts, rows * hub.len() as u64, columns]), stretches))
}
