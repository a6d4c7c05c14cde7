//! `adapter_config.json`: what of it changes the arithmetic, and what this program does not do.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result, printable};

/// The settings of an adapter that its weights are applied by.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSettings {
    /// `r`, where `rank_pattern` says nothing else.
    pub rank: u64,
    /// `lora_alpha`, where `alpha_pattern` says nothing else.
    pub alpha: f64,
    /// Whether the scale is `alpha / sqrt(r)`.
    pub stabilised: bool,
    /// Whether weights are stored as `[in, out]`.
    pub fan_in_fan_out: bool,
    ranks: BTreeMap<String, f64>,
    alphas: BTreeMap<String, f64>,
    all: Map<String, Value>,
}

/// Settings that make another kind of adapter: the key, and why it cannot be applied.
const OTHER_KINDS: &[(&str, &str)] = &[
    ("use_dora", "DoRA scales whole columns by a magnitude vector"),
    ("lora_bias", "products with a bias of their own are not supported yet"),
    ("target_parameters", "products on bare parameters (fused experts) are not supported yet"),
    ("use_qalora", "QALoRA pools its inputs"),
    ("use_bdlora", "block-diagonal products are not supported yet"),
    ("layer_replication", "it duplicates layers of the model"),
    ("trainable_token_indices", "rows of single tokens are not supported yet"),
    ("arrow_config", "Arrow routes between adapters for every token"),
    ("alora_invocation_tokens", "aLoRA is active for some tokens only"),
    ("kasa_config", "KaSA changes the base weights"),
    ("monteclora_config", "MonteCLoRA samples its weights"),
];

/// Ways to start training that change the base weights too.
const CHANGE_THE_BASE: &[&str] = &["pissa", "olora", "corda", "loftq", "lora_ga"];

impl AdapterSettings {
    pub(super) fn parse(json: &[u8], path: &Path) -> Result<Self> {
        let refuse = |message: String| Error::Json { path: path.to_owned(), message };
        let all = match serde_json::from_slice(json) {
            Ok(Value::Object(all)) => all,
            Ok(_) => return Err(refuse("it is not an object".into())),
            Err(e) => return Err(refuse(printable(&e.to_string()))),
        };
        let mut problems = Vec::new();
        let kind = all.get("peft_type").and_then(Value::as_str).unwrap_or("LORA");
        if kind != "LORA" {
            problems
                .push(format!("`peft_type` is {kind}: only LORA is a sum of weight and product"));
        }
        for (key, why) in OTHER_KINDS {
            if all.get(*key).is_some_and(is_set) {
                problems.push(format!("`{key}` is set: {why}"));
            }
        }
        if let Some(start) = all.get("init_lora_weights").and_then(Value::as_str)
            && CHANGE_THE_BASE.iter().any(|name| start.starts_with(name))
        {
            problems.push(format!(
                "`init_lora_weights` is `{start}`: it fits a changed base model only (PEFT's `path_initial_model_for_weight_conversion` saves it as a plain adapter)"
            ));
        }
        let rank = all.get("r").and_then(Value::as_u64).filter(|rank| *rank > 0);
        let alpha = all.get("lora_alpha").and_then(Value::as_f64).filter(|alpha| alpha.is_finite());
        if rank.is_none() {
            problems.push("`r` is not a rank".into());
        }
        if alpha.is_none() {
            problems.push("`lora_alpha` is not a number".into());
        }
        let flag = |key: &str| all.get(key).and_then(Value::as_bool).unwrap_or(false);
        let (stabilised, fan_in_fan_out) = (flag("use_rslora"), flag("fan_in_fan_out"));
        let mut pattern = |key: &str| match read_pattern(all.get(key)) {
            Ok(pattern) => pattern,
            Err(why) => {
                problems.push(format!("`{key}`: {why}"));
                BTreeMap::new()
            }
        };
        let (ranks, alphas) = (pattern("rank_pattern"), pattern("alpha_pattern"));
        match (rank, alpha) {
            (Some(rank), Some(alpha)) if problems.is_empty() => {
                Ok(Self { rank, alpha, stabilised, fan_in_fan_out, ranks, alphas, all })
            }
            _ => Err(Error::Mismatch {
                what: format!("`{}` cannot be applied", path.display()),
                problems,
                hint: "merge it with PEFT's `merge_and_unload`, and use the merged model".into(),
            }),
        }
    }

    /// Everything that it says.
    pub fn all(&self) -> &Map<String, Value> {
        &self.all
    }

    /// The factor of a module's product, whose rank is what its matrices have.
    ///
    /// # Errors
    /// A rank that is not the one the settings say.
    #[expect(clippy::cast_precision_loss, reason = "ranks are small")]
    pub fn scale(&self, module: &str, rank: u64) -> Result<f64, String> {
        let rank = rank as f64;
        let expected = find(&self.ranks, module).unwrap_or(self.rank as f64);
        #[expect(clippy::float_cmp, reason = "whole numbers")]
        if expected != rank {
            return Err(format!("its rank is {rank}, the settings say {expected}"));
        }
        let alpha = find(&self.alphas, module).unwrap_or(self.alpha);
        Ok(if self.stabilised { alpha / rank.sqrt() } else { alpha / rank })
    }
}

/// Anything but null, false, nothing.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    }
}

/// Module names and their numbers. PEFT reads the names as regular expressions; those of plain names are the same.
fn read_pattern(value: Option<&Value>) -> Result<BTreeMap<String, f64>, String> {
    let map = match value {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(map)) => map,
        Some(_) => return Err("is not a group of names".into()),
    };
    let mut pattern = BTreeMap::new();
    for (name, number) in map {
        // `^` only says that nothing stands before, and a dot matches itself too.
        let plain = name.trim_start_matches('^').trim_end_matches('$').replace("\\.", ".");
        if plain.contains(['\\', '*', '+', '?', '[', ']', '(', ')', '{', '}', '|', '^', '$']) {
            return Err(format!("`{name}` is a regular expression, which is not supported yet"));
        }
        let number =
            number.as_f64().filter(|n| n.is_finite()).ok_or("has a value that is no number")?;
        pattern.insert(plain, number);
    }
    Ok(pattern)
}

/// The number of the module itself, or of one that its name ends with.
fn find(pattern: &BTreeMap<String, f64>, module: &str) -> Option<f64> {
    let ends = |name: &str| {
        let before = module.strip_suffix(name);
        before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
    };
    pattern.iter().find(|(name, _)| ends(name)).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AdapterSettings> {
        AdapterSettings::parse(text.as_bytes(), Path::new("adapter_config.json"))
    }

    #[test]
    fn scales_follow_the_patterns() {
        let settings = parse(
            r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 4, "layers.1.mlp.up_proj": 2},
                "alpha_pattern": {"^model\\.layers\\.0\\.self_attn\\.q_proj": 3}}"#,
        )
        .unwrap();
        let scale = |module: &str, rank| settings.scale(module, rank);
        assert_eq!(scale("model.layers.0.self_attn.k_proj", 8), Ok(2.0));
        assert_eq!(scale("model.layers.0.self_attn.q_proj", 4), Ok(0.75));
        assert_eq!(scale("model.layers.1.mlp.up_proj", 2), Ok(8.0));
        assert_eq!(scale("model.layers.11.mlp.up_proj", 8), Ok(2.0));
        assert!(scale("model.layers.1.mlp.up_proj", 8).is_err());
        let settings = parse(r#"{"r": 4, "lora_alpha": 8, "use_rslora": true}"#).unwrap();
        assert_eq!(settings.scale("x", 4), Ok(4.0));
    }

    #[test]
    fn other_kinds_are_refused_with_all_reasons() {
        let text = r#"{"peft_type": "LORA", "use_dora": true, "init_lora_weights": "pissa_niter_4", "lora_alpha": 8}"#;
        let told = parse(text).unwrap_err().to_string();
        for word in ["use_dora", "pissa", "`r`"] {
            assert!(told.contains(word), "{told}");
        }
        assert!(parse(r#"{"peft_type": "LOHA", "r": 4, "lora_alpha": 8}"#).is_err());
        assert!(parse(r#"{"r": 4, "lora_alpha": 8, "alpha_pattern": {"q.*": 2}}"#).is_err());
        assert!(parse("[]").is_err());
    }
}
