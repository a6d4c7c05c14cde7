//! Attention patterns that follow a rule: written out as lists, and the rule adjusted where one
//! still fits, for readers that know only the rule.
//!
//! To teach a family whose class derives `layer_types` from the index, add a row to [`CYCLES`].

use serde_json::Value;

use super::problem::{ConfigProblem, shown};
use super::{Cut, experts};

/// An entry of a per-layer list.
#[derive(Clone, Copy)]
enum Mark {
    Word(&'static str),
    Flag(u8),
}

impl From<Mark> for Value {
    fn from(mark: Mark) -> Self {
        match mark {
            Mark::Word(word) => word.into(),
            Mark::Flag(flag) => flag.into(),
        }
    }
}

const FULL: Mark = Mark::Word("full_attention");
const SLIDING: Mark = Mark::Word("sliding_attention");
const LINEAR: Mark = Mark::Word("linear_attention");

/// A rule "every n-th layer is different".
struct Cycle {
    /// The `model_type`s whose class derives the list this way when the config has none.
    families: &'static [&'static str],
    /// The keys that may hold n; none if it is fixed in the class.
    keys: &'static [&'static str],
    /// n without such a key.
    default: u64,
    /// The list that says the same, layer by layer, and takes precedence.
    list: &'static str,
    /// The entry of layers n, 2n, ... (counted from 1), and of all others.
    nth: Mark,
    rest: Mark,
}

const SLIDING_KEYS: &[&str] = &["sliding_window_pattern", "_sliding_window_pattern"];

/// A cycle of full among sliding attention.
const fn sliding(
    families: &'static [&'static str],
    keys: &'static [&'static str],
    default: u64,
) -> Cycle {
    Cycle {
        families,
        keys,
        default,
        list: "layer_types",
        nth: FULL,
        rest: SLIDING,
    }
}

/// Every rule of the kind.
const CYCLES: &[Cycle] = &[
    sliding(&["gemma2", "vaultgemma", "gpt_oss"], &[], 2),
    sliding(&["gemma3", "gemma3_text"], SLIDING_KEYS, 6),
    sliding(&["gemma3n", "gemma3n_text"], &[], 5),
    sliding(&["gemma4_text", "gemma4_unified_text"], &[], 6),
    sliding(&["cohere2", "exaone4", "exaone_moe"], SLIDING_KEYS, 4),
    sliding(&["olmo3"], &[], 4),
    sliding(&["afmoe"], &["global_attn_every_n_layers"], 4),
    Cycle {
        families: &["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"],
        keys: &["full_attention_interval"],
        default: 4,
        list: "layer_types",
        nth: FULL,
        rest: LINEAR,
    },
    Cycle {
        families: &["smollm3", "llama4_text"],
        keys: &["no_rope_layer_interval"],
        default: 4,
        list: "no_rope_layers",
        nth: Mark::Flag(0),
        rest: Mark::Flag(1),
    },
];

/// Keys "every n-th layer is different" of classes that read no list in their place.
const BARE_CYCLES: &[&str] = &["dense_attention_every_n_layers"];

/// Families whose lists depend on the distance to the last layer.
const FROM_THE_END: &[&str] = &["muse_glimmer_text", "muse_spark_text"];

/// Translates every rule for the layers that are kept.
pub(super) fn translate(cut: &mut Cut<'_>) -> Result<(), ConfigProblem> {
    special_lists(cut)?;
    for cycle in CYCLES {
        cut_cycle(cut, cycle)?;
    }
    for key in BARE_CYCLES {
        refit_bare(cut, key)?;
    }
    windowed(cut)?;
    forced_last(cut)?;
    shared_caches(cut)?;
    repeated_blocks(cut)?;
    expanded_attention(cut)?;
    experts::translate(cut)
}

/// Writes a cycle's list where the class would derive it, then fits the period to the new list.
fn cut_cycle(cut: &mut Cut<'_>, cycle: &Cycle) -> Result<(), ConfigProblem> {
    let known = cut.is_family(cycle.families);
    let present: Vec<&str> = cycle
        .keys
        .iter()
        .copied()
        .filter(|key| cut.has(key))
        .collect();
    if !known && (present.is_empty() || !speaks_for_strangers(cut, cycle)) {
        return Ok(());
    }
    let nth = Value::from(cycle.nth);
    if known && !cut.has_list(cycle.list) {
        let rest = Value::from(cycle.rest);
        let mut list = Vec::new();
        for layer in cut.kept {
            let is_nth = nth_layer(cut, cycle, present.first().copied(), *layer)?;
            list.push(if is_nth { nth.clone() } else { rest.clone() });
        }
        cut.note(
            cycle.list,
            format!("written out as {}", shown(&list.clone().into())),
        );
        cut.set(cycle.list, list);
    }
    if let Some(list) = cut.new.get(cycle.list).and_then(Value::as_array) {
        let flags: Vec<bool> = list.iter().map(|entry| *entry == nth).collect();
        return refit(cut, cycle, &present, &flags);
    }
    present.into_iter().try_for_each(|key| refit_bare(cut, key))
}

/// Whether a row stands for its keys in families that no row names: the first one with these keys.
fn speaks_for_strangers(cut: &Cut<'_>, cycle: &Cycle) -> bool {
    let mut same = CYCLES.iter().filter(|row| row.keys == cycle.keys);
    !same.clone().any(|row| cut.is_family(row.families))
        && same
            .next()
            .is_some_and(|first| first.families == cycle.families)
}

/// Whether the class makes an old layer one of the "n-th".
fn nth_layer(
    cut: &Cut<'_>,
    cycle: &Cycle,
    key: Option<&str>,
    layer: u64,
) -> Result<bool, ConfigProblem> {
    if cycle.keys == SLIDING_KEYS && cut.old.get("sliding_window") == Some(&Value::Null) {
        return Ok(true);
    }
    if let Some((key, Value::String(letters))) = key.and_then(|key| Some((key, cut.old.get(key)?)))
    {
        // Exaone 4 spells it: `LLLG`, local and global; its last layer is always global.
        if letters.is_empty() || !letters.bytes().all(|b| b == b'L' || b == b'G') {
            return Err(cut.wrong(key, "a whole number, or letters L and G"));
        }
        let at = usize::try_from(layer).unwrap_or(0) % letters.len();
        return Ok(layer + 1 == cut.layers || letters.as_bytes()[at] == b'G');
    }
    let period = match key {
        Some(key) => cut.period(key)?,
        None => None,
    };
    Ok((layer + 1).is_multiple_of(period.unwrap_or(cycle.default)))
}

/// Adjusts the period to the new list, for readers that look at it instead of the list.
fn refit(
    cut: &mut Cut<'_>,
    cycle: &Cycle,
    present: &[&str],
    flags: &[bool],
) -> Result<(), ConfigProblem> {
    let list = cycle.list;
    let fits = |period: u64| {
        (1..)
            .zip(flags)
            .all(|(n, flag)| u64::is_multiple_of(n, period) == *flag)
    };
    let mut in_force = cycle.default;
    for key in present {
        if cut.old.get(*key).is_some_and(Value::is_number) {
            in_force = cut.period(key)?.unwrap_or(in_force);
        }
    }
    let spelled = present
        .iter()
        .any(|key| cut.old.get(*key).is_some_and(Value::is_string));
    let known = cut.is_family(cycle.families);
    if (fits(in_force) && !spelled) || (!known && present.is_empty()) {
        return Ok(());
    }
    match every_nth(flags) {
        Some(period) if !cycle.keys.is_empty() => {
            let keys = if present.is_empty() {
                &cycle.keys[..1]
            } else {
                present
            };
            for key in keys {
                cut.set(key, period);
                cut.note(
                    key,
                    format!("set to {period}, which says the same as `{list}`"),
                );
            }
        }
        _ => cut.note(
            list,
            "no period gives this pattern: versions of transformers that do not read the list \
             compute something else",
        ),
    }
    Ok(())
}

/// A period that no list can replace: it must fit the kept layers by itself.
fn refit_bare(cut: &mut Cut<'_>, key: &str) -> Result<(), ConfigProblem> {
    let Some(period) = cut.period(key)? else {
        return Ok(());
    };
    let flags = cut.flags(|layer| (layer + 1).is_multiple_of(period));
    if (1..)
        .zip(&flags)
        .all(|(n, flag)| u64::is_multiple_of(n, period) == *flag)
    {
        return Ok(());
    }
    let fitting = every_nth(&flags)
        .ok_or_else(|| cut.refuse(key, "no such period puts the kept layers where they belong"))?;
    cut.set(key, fitting);
    cut.note(
        key,
        format!("{period} becomes {fitting} for the kept layers"),
    );
    Ok(())
}

/// The n for which exactly every n-th position is set, if there is one.
pub(super) fn every_nth(flags: &[bool]) -> Option<u64> {
    let period = flags.iter().position(|flag| *flag).unwrap_or(flags.len()) + 1;
    let fits = (1..)
        .zip(flags)
        .all(|(n, flag)| usize::is_multiple_of(n, period) == *flag);
    fits.then_some(period as u64)
}

/// Lists of single families that follow no simple cycle.
fn special_lists(cut: &mut Cut<'_>) -> Result<(), ConfigProblem> {
    if cut.has_list("layer_types") {
        return Ok(());
    }
    if cut.is_family(FROM_THE_END) {
        return Err(cut.refuse(
            "layer_types",
            "the class counts its pattern from the last layer",
        ));
    }
    let is_full: Box<dyn Fn(u64) -> bool> = match cut.family {
        "flint" => {
            let last = cut.layers.saturating_sub(1);
            Box::new(move |layer| layer < 2 || layer % 4 == 1 || layer == last)
        }
        "cohere2_moe" => {
            let dense = cut.number("first_k_dense_replace")?.unwrap_or(0);
            let first = cut
                .period("prefix_dense_sliding_window_pattern")?
                .unwrap_or(1);
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
    let on = cut
        .flag("use_sliding_window")?
        .unwrap_or(cut.family == "dots1")
        && cut.old.get("sliding_window") != Some(&Value::Null);
    if !on {
        return Ok(());
    }
    if cut.family == "qwen2_moe" {
        // Version 5 of transformers alternates below the limit, version 4 slides above it.
        return if cut.has_list("layer_types") {
            Ok(())
        } else {
            Err(cut.refuse(
                key,
                "versions of transformers read it differently without `layer_types`",
            ))
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
            return Err(cut.refuse(
                key,
                "layers without the window must come before those with it",
            ));
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
    let last_is_old_last = cut.kept.last().is_some_and(|layer| layer + 1 == cut.layers);
    match list.and_then(|list| list.last()) {
        Some(last) if *last != Value::from(FULL) && !last_is_old_last => Err(cut.refuse(
            "layer_types",
            "the class forces the last layer to full attention",
        )),
        _ => Ok(()),
    }
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
        let donors_stay = donors(cut, own)
            .into_iter()
            .all(|donor| cut.kept.contains(&donor));
        if !donors_stay {
            return Err(cut.refuse(key, "a layer that lends its keys and values is not kept"));
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
    cut.kept
        .iter()
        .filter(|layer| **layer >= own)
        .filter_map(|layer| donor(*layer))
        .collect()
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
    let mut expanded: Vec<&Value> = Vec::new();
    for pair in value.as_array().ok_or_else(wrong)? {
        let types = pair.get(0).and_then(Value::as_array).ok_or_else(wrong)?;
        let times = pair.get(1).and_then(Value::as_u64).ok_or_else(wrong)?;
        // Nothing beyond the stack is ever read, so a hostile count costs nothing.
        for _ in 0..times.min(cut.layers) {
            expanded.extend(types.iter().take(1024));
            if expanded.len() as u64 >= cut.layers {
                break;
            }
        }
    }
    let at = |layer: &u64| {
        expanded
            .get(usize::try_from(*layer).ok()?)
            .map(|kind| (*kind).clone())
    };
    let kept: Option<Vec<Value>> = cut.kept.iter().map(at).collect();
    let kept = kept.ok_or_else(|| ConfigProblem::TooShort {
        key: cut.scope.key(key),
        entries: expanded.len() as u64,
        layers: cut.layers,
    })?;
    cut.set(key, serde_json::json!([[kept, 1]]));
    Ok(())
}
