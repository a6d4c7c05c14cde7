//! Experts: a model with some of its experts, with one a layer as a dense model, or with the same in the other layout.

mod choice;
mod rearrange;

use std::collections::BTreeMap;

use serde_json::{Value, json};

pub use choice::{Choice, OfLayers};

use self::choice::Chosen;
use self::rearrange::{Names, Work};
use super::draft::{Derived, Draft};
use super::extract::check_layer_count;
use super::vector::refuse_vectors;
use crate::checkpoint::{Checkpoint, ExpertLayout, Experts, densified, set_experts};
use crate::error::{Error, Result};
use crate::plan::Plan;

/// What becomes of the experts.
#[derive(Clone, Debug)]
pub struct SelectExperts {
    /// Which of them the output has.
    pub choice: Choice,
    /// How the output stores them; as the model does if not given.
    pub layout: Option<ExpertLayout>,
    /// Data bytes of a shard, to lay the output out anew; the source's layout otherwise.
    pub shard_size: Option<u64>,
}

/// Plans a model with the chosen experts, renumbered from 0 on; the router's rows and everything in `config.json` that
/// counts experts follow.
///
/// # Errors
/// A model without experts, or with tensors that may depend on them in ways that are not known; experts or layers that do not
/// exist; layers with different numbers of experts; families whose layouts or whose dense form is not known.
pub fn experts(model: &Checkpoint, request: &SelectExperts) -> Result<Plan> {
    refuse_vectors(&[model])?;
    check_layer_count(model)?;
    let all = model.experts()?;
    let chosen = Chosen::resolve(model, &all, &request.choice)?;
    let numbers: BTreeMap<String, Vec<u64>> = chosen
        .by_layer
        .iter()
        .map(|(layer, kept)| ((layer + 1).to_string(), kept.iter().map(|e| e + 1).collect()))
        .collect();
    let dense = matches!(request.choice, Choice::Dense(_));
    let layout = request.layout.unwrap_or(all.layout);
    let parameters = json!({
        "experts": numbers,
        "dense": dense,
        "layout": if layout == ExpertLayout::Fused { "fused" } else { "per-expert" },
        "shard_size": request.shard_size,
    });
    let mut draft = Draft::new("experts", &parameters);
    draft.parent("model", model);
    let names = (dense || layout != all.layout).then(|| convertible(model)).transpose()?;
    if dense {
        check_dense(model, &all)?;
    }
    let mut work = Work { model, chosen: &chosen, names, dense, layout, fused: Vec::new(), draft };
    let mut problems = Vec::new();
    for (home, entry) in model.names_in_file_order() {
        problems.extend(work.add(home, entry).err());
    }
    if !problems.is_empty() {
        return Err(Error::Mismatch {
            what: format!("the experts of `{}` cannot be rearranged", model.name()),
            problems,
            hint: "without `--expert-layout` the layout is kept; quantised experts keep theirs"
                .into(),
        });
    }
    let mut draft = work.draft;
    let mut derived = Derived { shard_size: request.shard_size, ..Derived::from(model, "model") };
    if let Some(config) = model.config() {
        let refuse = |problem| Error::Config { path: model.config_path(), problem };
        if dense {
            derived.config = Some(densified(config).map_err(refuse)?);
            let normed = config.get("norm_topk_prob").and_then(Value::as_bool).unwrap_or(false);
            if model.anatomy().family == "qwen3_moe" && !normed {
                draft.note("`norm_topk_prob` is not true: the model weighs its experts by less than 1 in all, the dense one does not");
            }
        } else if chosen.count != all.count {
            let (config, notes) =
                set_experts(config, model.anatomy(), all.count, chosen.count).map_err(refuse)?;
            derived.config = Some(config);
            for note in notes {
                draft.note(note);
            }
        }
    }
    draft.finish(&derived)
}

fn convertible(model: &Checkpoint) -> Result<Names> {
    Names::of(model).ok_or_else(|| Error::Unsupported {
        what: format!("another layout of the experts of `{}`", model.name()),
        reason: format!(
            "it is not known how the family `{}` arranges gate and up projections when they are fused",
            model.anatomy().family
        ),
        hint: "keep the layout".into(),
    })
}

fn check_dense(model: &Checkpoint, all: &Experts) -> Result<()> {
    let refuse = |reason: &str| {
        Err(Error::Unsupported {
            what: format!("a dense model from `{}`", model.name()),
            reason: reason.to_owned(),
            hint: "keep one expert instead: `--keep 1`".into(),
        })
    };
    if all.layers.iter().any(|layer| model.has_shared_experts(*layer)) {
        return refuse("it has shared experts, whose output is added to that of the chosen ones");
    }
    match model.config() {
        Some(_) => Ok(()),
        None => refuse("it has no config.json that could describe the result"),
    }
}
