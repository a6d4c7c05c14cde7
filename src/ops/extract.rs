//! Extract: a model of some decoder layers with embedding, final norm and head.
//!
//! ELO, stage 1 (arXiv 2601.03648, section 3): detach the first and the last layer and train only those.

use serde_json::json;

use super::draft::{Derived, Draft};
use super::vector::refuse_vectors;
use crate::checkpoint::{Checkpoint, LayerSelector, Role, keep_layers};
use crate::error::{Error, Result};
use crate::format::LayerMap;
use crate::plan::{Part, Plan};

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
    let everything = kept.iter().copied().eq(0..model.layers());
    let numbers: Vec<u64> = kept.iter().map(|layer| layer + 1).collect();
    let parameters = json!({ "layers": numbers, "shard_size": request.shard_size });
    let mut draft = Draft::new("extract", &parameters);
    draft.parent("model", model);
    draft.plan().layer_map = Some(LayerMap { of: model.layers(), layers: numbers });

    let mut dropped = 0_u64;
    for (home, entry) in model.names_in_file_order() {
        let name = match model.anatomy().role(&entry.name) {
            Role::Layer(old) => match kept.iter().position(|layer| *layer == old) {
                Some(new) => model.anatomy().renumbered(&entry.name, new as u64),
                None => continue,
            },
            Role::MultiToken if !everything => {
                dropped += 1;
                continue;
            }
            _ => entry.name.clone(),
        };
        let Some((_, stretches)) = crate::checkpoint::locate(model, &entry.name) else {
            continue;
        };
        let parts = draft.slices("model", &stretches).into_iter().map(Part::Copy).collect();
        draft.push(home, &name, entry.dtype.clone(), entry.shape.clone(), parts);
    }
    if dropped > 0 {
        draft.note(format!("{dropped} tensors of multi-token prediction layers were left out"));
    }
    let mut derived = Derived { shard_size: request.shard_size, ..Derived::from(model, "model") };
    if let Some(config) = model.config() {
        let kept = keep_layers(config, model.anatomy(), &kept)
            .map_err(|problem| Error::Config { path: model.config_path(), problem })?;
        for note in kept.notes {
            draft.note(note);
        }
        derived.config = Some(kept.config);
    }
    draft.finish(&derived)
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
