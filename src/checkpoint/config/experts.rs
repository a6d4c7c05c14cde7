//! Which layers are dense and which have experts: prefixes, periods and ranges.

use serde_json::Value;

use super::Cut;
use super::problem::{ConfigProblem, shown};

/// A count of dense layers at the front of the stack.
struct Prefix {
    key: &'static str,
    /// The `model_type`s whose class supplies a count if the config has none, with it.
    defaults: &'static [(&'static str, u64)],
}

/// Every such count.
const PREFIXES: &[Prefix] = &[
    Prefix {
        key: "first_k_dense_replace",
        defaults: &[
            ("deepseek_v3", 3),
            ("deepseek_v32", 3),
            ("glm_moe_dsa", 3),
            ("bailing_hybrid", 2),
            ("glm4_moe", 1),
            ("glm4v_moe_text", 1),
            ("exaone_moe", 1),
            ("kimi_linear", 1),
            ("axk1", 1),
            ("mistral_large4", 1),
        ],
    },
    Prefix { key: "num_dense_layers", defaults: &[("lfm2_moe", 2), ("afmoe", 1)] },
];

/// Families whose class fills `mlp_layer_types` with so many dense layers and then sparse ones, and
/// reads no count that would say otherwise.
const DENSE_FIRST: &[(&str, u64)] = &[("hy_v3", 1), ("glm4_moe_lite", 1), ("beam", 3)];

/// Translates what says which layers have experts.
pub(super) fn translate(cut: &mut Cut<'_>) -> Result<(), ConfigProblem> {
    dense_first(cut);
    sparse_step(cut)?;
    interleaved(cut)?;
    frequency(cut)?;
    for prefix in PREFIXES {
        dense_prefix(cut, prefix)?;
    }
    expert_range(cut)?;
    period_and_offset(cut, "attn_layer_period", "attn_layer_offset", (8, 4))?;
    period_and_offset(cut, "expert_layer_period", "expert_layer_offset", (2, 1))
}

/// How many leading flags are set, if none is set behind them.
pub(super) fn prefix(flags: &[bool]) -> Option<u64> {
    let count = flags.iter().take_while(|flag| **flag).count();
    (!flags[count..].contains(&true)).then_some(count as u64)
}

fn dense_first(cut: &mut Cut<'_>) {
    let row = DENSE_FIRST.iter().find(|(family, _)| *family == cut.family);
    if let Some((_, dense)) = row.filter(|_| !cut.has_list("mlp_layer_types")) {
        let word = |layer: &u64| Value::from(if layer < dense { "dense" } else { "sparse" });
        let list: Value = cut.kept.iter().map(word).collect();
        cut.note("mlp_layer_types", format!("written out as {}", shown(&list)));
        cut.set("mlp_layer_types", list);
    }
}

/// Qwen: layers have experts if their number is a multiple of `decoder_sparse_step`, unless listed
/// in `mlp_only_layers`. The list can say it all.
fn sparse_step(cut: &mut Cut<'_>) -> Result<(), ConfigProblem> {
    let (step_key, list_key) = ("decoder_sparse_step", "mlp_only_layers");
    let step = cut.period(step_key)?.unwrap_or(1);
    let by_default = cut.family == "flint" && !cut.has(list_key);
    if step == 1 && !by_default {
        return Ok(());
    }
    // The field itself was checked when it was cut.
    let listed: Vec<u64> = match cut.old.get(list_key).and_then(Value::as_array) {
        Some(list) => list.iter().filter_map(Value::as_u64).collect(),
        None if by_default => vec![0, 1],
        None => Vec::new(),
    };
    let dense = cut.positions(|layer| !(layer + 1).is_multiple_of(step) || listed.contains(&layer));
    let text = format!(
        "{} are the dense layers (from 0), so {step_key} can be 1",
        shown(&dense.clone().into())
    );
    cut.set(list_key, dense);
    cut.set(step_key, 1);
    cut.note(list_key, text);
    Ok(())
}

/// Llama 4: every n-th layer has experts, unless `moe_layers` lists them.
fn interleaved(cut: &mut Cut<'_>) -> Result<(), ConfigProblem> {
    let (step_key, list_key) = ("interleave_moe_layer_step", "moe_layers");
    let Some(step) = cut.period(step_key)?.or((cut.family == "llama4_text").then_some(1)) else {
        return Ok(());
    };
    if cut.has(list_key) {
        return Ok(());
    }
    let experts = cut.positions(|layer| (layer + 1).is_multiple_of(step));
    cut.note(list_key, format!("written out as {}", shown(&experts.clone().into())));
    cut.set(list_key, experts);
    Ok(())
}

/// DeepSeek: behind the dense layers, those whose index is a multiple of `moe_layer_freq` have experts.
fn frequency(cut: &Cut<'_>) -> Result<(), ConfigProblem> {
    let key = "moe_layer_freq";
    if cut.old.get(key).is_some_and(Value::is_array) || cut.has_list("mlp_layer_types") {
        return Ok(());
    }
    let Some(step) = cut.period(key)?.filter(|step| *step > 1) else {
        return Ok(());
    };
    let dense = cut.number("first_k_dense_replace")?.unwrap_or(0);
    let flags = cut.flags(|layer| layer >= dense && layer.is_multiple_of(step));
    // The count of dense layers is recomputed next; the step must go on fitting behind it.
    let kept_dense = prefix(&cut.flags(|layer| layer < dense)).unwrap_or(0);
    let fits =
        (0_u64..).zip(&flags).all(|(at, f)| (at >= kept_dense && at.is_multiple_of(step)) == *f);
    if fits {
        return Ok(());
    }
    Err(cut.refuse(key, "the kept layers no longer fall on its multiples"))
}

/// Recounts the dense layers at the front.
fn dense_prefix(cut: &mut Cut<'_>, prefix_row: &Prefix) -> Result<(), ConfigProblem> {
    let key = prefix_row.key;
    let default = prefix_row.defaults.iter().find(|(family, _)| *family == cut.family);
    let Some(dense) = cut.number(key)?.or(default.map(|(_, count)| *count)) else {
        return Ok(());
    };
    match prefix(&cut.flags(|layer| layer < dense)) {
        Some(count) => {
            if count != dense {
                cut.note(key, format!("{dense} becomes {count}, the dense layers that are kept"));
            }
            cut.set(key, count);
        }
        None if cut.has_list("mlp_layer_types") => {
            cut.note(key, "left as it is, `mlp_layer_types` decides");
        }
        None => return Err(cut.refuse(key, "dense layers must come before those with experts")),
    }
    Ok(())
}

/// Ernie 4.5: experts in a range of layers, every n-th.
fn expert_range(cut: &mut Cut<'_>) -> Result<(), ConfigProblem> {
    let (step_key, start_key, end_key) =
        ("moe_layer_interval", "moe_layer_start_index", "moe_layer_end_index");
    let present = [step_key, start_key, end_key].iter().any(|key| cut.has(key));
    if !(present || cut.family == "ernie4_5_moe") || cut.has_list("mlp_layer_types") {
        return Ok(());
    }
    let step = cut.period(step_key)?.unwrap_or(1);
    let start = cut.number(start_key)?.unwrap_or(1);
    let end = match cut.old.get(end_key).and_then(Value::as_i64) {
        Some(-1) => cut.layers.saturating_sub(1),
        _ => cut.number(end_key)?.unwrap_or(cut.layers.saturating_sub(1)),
    };
    let flags =
        cut.flags(|layer| (layer + 1).is_multiple_of(step) && (start..=end).contains(&layer));
    let Some((step, start, end)) = fit_range(&flags) else {
        return Err(
            cut.refuse(step_key, "no range with a step gives the kept layers their experts")
        );
    };
    cut.set(step_key, step);
    cut.set(start_key, start);
    cut.set(end_key, end);
    cut.note(step_key, format!("experts in layers {start} to {end} (from 0), every {step}"));
    Ok(())
}

/// Step, first and last index that set exactly these flags.
fn fit_range(flags: &[bool]) -> Option<(u64, u64, u64)> {
    let length = flags.len() as u64;
    let Some(first) = flags.iter().position(|flag| *flag) else {
        // An empty range: it starts behind the last layer.
        return Some((1, length, length));
    };
    let last = flags.iter().rposition(|flag| *flag)?;
    let next = flags[first + 1..].iter().position(|flag| *flag).map_or(1, |gap| gap + 1);
    let in_step = |at: usize| next == 1 || (at + 1).is_multiple_of(next);
    let fits = flags
        .iter()
        .enumerate()
        .all(|(at, flag)| *flag == (in_step(at) && (first..=last).contains(&at)));
    fits.then_some((next as u64, first as u64, last as u64))
}

/// Jamba: layers at `offset` in every `period`.
fn period_and_offset(
    cut: &mut Cut<'_>,
    period_key: &str,
    offset_key: &str,
    default: (u64, u64),
) -> Result<(), ConfigProblem> {
    let present = cut.has(period_key) || cut.has(offset_key);
    if !(present || cut.family == "jamba") || cut.has_list("layers_block_type") {
        return Ok(());
    }
    let period = cut.period(period_key)?.unwrap_or(default.0);
    let offset = cut.number(offset_key)?.unwrap_or(default.1);
    let flags = cut.flags(|layer| layer % period == offset);
    let Some((new_period, new_offset)) = fit_period(&flags) else {
        return Err(cut.refuse(period_key, "no period and offset give this pattern"));
    };
    let fits = (0_u64..).zip(&flags).all(|(at, flag)| (at % period == offset) == *flag);
    if !fits || !present {
        cut.set(period_key, new_period);
        cut.set(offset_key, new_offset);
        cut.note(
            period_key,
            format!("period {new_period}, offset {new_offset} for the kept layers"),
        );
    }
    Ok(())
}

/// Period and offset (below it) that set exactly these flags.
fn fit_period(flags: &[bool]) -> Option<(u64, u64)> {
    let length = flags.len();
    let Some(first) = flags.iter().position(|flag| *flag) else {
        return Some((length as u64 + 1, length as u64));
    };
    let gap = flags[first + 1..].iter().position(|flag| *flag);
    let period = gap.map_or(length, |gap| gap + 1);
    let fits = flags.iter().enumerate().all(|(at, flag)| (at % period == first) == *flag);
    fits.then_some((period as u64, first as u64))
}
