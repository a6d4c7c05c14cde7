//! Extract: a model of some decoder layers with embedding, final norm and head.
//!
//! ELO, stage 1 (arXiv 2601.03648, section 3): detach the first and the last layer and train only those.

use serde_json::json;

use super::draft::Draft;
use super::stack::Placed;
use super::vector::refuse_vectors;
use crate::checkpoint::{Checkpoint, LayerSelector};
use crate::error::{Error, Result};
use crate::plan::Plan;

/// What to extract.
#[derive(Clone, Debug)]
pub struct Extract {
    /// The layers, in the order they shall have.
    pub layers: LayerSelector,
    /// Data bytes of a shard, to lay the output out anew; the source's layout otherwise.
    pub shard_size: Option<u64>,
}

/// Plans an extract. Layers are renumbered from 0 on; every per-layer field of `config.json` is cut with them.
///
/// # Errors
/// A layer that does not exist; a config that disagrees with the tensors or cannot express the selection.
pub fn extract(model: &Checkpoint, request: &Extract) -> Result<Plan> {
    refuse_vectors(&[model])?;
    let kept = request.layers.resolve(model.layers(), model.name())?;
    check_layer_count(model)?;
    let numbers: Vec<u64> = kept.iter().map(|layer| layer + 1).collect();
    let parameters = json!({ "layers": numbers, "shard_size": request.shard_size });
    let stack: Vec<Placed> = kept.into_iter().map(Placed::whole).collect();
    Draft::new("extract", &parameters).stack(model, &stack, request.shard_size)
}

/// "The last layer" means nothing while config and tensors disagree.
pub(super) fn check_layer_count(model: &Checkpoint) -> Result<()> {
    match model.anatomy().config_layers() {
        Some(declared) if declared != model.layers() => Err(Error::Mismatch {
            what: format!("`{}` disagrees with itself", model.name()),
            problems: vec![format!(
                "config.json says {declared} layers, the tensors have {}",
                model.layers()
            )],
            hint: "correct config.json, or get the missing shards; `elo-surgery verify` tells more"
                .into(),
        }),
        _ => Ok(()),
    }
}
