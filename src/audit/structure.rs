//! Does a checkpoint agree with itself? Config against tensors, layers against each other. Reads no data.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::checkpoint::{Checkpoint, Role, is_tied, vocab_size};
use crate::error::printable;

/// Config keys that give layers different tensors, unless they are empty or 0.
const LAYERS_DIFFER: [&str; 26] = [
    "layers_block_type",
    "block_types",
    "block_configs",
    "per_layer_config",
    "hybrid_override_pattern",
    "hybrid_layer_pattern",
    "hybrid_layer_ids",
    "attn_type_list",
    "attn_layer_indices",
    "full_attn_idxs",
    "linear_attn_config",
    "cross_attention_layers",
    "cross_attn_layers",
    "mlp_layer_types",
    "mlp_only_layers",
    "num_experts_per_layer",
    "ffn_multipliers",
    "first_k_dense_replace",
    "first_k_dense",
    "moe_layers",
    "moe_layers_enum",
    "moe_layer_start_index",
    "num_dense_layers",
    "num_kv_shared_layers",
    "kv_source_layers",
    "ple_layer_ids",
];
/// Config keys that say every how many layers something comes: 1 is every layer.
const PERIODS: [&str; 7] = [
    "attn_layer_period",
    "expert_layer_period",
    "cross_attn_every_n_layers",
    "decoder_sparse_step",
    "full_attention_interval",
    "interleave_moe_layer_step",
    "moe_layer_freq",
];
/// Kinds of layers that have the tensors of any attention layer.
const ATTENTION: [&str; 3] = ["full_attention", "sliding_attention", "chunked_attention"];
const NAMES_SHOWN: usize = 3;

/// Everything doubtful about the structure, one sentence each, opening's own warnings first.
pub(super) fn doubts(checkpoint: &Checkpoint) -> Vec<String> {
    let mut found = checkpoint.warnings().to_vec();
    let config = checkpoint.config();
    found.extend(layer_count(checkpoint.anatomy().config_layers(), checkpoint.layers()));
    found.extend(vocabulary(config.and_then(vocab_size), checkpoint.vocabulary_rows()));
    found.extend(head(checkpoint));
    let layers = layers(checkpoint);
    found.extend(gaps(checkpoint, &layers));
    if !config.is_some_and(explains_differences) {
        found.extend(uneven(&layers));
    }
    found
}

fn layer_count(says: Option<u64>, holds: u64) -> Option<String> {
    let says = says.filter(|says| *says != holds)?;
    let plural = if holds == 1 { "" } else { "s" };
    Some(format!(
        "`num_hidden_layers` is {says} in `config.json`, but the tensors make {holds} layer{plural}"
    ))
}

fn vocabulary(says: Option<u64>, rows: Option<u64>) -> Option<String> {
    let (says, rows) = says.zip(rows).filter(|(says, rows)| says != rows)?;
    Some(format!("`vocab_size` is {says} in `config.json`, but the embedding has {rows} rows"))
}

fn head(checkpoint: &Checkpoint) -> Option<String> {
    let untied = is_tied(checkpoint.config()?) == Some(false);
    (untied && checkpoint.is_tied()).then(|| {
        "`tie_word_embeddings` is false in `config.json`, but no head is stored".to_owned()
    })
}

/// The tensors of each layer that occurs, from 0, named within the layer.
fn layers(checkpoint: &Checkpoint) -> BTreeMap<u64, BTreeSet<&str>> {
    let anatomy = checkpoint.anatomy();
    let mut layers: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    for (name, _) in checkpoint.tensors() {
        if let (Role::Layer(layer), Some((_, part))) =
            (anatomy.role(name), anatomy.layer_suffix(name))
        {
            layers.entry(layer).or_default().insert(part);
        }
    }
    layers
}

fn gaps(checkpoint: &Checkpoint, layers: &BTreeMap<u64, BTreeSet<&str>>) -> Option<String> {
    let last = *layers.keys().next_back()?;
    let present = layers.len() as u64;
    // Indices come from names, which may hold any number.
    let absent = last - (present - 1);
    if absent == 0 {
        return None;
    }
    let missing: Vec<String> = (0..last)
        .filter(|layer| !layers.contains_key(layer))
        .take(NAMES_SHOWN)
        .map(|layer| layer.saturating_add(1).to_string())
        .collect();
    let more = absent - missing.len() as u64;
    Some(format!(
        "the layers under `{}` have gaps: no tensors for layer {}{} of {}",
        printable(&checkpoint.anatomy().layer_prefix),
        missing.join(", "),
        if more > 0 { format!(" and {more} more") } else { String::new() },
        last.saturating_add(1),
    ))
}

/// Layers whose tensor names are not those of most layers, one warning for each kind of difference.
fn uneven(layers: &BTreeMap<u64, BTreeSet<&str>>) -> Vec<String> {
    let mut kinds: BTreeMap<&BTreeSet<&str>, Vec<u64>> = BTreeMap::new();
    for (layer, parts) in layers {
        let number = layer.saturating_add(1);
        kinds.entry(parts).or_default().push(number);
    }
    let usual = kinds
        .iter()
        .max_by_key(|(_, layers)| (layers.len(), std::cmp::Reverse(layers.first().copied())))
        .map(|(parts, _)| (*parts).clone())
        .unwrap_or_default();
    let mut odd: Vec<(&Vec<u64>, String)> = kinds
        .iter()
        .filter(|(parts, _)| ***parts != usual)
        .map(|(parts, layers)| (layers, difference(parts, &usual)))
        .collect();
    odd.sort_unstable();
    odd.into_iter()
        .map(|(layers, difference)| {
            let plural = if layers.len() == 1 { "" } else { "s" };
            let verb = if layers.len() == 1 { "does" } else { "do" };
            format!(
                "layer{plural} {} {verb} not have the tensors of the other layers ({difference})",
                ranges(layers),
            )
        })
        .collect()
}

fn difference(parts: &BTreeSet<&str>, usual: &BTreeSet<&str>) -> String {
    let list = |label: &str, names: Vec<&&str>| {
        let shown: Vec<String> =
            names.iter().take(NAMES_SHOWN).map(|n| format!("`{}`", printable(n))).collect();
        let more = names.len() - shown.len();
        match (shown.is_empty(), more) {
            (true, _) => None,
            (false, 0) => Some(format!("{label} {}", shown.join(", "))),
            (false, more) => Some(format!("{label} {} and {more} more", shown.join(", "))),
        }
    };
    let missing = list("missing:", usual.difference(parts).collect());
    let extra = list("extra:", parts.difference(usual).collect());
    [missing, extra].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// Whether a config says that its layers are of several kinds, at the top or in a nested text config.
fn explains_differences(config: &Map<String, Value>) -> bool {
    let nested = config.values().filter_map(Value::as_object);
    std::iter::once(config).chain(nested).any(|config| {
        let is_said = |key: &str, nothing: u64| match config.get(key) {
            None | Some(Value::Null) => false,
            Some(Value::Array(items)) => !items.is_empty(),
            Some(value) => value.as_u64().is_none_or(|n| n > nothing),
        };
        let kinds = config.get("layer_types").and_then(Value::as_array);
        let is_attention = |kind: &Value| kind.as_str().is_some_and(|k| ATTENTION.contains(&k));
        LAYERS_DIFFER.iter().any(|key| is_said(key, 0))
            || PERIODS.iter().any(|key| is_said(key, 1))
            || kinds.is_some_and(|kinds| !kinds.iter().all(is_attention))
    })
}

/// Ascending numbers as ranges: `1-3, 7`.
pub(super) fn ranges(numbers: &[u64]) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &n in numbers {
        match runs.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(n) => *end = n,
            _ => runs.push((n, n)),
        }
    }
    let show = |(from, to): &(u64, u64)| {
        if from == to { from.to_string() } else { format!("{from}-{to}") }
    };
    runs.iter().map(show).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::audit::fixture::Fixture;
    use crate::audit::{TreeOptions, inspect, render_tree};

    #[test]
    fn a_sound_model_raises_no_doubt() {
        assert_eq!(doubts(&Fixture::llama(3, |_, _| 1.0).open()), Vec::<String>::new());
    }

    #[test]
    fn a_layer_that_lacks_a_tensor_is_named() {
        let fixture = Fixture::llama(3, |_, _| 1.0)
            .f32("model.layers.4.self_attn.q_proj.weight", &[1], &[0.0])
            .config(json!({}));
        let found = doubts(&fixture.open()).join("\n");
        assert!(found.contains("gaps: no tensors for layer 4 of 5"), "{found}");
        assert!(
            found.contains("layer 5 does not have the tensors of the other layers (missing: `input_layernorm.weight`, `mlp.down_proj.weight`)"),
            "{found}"
        );
    }

    #[test]
    fn a_config_can_explain_uneven_layers() {
        let fixture = Fixture::llama(2, |_, _| 1.0)
            .f32("model.layers.1.mlp.gate.weight", &[1], &[0.0])
            .config(json!({"text_config": {"first_k_dense_replace": 1}}));
        assert_eq!(doubts(&fixture.open()), Vec::<String>::new());
    }

    #[test]
    fn disagreements_name_the_key_and_both_numbers() {
        let layers = layer_count(Some(3), 2).unwrap();
        let expected = "`num_hidden_layers` is 3 in `config.json`, but the tensors make 2 layers";
        assert_eq!(layers, expected);
        let rows = vocabulary(Some(32), Some(40)).unwrap();
        let expected = "`vocab_size` is 32 in `config.json`, but the embedding has 40 rows";
        assert_eq!(rows, expected);
        assert_eq!(layer_count(None, 2).or(layer_count(Some(2), 2)), None);
        assert_eq!(vocabulary(None, Some(2)).or(vocabulary(Some(2), None)), None);
    }

    #[test]
    fn layers_of_any_number_do_not_overflow() {
        for (number, doubtful) in [(999_999, true), (u64::MAX - 1, false)] {
            let name = format!("model.layers.{number}.x.weight");
            let fixture = Fixture::llama(1, |_, _| 1.0).f32(&name, &[1], &[0.0]);
            let checkpoint = fixture.open();
            assert_eq!(!doubts(&checkpoint).is_empty(), doubtful, "{number}");
            render_tree(&inspect(&checkpoint), TreeOptions::default());
        }
    }

    #[test]
    fn what_a_config_explains() {
        let explains = |config: Value| explains_differences(config.as_object().unwrap());
        assert!(!explains(json!({"decoder_sparse_step": 1, "mlp_only_layers": []})));
        assert!(explains(json!({"decoder_sparse_step": 2})));
        assert!(!explains(json!({"first_k_dense_replace": 0})));
        assert!(!explains(json!({"layer_types": ["full_attention", "sliding_attention"]})));
        assert!(explains(json!({"layer_types": ["full_attention", "linear_attention"]})));
        assert!(explains(json!({"text_config": {"moe_layers": [1]}})));
    }

    #[test]
    fn runs_of_numbers() {
        assert_eq!(ranges(&[1, 2, 3, 7, 9, 10]), "1-3, 7, 9-10");
    }
}
