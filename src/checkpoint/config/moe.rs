//! What `config.json` says of experts: how many there are, and the twins of a family with and without them.

use serde_json::{Map, Value, json};

use super::problem::{ConfigProblem, shown};
use super::{Anatomy, stack_scope, text_scopes};

/// The keys that count experts.
const COUNTS: &[&str] =
    &["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"];

/// The keys that say how many of them a token takes.
const TAKEN: &[&str] =
    &["num_experts_per_tok", "experts_per_token", "num_experts_per_token", "moe_topk", "moe_k"];

/// The config of the same model with `new` of its `old` experts a layer, and what was decided.
///
/// # Errors
/// A config that does not count `old` experts.
pub fn set_experts(
    config: &Map<String, Value>,
    anatomy: &Anatomy,
    old: u64,
    new: u64,
) -> Result<(Map<String, Value>, Vec<String>), ConfigProblem> {
    let scope = stack_scope(config, anatomy, &text_scopes(config));
    let mut map = scope.get(config).cloned().unwrap_or_default();
    let mut notes = Vec::new();
    let mut counted = false;
    for key in COUNTS {
        match map.get_mut(*key) {
            None | Some(Value::Null) => continue,
            Some(Value::Array(list)) if list.iter().all(|n| n.as_u64() == Some(old)) => {
                list.fill(new.into());
            }
            Some(value) if value.as_u64() == Some(old) => *value = new.into(),
            Some(value) => {
                let (key, found) = (scope.key(key), shown(value));
                return Err(ConfigProblem::Experts { key, found, experts: old });
            }
        }
        counted = true;
    }
    if !counted {
        let (key, found) = (scope.key("num_experts"), "not set".to_owned());
        return Err(ConfigProblem::Experts { key, found, experts: old });
    }
    let mut says = false;
    for key in TAKEN {
        let Some(value) = map.get_mut(*key).filter(|value| !value.is_null()) else { continue };
        says = true;
        let most = |value: &Value| value.as_u64().is_some_and(|taken| taken > new);
        let reduced = match value {
            Value::Array(list) => {
                list.iter_mut().filter(|v| most(v)).map(|v| *v = new.into()).count() > 0
            }
            value if most(value) => {
                *value = new.into();
                true
            }
            _ => false,
        };
        if reduced {
            notes.push(format!("`{}` becomes {new}: there are no more experts", scope.key(key)));
        }
    }
    if !says && new < old {
        notes.push(format!(
            "config.json does not say how many experts a token takes: the family's default must not exceed {new}"
        ));
    }
    let groups = map.get("n_group").and_then(Value::as_u64).unwrap_or(1);
    if groups > 1 && new < old {
        map.insert("n_group".into(), 1.into());
        map.insert("topk_group".into(), 1.into());
        notes.push(format!(
            "`{}` becomes 1: experts are no longer chosen by {groups} groups",
            scope.key("n_group")
        ));
    }
    let mut config = config.clone();
    if scope == super::Scope::default() {
        config = map;
    } else {
        scope.replace(&mut config, map);
    }
    Ok((config, notes))
}

/// Keys that only models with experts have.
const EXPERT_KEYS: &[&str] = &[
    "num_local_experts",
    "num_experts",
    "num_experts_per_tok",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "output_router_logits",
    "moe_intermediate_size",
    "decoder_sparse_step",
    "mlp_only_layers",
    "norm_topk_prob",
];

/// The config of the dense model that one expert a layer makes: Mixtral as Mistral, Qwen3-MoE as Qwen3.
///
/// Values that the two classes have other defaults for are written out.
///
/// # Errors
/// A family without a dense twin; dense layers of another width.
pub fn densified(config: &Map<String, Value>) -> Result<Map<String, Value>, ConfigProblem> {
    let family = config.get("model_type").and_then(Value::as_str).unwrap_or("unknown");
    let (twin, class) = match family {
        "mixtral" => ("mistral", "MistralForCausalLM"),
        "qwen3_moe" => ("qwen3", "Qwen3ForCausalLM"),
        _ => {
            let reason =
                format!("the family `{family}` has no dense twin: mixtral and qwen3_moe have");
            return Err(ConfigProblem::NoTwin { reason });
        }
    };
    let mut new = config.clone();
    if family == "qwen3_moe" {
        let width = |key: &str| config.get(key).and_then(Value::as_u64);
        let expert = width("moe_intermediate_size").unwrap_or(768);
        let dense_layers = config
            .get("mlp_only_layers")
            .and_then(Value::as_array)
            .is_some_and(|layers| !layers.is_empty())
            || width("decoder_sparse_step").is_some_and(|step| step > 1);
        if dense_layers && width("intermediate_size") != Some(expert) {
            let reason = format!(
                "its dense layers are {} wide, its experts {expert}: a dense model has one width",
                width("intermediate_size").map_or("6144".to_owned(), |w| w.to_string())
            );
            return Err(ConfigProblem::NoTwin { reason });
        }
        new.insert("intermediate_size".into(), expert.into());
    }
    write_defaults(&mut new, family);
    for key in EXPERT_KEYS {
        new.shift_remove(*key);
    }
    new.insert("model_type".into(), twin.into());
    new.insert("architectures".into(), json!([class]));
    Ok(new)
}

/// The families with experts that dense models can become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MoeTwin {
    /// Mixtral, from Llama and Mistral.
    Mixtral,
    /// The first `DeepSeek` with experts, whose code lies on the Hub; from Llama and Mistral.
    DeepSeek,
    /// Qwen2-MoE, from Qwen2, Llama and Mistral.
    Qwen2,
    /// Qwen3-MoE, from Qwen3.
    Qwen3,
}

/// The config of a dense model whose feed-forward parts have become experts in every layer, and what was decided.
///
/// Values that the two classes have other defaults for are written out.
pub fn sparsified(
    config: &Map<String, Value>,
    twin: MoeTwin,
    experts: u64,
    experts_per_token: u64,
    shared: u64,
) -> (Map<String, Value>, Vec<String>) {
    let family = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let mut new = config.clone();
    let mut notes = Vec::new();
    write_defaults(&mut new, family);
    let width = new.get("intermediate_size").cloned().unwrap_or_default();
    let mut set = |values: &[(&str, Value)]| {
        for (key, value) in values {
            new.insert((*key).to_owned(), value.clone());
        }
    };
    let per_token = Value::from(experts_per_token);
    match twin {
        MoeTwin::Mixtral => set(&[
            ("model_type", json!("mixtral")),
            ("architectures", json!(["MixtralForCausalLM"])),
            ("num_local_experts", experts.into()),
            ("num_experts_per_tok", per_token),
        ]),
        MoeTwin::DeepSeek => set(&[
            ("model_type", json!("deepseek")),
            ("architectures", json!(["DeepseekForCausalLM"])),
            ("n_routed_experts", experts.into()),
            ("n_shared_experts", if shared > 0 { shared.into() } else { Value::Null }),
            ("num_experts_per_tok", per_token),
            ("first_k_dense_replace", 0.into()),
            ("moe_layer_freq", 1.into()),
            ("scoring_func", json!("softmax")),
            ("norm_topk_prob", true.into()),
            ("moe_intermediate_size", width),
            (
                "auto_map",
                json!({
                    "AutoConfig": "deepseek-ai/deepseek-moe-16b-base--configuration_deepseek.DeepseekConfig",
                    "AutoModel": "deepseek-ai/deepseek-moe-16b-base--modeling_deepseek.DeepseekModel",
                    "AutoModelForCausalLM": "deepseek-ai/deepseek-moe-16b-base--modeling_deepseek.DeepseekForCausalLM",
                }),
            ),
        ]),
        MoeTwin::Qwen2 => set(&[
            ("model_type", json!("qwen2_moe")),
            ("architectures", json!(["Qwen2MoeForCausalLM"])),
            ("num_experts", experts.into()),
            ("num_experts_per_tok", per_token),
            ("decoder_sparse_step", 1.into()),
            ("mlp_only_layers", json!([])),
            ("norm_topk_prob", true.into()),
            ("moe_intermediate_size", width.clone()),
            ("shared_expert_intermediate_size", width),
            ("use_sliding_window", false.into()),
        ]),
        MoeTwin::Qwen3 => set(&[
            ("model_type", json!("qwen3_moe")),
            ("architectures", json!(["Qwen3MoeForCausalLM"])),
            ("num_experts", experts.into()),
            ("num_experts_per_tok", per_token),
            ("decoder_sparse_step", 1.into()),
            ("mlp_only_layers", json!([])),
            ("norm_topk_prob", true.into()),
            ("moe_intermediate_size", width),
        ]),
    }
    if twin == MoeTwin::DeepSeek {
        // Its code knows the older spelling only.
        let theta = new.get("rope_parameters").and_then(|rope| rope.get("rope_theta")).cloned();
        if let (Some(theta), None) = (theta, new.get("rope_theta")) {
            new.insert("rope_theta".into(), theta);
        }
        notes.push("transformers has no class for `deepseek`: it loads with `trust_remote_code` and the code on the Hub".into());
    }
    if matches!(twin, MoeTwin::Mixtral | MoeTwin::Qwen2) {
        forget_window(&mut new, &mut notes);
    }
    if !experts.is_power_of_two() {
        notes
            .push(format!("{experts} experts are no power of two: llama.cpp cannot use the model"));
    }
    (new, notes)
}

/// mergekit's results attend to everything.
fn forget_window(config: &mut Map<String, Value>, notes: &mut Vec<String>) {
    let old = config.insert("sliding_window".into(), Value::Null);
    let mut slid = old.is_some_and(|old| !old.is_null());
    if let Some(Value::Array(types)) = config.get_mut("layer_types") {
        slid |= types.iter().any(|kind| kind != "full_attention");
        types.fill("full_attention".into());
    }
    if slid {
        notes.push("`sliding_window` becomes null, as mergekit does: beyond the window the result differs from its models".into());
    }
}

/// What each class takes where a config has no value, as far as the twins differ.
pub(super) fn write_defaults(config: &mut Map<String, Value>, family: &str) {
    let heads = config.get("num_attention_heads").and_then(Value::as_u64);
    let hidden = config.get("hidden_size").and_then(Value::as_u64);
    let mut missing = |key: &str, value: Value| {
        if config.get(key).is_none_or(Value::is_null) && !value.is_null() {
            config.insert(key.to_owned(), value);
        }
    };
    let head_dim = match (heads, hidden) {
        (Some(heads), Some(hidden)) if heads > 0 => Value::from(hidden / heads),
        _ => Value::Null,
    };
    let (kv_heads, head_dim, eps, theta, positions) = match family {
        "llama" => (heads.into(), head_dim, 1e-6, 1e4, 2048),
        "mistral" => (8.into(), head_dim, 1e-6, 1e4, 131_072),
        "mixtral" => (8.into(), head_dim, 1e-5, 1e6, 131_072),
        "qwen2" => (32.into(), head_dim, 1e-6, 1e4, 32_768),
        "qwen3" => (32.into(), 128.into(), 1e-6, 1e4, 32_768),
        "qwen3_moe" => (4.into(), head_dim, 1e-6, 1e4, 32_768),
        _ => return,
    };
    missing("num_key_value_heads", kv_heads);
    missing("head_dim", head_dim);
    missing("rms_norm_eps", json!(eps));
    missing("max_position_embeddings", json!(positions));
    if config.get("rope_parameters").is_none_or(Value::is_null)
        && config.get("rope_theta").is_none_or(Value::is_null)
    {
        config.insert("rope_theta".into(), json!(theta));
    }
    if !config.contains_key("sliding_window") {
        let slides = family == "mistral" || config.get("use_sliding_window") == Some(&json!(true));
        let window = if slides { json!(4096) } else { Value::Null };
        config.insert("sliding_window".into(), window);
    }
}
