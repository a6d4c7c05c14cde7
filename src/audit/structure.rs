//! Does a checkpoint agree with itself? Config against tensors, layers against each other. Reads no data.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::checkpoint::{Checkpoint, Role, is_tied, vocab_size};
use crate::error::printable;

/// Config keys that say that layers differ from each other.
const LAYERS_DIFFER: [&str; 22] = [
    "layer_types",
    "layers_block_type",
    "block_types",
    "block_configs",
    "hybrid_override_pattern",
    "hybrid_layer_ids",
    "attention_layers",
    "attn_layer_indices",
    "attn_layer_period",
    "full_attn_idxs",
    "cross_attention_layers",
    "cross_attn_layers",
    "mlp_only_layers",
    "decoder_sparse_step",
    "expert_layer_period",
    "first_k_dense_replace",
    "first_k_dense",
    "interleave_moe_layer_step",
    "moe_layers",
    "moe_layer_freq",
    "moe_layer_start_index",
    "num_kv_shared_layers",
];
const NAMES_SHOWN: usize = 3;

/// Everything doubtful about the structure, one sentence each, opening's own warnings first.
pub(super) fn doubts(checkpoint: &Checkpoint) -> Vec<String> {
    let mut found = checkpoint.warnings().to_vec();
    found.extend(layer_count(checkpoint));
    found.extend(vocabulary(checkpoint));
    found.extend(head(checkpoint));
    let layers = layers(checkpoint);
    found.extend(gaps(checkpoint, &layers));
    if !checkpoint.config().is_some_and(explains_differences) {
        found.extend(uneven(&layers));
    }
    found
}

fn layer_count(checkpoint: &Checkpoint) -> Option<String> {
    let (says, holds) = (checkpoint.anatomy().config_layers()?, checkpoint.layers());
    (says != holds).then(|| {
        format!(
            "`num_hidden_layers` is {says} in `config.json`, but the tensors make {holds} layer{}",
            if holds == 1 { "" } else { "s" }
        )
    })
}

fn vocabulary(checkpoint: &Checkpoint) -> Option<String> {
    let (says, rows) = (
        vocab_size(checkpoint.config()?)?,
        checkpoint.vocabulary_rows()?,
    );
    (says != rows).then(|| {
        format!("`vocab_size` is {says} in `config.json`, but the embedding has {rows} rows")
    })
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
    let count = layers.len() as u64;
    if count == last + 1 {
        return None;
    }
    let missing: Vec<String> = (0..last)
        .filter(|layer| !layers.contains_key(layer))
        .take(NAMES_SHOWN)
        .map(|layer| (layer + 1).to_string())
        .collect();
    let more = last + 1 - count - missing.len() as u64;
    Some(format!(
        "the layers under `{}` have gaps: no tensors for layer {}{} of {}",
        printable(&checkpoint.anatomy().layer_prefix),
        missing.join(", "),
        if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        },
        last + 1,
    ))
}

/// Layers whose tensor names are not those of most layers, one warning for each kind of difference.
fn uneven(layers: &BTreeMap<u64, BTreeSet<&str>>) -> Vec<String> {
    let mut kinds: BTreeMap<&BTreeSet<&str>, Vec<u64>> = BTreeMap::new();
    for (layer, parts) in layers {
        kinds.entry(parts).or_default().push(layer + 1);
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
        let shown: Vec<String> = names
            .iter()
            .take(NAMES_SHOWN)
            .map(|n| format!("`{}`", printable(n)))
            .collect();
        let more = names.len() - shown.len();
        match (shown.is_empty(), more) {
            (true, _) => None,
            (false, 0) => Some(format!("{label} {}", shown.join(", "))),
            (false, more) => Some(format!("{label} {} and {more} more", shown.join(", "))),
        }
    };
    let missing = list("missing:", usual.difference(parts).collect());
    let extra = list("extra:", parts.difference(usual).collect());
    [missing, extra]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("; ")
}

/// Whether a config says that its layers are of several kinds, at the top or in a nested text config.
fn explains_differences(config: &Map<String, Value>) -> bool {
    let says = |config: &Map<String, Value>| {
        LAYERS_DIFFER
            .iter()
            .any(|key| config.get(*key).is_some_and(|v| !v.is_null()))
    };
    says(config) || config.values().filter_map(Value::as_object).any(says)
}

/// Ascending numbers as ranges: `1-3, 7`.
pub(super) fn ranges(numbers: &[u64]) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &n in numbers {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == n => *end = n,
            _ => runs.push((n, n)),
        }
    }
    let show = |(from, to): &(u64, u64)| {
        if from == to {
            from.to_string()
        } else {
            format!("{from}-{to}")
        }
    };
    runs.iter().map(show).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::audit::fixture::Fixture;

    #[test]
    fn a_sound_model_raises_no_doubt() {
        assert_eq!(
            doubts(&Fixture::llama(3, |_, _| 1.0).open()),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_layer_that_lacks_a_tensor_is_named() {
        let fixture = Fixture::llama(3, |_, _| 1.0)
            .f32("model.layers.4.self_attn.q_proj.weight", &[1], &[0.0])
            .config(json!({}));
        let found = doubts(&fixture.open()).join("\n");
        assert!(
            found.contains("gaps: no tensors for layer 4 of 5"),
            "{found}"
        );
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
    fn runs_of_numbers() {
        assert_eq!(ranges(&[1, 2, 3, 7, 9, 10]), "1-3, 7, 9-10");
    }
}
