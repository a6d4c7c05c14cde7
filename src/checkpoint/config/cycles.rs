//! "Every n-th layer is different": written out as a list, and n adjusted where one still fits, for
//! readers that know only the number.
//!
//! To teach a family whose class derives a list this way, add a row to [`CYCLES`].

use serde_json::Value;

use super::Cut;
use super::problem::{ConfigProblem, shown};

/// An entry of a per-layer list.
#[derive(Clone, Copy)]
pub(super) enum Mark {
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

pub(super) const FULL: Mark = Mark::Word("full_attention");
pub(super) const SLIDING: Mark = Mark::Word("sliding_attention");
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
    Cycle { families, keys, default, list: "layer_types", nth: FULL, rest: SLIDING }
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

/// Families that some version of transformers read without looking at the list.
const READ_WITHOUT_LIST: &[&str] = &["gemma2", "gemma3", "gemma3_text", "cohere2"];

/// Keys "every n-th layer is different" of classes that read no list in their place.
const BARE_CYCLES: &[&str] = &["dense_attention_every_n_layers"];

/// Translates every rule of the kind for the layers that are kept.
pub(super) fn translate(cut: &mut Cut<'_>) -> Result<(), ConfigProblem> {
    for cycle in CYCLES {
        cut_cycle(cut, cycle)?;
    }
    BARE_CYCLES.iter().try_for_each(|key| refit_bare(cut, key))
}

/// Writes a cycle's list where the class would derive it, then fits the period to the new list.
fn cut_cycle(cut: &mut Cut<'_>, cycle: &Cycle) -> Result<(), ConfigProblem> {
    let known = cut.is_family(cycle.families);
    let present: Vec<&str> = cycle.keys.iter().copied().filter(|key| cut.has(key)).collect();
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
        cut.note(cycle.list, format!("written out as {}", shown(&list.clone().into())));
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
        && same.next().is_some_and(|first| first.families == cycle.families)
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
    let fits =
        |period: u64| (1..).zip(flags).all(|(n, flag)| u64::is_multiple_of(n, period) == *flag);
    let mut in_force = cycle.default;
    for key in present {
        if cut.old.get(*key).is_some_and(Value::is_number) {
            in_force = cut.period(key)?.unwrap_or(in_force);
        }
    }
    let spelled = present.iter().any(|key| cut.old.get(*key).is_some_and(Value::is_string));
    let known = cut.is_family(cycle.families);
    if (fits(in_force) && !spelled) || (!known && present.is_empty()) {
        return Ok(());
    }
    match every_nth(flags) {
        Some(period) if !cycle.keys.is_empty() => {
            let keys = if present.is_empty() { &cycle.keys[..1] } else { present };
            for key in keys {
                cut.set(key, period);
                cut.note(key, format!("set to {period}, which says the same as `{list}`"));
            }
        }
        _ if known && !cut.is_family(READ_WITHOUT_LIST) => {}
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
    if (1..).zip(&flags).all(|(n, flag)| u64::is_multiple_of(n, period) == *flag) {
        return Ok(());
    }
    let fitting = every_nth(&flags)
        .ok_or_else(|| cut.refuse(key, "no such period puts the kept layers where they belong"))?;
    cut.set(key, fitting);
    cut.note(key, format!("{period} becomes {fitting} for the kept layers"));
    Ok(())
}

/// The n for which exactly every n-th position is set, if there is one.
pub(super) fn every_nth(flags: &[bool]) -> Option<u64> {
    let period = flags.iter().position(|flag| *flag).unwrap_or(flags.len()) + 1;
    let fits = (1..).zip(flags).all(|(n, flag)| usize::is_multiple_of(n, period) == *flag);
    fits.then_some(period as u64)
}
