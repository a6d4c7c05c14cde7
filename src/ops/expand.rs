//! Expand: a deeper model that computes what it did, with new layers to train.
//!
//! Block expansion of LLaMA Pro (arXiv 2401.02415, section 3.2): copies of layers are inserted whose attention and feed-forward
//! outputs are zero, so that each hands on its input until it is trained. Only they are trained then.

use serde_json::json;

use super::draft::Draft;
use super::extract::check_layer_count;
use super::stack::Placed;
use super::vector::refuse_vectors;
use crate::checkpoint::{Checkpoint, LayerSelector};
use crate::error::{Error, Result};
use crate::plan::Plan;

/// What to expand.
#[derive(Clone, Debug)]
pub struct Expand {
    /// Where the new layers go.
    pub blocks: Blocks,
    /// Data bytes of a shard, to lay the output out anew; the source's layout otherwise.
    pub shard_size: Option<u64>,
}

/// Where new layers go. Each is a copy of the layer before it.
#[derive(Clone, Debug)]
pub enum Blocks {
    /// So many, spread evenly: of `n` layers and `b` blocks, block `i` (from 1) follows layer `n * i / b`, rounded down.
    Spread(u64),
    /// One behind each of these layers.
    After(LayerSelector),
}

/// Plans an expansion. The output computes what `model` computes, to the bit: `x + 0` is `x`.
///
/// # Errors
/// More blocks than layers; layers whose branches are not known to end in modules that can be zero; what
/// [`layers`](super::layers()) refuses.
pub fn expand(model: &Checkpoint, request: &Expand) -> Result<Plan> {
    refuse_vectors(&[model])?;
    check_layer_count(model)?;
    let count = model.layers();
    let after = match &request.blocks {
        Blocks::After(layers) => layers.resolve(count, model.name())?,
        Blocks::Spread(blocks) if (1..=count).contains(blocks) => {
            (1..=*blocks).map(|i| i * count / blocks - 1).collect()
        }
        Blocks::Spread(blocks) => {
            return Err(Error::Usage {
                problem: format!(
                    "`{}` has {count} layers, {blocks} blocks cannot be spread over them",
                    model.name()
                ),
                hint: format!("give 1 to {count} blocks"),
            });
        }
    };
    model.check_silenceable(&after)?;
    let mut stack = Vec::new();
    let mut new = Vec::new();
    for layer in 0..count {
        stack.push(Placed::whole(layer));
        if after.contains(&layer) {
            stack.push(Placed::silent(layer));
            new.push(stack.len() as u64);
        }
    }
    let mut sorted = after;
    sorted.sort_unstable();
    let numbers: Vec<u64> = sorted.iter().map(|layer| layer + 1).collect();
    let parameters = json!({ "after": numbers, "new": new, "shard_size": request.shard_size });
    let mut draft = Draft::new("expand", &parameters);
    let list = new.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    draft.note(format!("the new layers are {list}: train these and freeze the others"));
    draft.stack(model, &stack, request.shard_size)
}
