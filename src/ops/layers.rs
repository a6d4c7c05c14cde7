//! Layers: a deeper or shallower model from the decoder layers of one model, as they are.
//!
//! Depth up-scaling is the stack of SOLAR 10.7B (arXiv 2312.15166, section 2): of `n` layers the first half of the new
//! stack takes the first, the second half the last, so that the middle occurs twice.

use serde_json::json;

use super::draft::Draft;
use super::extract::check_layer_count;
use super::stack::Placed;
use super::vector::refuse_vectors;
use crate::checkpoint::{Checkpoint, LayerSelector};
use crate::error::{Error, Result};
use crate::plan::Plan;

/// Which layers the output has.
#[derive(Clone, Debug)]
pub struct Layers {
    /// The stack.
    pub stack: Stack,
    /// Data bytes of a shard, to lay the output out anew; the source's layout otherwise.
    pub shard_size: Option<u64>,
}

/// How the output's layers follow from the model's.
#[derive(Clone, Debug)]
pub enum Stack {
    /// These, in this order; a layer may occur more than once.
    These(LayerSelector),
    /// All but these.
    Without(LayerSelector),
    /// All, and each run of neighbouring layers among these once more behind itself.
    Repeating(LayerSelector),
    /// Depth up-scaling to so many layers: the first half of them from the front, the second half from the back.
    UpscaledTo(u64),
}

/// Plans a model of the layers in [`Layers::stack`], renumbered from 0 on; every per-layer field of `config.json` is cut
/// and repeated with them.
///
/// # Errors
/// Layers that do not exist, no layer left, a depth that cannot be reached by one doubling; a config that disagrees with the
/// tensors or has no words for the result.
pub fn layers(model: &Checkpoint, request: &Layers) -> Result<Plan> {
    refuse_vectors(&[model])?;
    check_layer_count(model)?;
    let stack = resolve(model, &request.stack)?;
    let numbers: Vec<u64> = stack.iter().map(|layer| layer + 1).collect();
    let parameters = json!({ "stack": numbers, "shard_size": request.shard_size });
    let stack: Vec<Placed> = stack.into_iter().map(Placed::whole).collect();
    Draft::new("layers", &parameters).stack(model, &stack, request.shard_size)
}

fn resolve(model: &Checkpoint, stack: &Stack) -> Result<Vec<u64>> {
    let (count, name) = (model.layers(), model.name());
    match stack {
        Stack::These(these) => these.resolve_repeating(count, name),
        Stack::Without(these) => {
            let left = these.resolve(count, name)?;
            let kept: Vec<u64> = (0..count).filter(|layer| !left.contains(layer)).collect();
            if kept.is_empty() {
                return Err(usage("no layer would be left", "drop fewer layers"));
            }
            Ok(kept)
        }
        Stack::Repeating(these) => {
            let again = these.resolve(count, name)?;
            let mut stack = Vec::new();
            let mut run = Vec::new();
            for layer in 0..count {
                if again.contains(&layer) {
                    run.push(layer);
                } else {
                    stack.append(&mut run);
                }
                stack.push(layer);
            }
            stack.append(&mut run);
            Ok(stack)
        }
        Stack::UpscaledTo(depth) => {
            if *depth <= count || depth.div_ceil(2) > count {
                return Err(usage(
                    format!("`{name}` with {count} layers cannot be up-scaled to {depth}"),
                    format!("a depth from {} to {} can be reached", count + 1, 2 * count),
                ));
            }
            let (front, back) = (depth.div_ceil(2), depth / 2);
            Ok((0..front).chain(count - back..count).collect())
        }
    }
}

fn usage(problem: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Usage { problem: problem.into(), hint: hint.into() }
}
