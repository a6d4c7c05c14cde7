//! Decoder layers in tensor names: which layers a list of tensors belongs to.

use std::collections::BTreeSet;

use super::protocol::Spec;

/// A tensor name split at its layer: `model.layers.`, 3, `self_attn.q_proj.weight`.
pub(super) fn split(name: &str) -> Option<(&str, u64, &str)> {
    let mut start = 0;
    for part in name.split('.') {
        let end = start + part.len();
        if start > 0
            && end < name.len()
            && part.bytes().all(|b| b.is_ascii_digit())
            && let Ok(layer) = part.parse()
        {
            return Some((&name[..start], layer, &name[end + 1..]));
        }
        start = end + 1;
    }
    None
}

/// The layers of the trainable tensors, and whether all of these tensors lie in layers.
pub(super) fn of_trainable(spec: &Spec) -> (BTreeSet<u64>, bool) {
    let tensors = &spec.trainable.tensors;
    let layers: BTreeSet<u64> =
        tensors.iter().filter_map(|name| split(name)).map(|(_, layer, _)| layer).collect();
    let all = !tensors.is_empty() && tensors.iter().all(|name| split(name).is_some());
    (layers, all)
}

/// Last parts of the modules that low-rank adapters go on: `q_proj`, `up_proj`. Empty where no tensor names one.
pub(super) fn modules(spec: &Spec) -> Vec<String> {
    let names: BTreeSet<&str> = spec
        .trainable
        .tensors
        .iter()
        .filter_map(|name| name.strip_suffix(".weight")?.rsplit('.').next())
        .collect();
    names.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn names_split_at_the_layer() {
        let name = "model.layers.12.mlp.experts.3.up_proj.weight";
        assert_eq!(split(name), Some(("model.layers.", 12, "mlp.experts.3.up_proj.weight")));
        assert_eq!(split("transformer.h.0.ln_1.bias"), Some(("transformer.h.", 0, "ln_1.bias")));
        for other in ["lm_head.weight", "model.norm.weight", "3.weight", "model.layers.3"] {
            assert_eq!(split(other), None, "{other}");
        }
    }
}
