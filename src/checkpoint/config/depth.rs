//! What depends on a layer's index or on the number of layers beyond any per-layer field.
//!
//! Refuses where the kept layers would compute something else; says so where they merely might.

use serde_json::{Number, Value};

use super::problem::{ConfigProblem, shown};
use super::{Anatomy, Cut};
use crate::checkpoint::architecture::MULTI_TOKEN_KEYS;

/// Families whose layers compute with their own index. Harmless while the first layers are kept.
const USES_INDEX: &[(&[&str], &str)] = &[
    (&["diffllama"], "each layer's `lambda_init` comes from its index"),
    (&["rwkv"], "layer 1 has a norm of its own and outputs are halved every few layers"),
    (&["zaya"], "layer 1 is built differently"),
    (&["inkling2_text"], "layer 1 and the residual blocks are built by index"),
    (&["modernbert-decoder"], "layer 1 is built differently"),
    (&["zamba", "zamba2"], "hybrid layers share the weights of one block by index"),
];

/// Families whose last layer is built differently, and how.
const LAST_DIFFERS: &[(&[&str], &str)] =
    &[(&["gpt_neox_japanese"], "only the last layer has a bias after its attention")];

/// Families with tensors outside the stack that have a part for each layer, if they don't say otherwise.
const PER_LAYER_INPUTS: &[&str] =
    &["gemma3n", "gemma3n_text", "gemma4_text", "gemma4_unified_text", "embedding_gemma2_text"];

/// Refuses selections under which the kept layers would no longer compute what they did.
pub(super) fn check(cut: &mut Cut<'_>) -> Result<(), ConfigProblem> {
    per_layer_inputs(cut)?;
    if let Some((_, reason)) = LAST_DIFFERS.iter().find(|(families, _)| cut.is_family(families)) {
        let last = cut.layers.saturating_sub(1);
        if cut.kept.iter().position(|layer| *layer == last) != Some(cut.kept.len() - 1) {
            return Err(depends(cut, reason));
        }
    }
    linear_decay(cut)?;
    if cut.keeps_numbers() {
        return Ok(());
    }
    if let Some((_, reason)) = USES_INDEX.iter().find(|(families, _)| cut.is_family(families)) {
        return Err(depends(cut, reason));
    }
    if cut.flag("scale_attn_by_inverse_layer_idx")? == Some(true) {
        let reason = "`scale_attn_by_inverse_layer_idx` divides attention by the layer's number";
        return Err(depends(cut, reason));
    }
    Ok(())
}

fn depends(cut: &Cut<'_>, reason: &str) -> ConfigProblem {
    ConfigProblem::DependsOnDepth { family: cut.family.to_owned(), reason: reason.to_owned() }
}

fn per_layer_inputs(cut: &Cut<'_>) -> Result<(), ConfigProblem> {
    let key = "hidden_size_per_layer_input";
    let by_default = cut.is_family(PER_LAYER_INPUTS) && cut.old.get(key).is_none();
    if by_default || cut.number(key)?.unwrap_or(0) > 0 {
        return Err(ConfigProblem::SizedByDepth {
            tensors: "embed_tokens_per_layer, per_layer_model_projection",
            key: cut.scope.key(key),
            value: cut.old.get(key).map_or("set by default".to_owned(), shown),
        });
    }
    Ok(())
}

/// `MiniMax`: a linear-attention layer's decay is 1 - index / (layers - 1). Its full-attention layers
/// don't care.
fn linear_decay(cut: &Cut<'_>) -> Result<(), ConfigProblem> {
    if !cut.is_family(&["minimax"]) {
        return Ok(());
    }
    let types = cut.old.get("layer_types").and_then(Value::as_array);
    let is_full = |layer: u64| {
        let entry = types.and_then(|list| list.get(usize::try_from(layer).ok()?));
        entry.and_then(Value::as_str) == Some("full_attention")
    };
    if cut.kept.iter().all(|layer| is_full(*layer)) {
        return Ok(());
    }
    Err(depends(cut, "the decay of linear attention comes from the index and the number of layers"))
}

/// Keeps factors that a class derives from the number of layers at their old value.
pub(super) fn rescale(cut: &mut Cut<'_>) -> Result<(), ConfigProblem> {
    scale_depth(cut)?;
    let key = "residual_multiplier";
    if cut.is_family(&["neomme"]) && !cut.has(key) {
        let value = (2.0 * as_f64(cut.layers)).powf(-0.5);
        if let Some(number) = Number::from_f64(value) {
            cut.set(key, number);
            cut.note(key, "written out, because its default depends on the number of layers");
        }
    }
    let taps =
        cut.old.get("vision_config").and_then(|vision| vision.get("deepstack_visual_indexes"));
    if taps.and_then(Value::as_array).is_some_and(|taps| !taps.is_empty()) && !cut.keeps_numbers() {
        let text = "image features still enter the first layers, whichever those now are";
        cut.note("vision_config.deepstack_visual_indexes", text);
    }
    Ok(())
}

/// `MiniCPM` multiplies residuals by `scale_depth / sqrt(layers)`: with k of n layers left, the same
/// factor needs `scale_depth * sqrt(k / n)`.
fn scale_depth(cut: &mut Cut<'_>) -> Result<(), ConfigProblem> {
    let key = "scale_depth";
    if !cut.has(key) {
        return Ok(());
    }
    let old = cut.old.get(key).and_then(Value::as_f64);
    let old = old.ok_or_else(|| cut.wrong(key, "a number"))?;
    let ratio = as_f64(cut.kept.len() as u64) / as_f64(cut.layers.max(1));
    let new = Number::from_f64(old * ratio.sqrt()).ok_or_else(|| cut.wrong(key, "a number"))?;
    cut.note(key, format!("{old} becomes {new}, so that residuals keep their scale"));
    cut.set(key, new);
    Ok(())
}

/// Layer counts are far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "layer counts are small")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

/// Multi-token-prediction layers follow the last layer of the full stack and go with it.
pub(super) fn drop_multi_token(cut: &mut Cut<'_>, anatomy: &Anatomy) -> Result<(), ConfigProblem> {
    let mut counted = false;
    for key in MULTI_TOKEN_KEYS {
        if let Some(count) = cut.number(key)? {
            counted = true;
            if count > 0 {
                cut.set(key, 0);
                cut.note(
                    key,
                    format!("{count} becomes 0, multi-token-prediction layers are left out"),
                );
            }
        }
    }
    let stack = !cut.family.is_empty();
    if stack && anatomy.has_multi_token() && !counted {
        let text = "set to 0, multi-token-prediction layers are left out";
        cut.set(MULTI_TOKEN_KEYS[0], 0);
        cut.note(MULTI_TOKEN_KEYS[0], text);
    }
    Ok(())
}
