//! What layers attend to, where a rule of its own says so: one function a rule.

use serde_json::Value;

use super::cycles::{FULL, SLIDING};
use super::problem::{ConfigProblem, shown};
use super::{Cut, cycles, experts};

/// Families whose lists depend on the distance to the last layer.
const FROM_THE_END: &[&str] = &["muse_glimmer_text", "muse_spark_text"];

/// Translates every rule for the layers that are kept.
pub(super) fn translate(cut: &mut Cut<'_>) -> Result<(), ConfigProblem> {
    special_lists(cut)?;
    cycles::translate(cut)?;
    windowed(cut)?;
    forced_last(cut)?;
    shared_caches(cut)?;
    repeated_blocks(cut)?;
    expanded_attention(cut)?;
    experts::translate(cut)
}

/// Lists of single families that follow no simple cycle.
fn special_lists(cut: &mut Cut<'_>) -> Result<(), ConfigProblem> {
    if cut.has_list("layer_types") {
        return Ok(());
    }
    if cut.is_family(FROM_THE_END) {
        return Err(cut.refuse("layer_types", "the class counts its pattern from the last layer"));
    }
    let is_full: Box<dyn Fn(u64) -> bool> = match cut.family {
        "flint" => {
            let last = cut.layers.saturating_sub(1);
            Box::new(move |layer| layer < 2 || layer % 4 == 1 || layer == last)
        }
        "cohere2_moe" => {
            let dense = cut.number("first_k_dense_replace")?.unwrap_or(0);
            let first = cut.period("prefix_dense_sliding_window_pattern")?.unwrap_or(1);
            let later = cut.period("sliding_window_pattern")?.unwrap_or(4);
            Box::new(move |layer| match layer.checked_sub(dense) {
                None => (layer + 1).is_multiple_of(first),
                Some(behind) => (behind + 1).is_multiple_of(later),
            })
        }
        _ => return Ok(()),
    };
    write_types(cut, &is_full);
    Ok(())
}

fn write_types(cut: &mut Cut<'_>, is_full: &dyn Fn(u64) -> bool) {
    let mark = |layer: &u64| Value::from(if is_full(*layer) { FULL } else { SLIDING });
    let list: Value = cut.kept.iter().map(mark).collect();
    cut.note("layer_types", format!("written out as {}", shown(&list)));
    cut.set("layer_types", list);
}

/// Qwen 2 and 3, Dots 1: layers from `max_window_layers` on use the sliding window, if it is on.
fn windowed(cut: &mut Cut<'_>) -> Result<(), ConfigProblem> {
    let key = "max_window_layers";
    let default = match cut.family {
        "qwen2" | "qwen3" | "qwen2_5_omni_text" | "qwen2_moe" => Some(28),
        "qwen2_vl" | "qwen2_vl_text" | "qwen2_5_vl" | "qwen2_5_vl_text" => Some(80),
        "dots1" => Some(62),
        _ => None,
    };
    let Some(first) = cut.number(key)?.or(default) else {
        return Ok(());
    };
    let on = cut.flag("use_sliding_window")?.unwrap_or(cut.family == "dots1")
        && cut.old.get("sliding_window") != Some(&Value::Null);
    if !on {
        return Ok(());
    }
    if cut.family == "qwen2_moe" {
        // Version 5 of transformers alternates below the limit, version 4 slides above it.
        return if cut.has_list("layer_types") {
            Ok(())
        } else {
            Err(cut
                .refuse(key, "versions of transformers read it differently without `layer_types`"))
        };
    }
    if default.is_some() && !cut.has_list("layer_types") {
        write_types(cut, &|layer| layer < first);
    }
    let flags = cut.flags(|layer| layer < first);
    match experts::prefix(&flags) {
        Some(count) => cut.set(key, count),
        None if cut.has_list("layer_types") => cut.note(
            key,
            "left as it is: `layer_types` decides, older versions of transformers go wrong",
        ),
        None => {
            return Err(cut.refuse(key, "layers without the window must come before those with it"));
        }
    }
    Ok(())
}

/// Gemma 4 makes its last layer full attention whatever the list says.
fn forced_last(cut: &Cut<'_>) -> Result<(), ConfigProblem> {
    if !cut.is_family(&["gemma4_text", "gemma4_unified_text"]) {
        return Ok(());
    }
    let list = cut.new.get("layer_types").and_then(Value::as_array);
    let stays_last = cut.kept.last().is_some_and(|layer| layer + 1 == cut.layers);
    let is_full = list.and_then(|list| list.last()).is_none_or(|kind| *kind == Value::from(FULL));
    if is_full || stays_last {
        return Ok(());
    }
    Err(cut.refuse("layer_types", "the class forces the last layer to full attention"))
}

/// Gemma 3n and 4: the last n layers use the keys and values of the last layer of their type before them.
fn shared_caches(cut: &mut Cut<'_>) -> Result<(), ConfigProblem> {
    let key = "num_kv_shared_layers";
    let Some(shared) = cut.number(key)?.filter(|shared| *shared > 0) else {
        return Ok(());
    };
    let own = cut.layers.saturating_sub(shared);
    let flags = cut.flags(|layer| layer < own);
    let Some(count) = experts::prefix(&flags) else {
        return Err(cut.refuse(key, "layers that share must come last"));
    };
    if cut.kept.iter().any(|layer| *layer >= own) {
        // Without the list nobody here knows which layers are of one type.
        if !cut.has("layer_types") {
            return Err(cut.refuse(key, "the config does not list `layer_types`"));
        }
        let donors_stay = donors(cut, own).into_iter().all(|donor| cut.kept.contains(&donor));
        if !donors_stay || !cut.kept.is_sorted() {
            return Err(cut.refuse(key, "a layer that lends its keys and values loses its place"));
        }
    }
    let kept = cut.kept.len() as u64;
    cut.set(key, kept - count);
    Ok(())
}

/// The layers whose keys and values the kept sharing layers use.
fn donors(cut: &Cut<'_>, own: u64) -> Vec<u64> {
    let types = cut.old.get("layer_types").and_then(Value::as_array);
    let kind = |layer: u64| types.and_then(|list| list.get(usize::try_from(layer).ok()?));
    let donor = |layer: u64| (0..own).rev().find(|own| kind(*own) == kind(layer));
    cut.kept.iter().filter(|layer| **layer >= own).filter_map(|layer| donor(*layer)).collect()
}

/// `RecurrentGemma` repeats `block_types`; written out in full it is a list like any other.
fn repeated_blocks(cut: &mut Cut<'_>) -> Result<(), ConfigProblem> {
    let key = "block_types";
    if !cut.is_family(&["recurrent_gemma"]) {
        return Ok(());
    }
    let default = ["recurrent", "recurrent", "attention"].map(Value::from);
    let blocks = match cut.old.get(key) {
        None | Some(Value::Null) => default.to_vec(),
        Some(Value::Array(list)) if !list.is_empty() => list.clone(),
        Some(_) => return Err(cut.wrong(key, "a list of block types")),
    };
    let at = |layer: &u64| blocks[usize::try_from(*layer).unwrap_or(0) % blocks.len()].clone();
    let list: Value = cut.kept.iter().map(at).collect();
    cut.note(key, format!("written out as {}", shown(&list)));
    cut.set(key, list);
    Ok(())
}

/// GPT-Neo: `[[["global", "local"], 12]]` repeats a list a number of times.
fn expanded_attention(cut: &mut Cut<'_>) -> Result<(), ConfigProblem> {
    let key = "attention_types";
    let Some(value) = cut.old.get(key).filter(|value| !value.is_null()) else {
        return Ok(());
    };
    let wrong = || cut.wrong(key, "a list of pairs: a list of attention types, how often");
    // Ranges of layers and the types they cycle through; never expanded, the counts may be hostile.
    let mut spans: Vec<(u64, &[Value])> = Vec::new();
    let mut end = 0_u64;
    for pair in value.as_array().ok_or_else(wrong)? {
        let types = pair.get(0).and_then(Value::as_array).ok_or_else(wrong)?;
        let times = pair.get(1).and_then(Value::as_u64).ok_or_else(wrong)?;
        spans.push((end, types));
        end = end.saturating_add(times.saturating_mul(types.len() as u64));
    }
    let at = |layer: &u64| {
        let (start, types) = spans.iter().rfind(|(start, _)| start <= layer)?;
        let within = (layer - start).checked_rem(types.len() as u64)?;
        (*layer < end).then(|| types[usize::try_from(within).unwrap_or(0)].clone())
    };
    let kept: Option<Vec<Value>> = cut.kept.iter().map(at).collect();
    let kept = kept.ok_or_else(|| ConfigProblem::TooShort {
        key: cut.scope.key(key),
        entries: end,
        layers: cut.layers,
    })?;
    cut.set(key, serde_json::json!([[kept, 1]]));
    Ok(())
}
