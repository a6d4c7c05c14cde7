//! What a `config.json` says about a decoder of the Llama kind, and every reason why it cannot be trained exactly.
//!
//! Both spellings of transformers are read: 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`).

#![allow(clippy::cast_possible_truncation, reason = "as transformers")]

use std::f64::consts::TAU;

use serde_json::{Map, Value};

use crate::checkpoint::{Checkpoint, quantization};
use crate::format::Dtype;

/// A family of models, by `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

/// How frequencies of the rotary embedding are stretched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum RopeScaling {
    None,
    /// All by one factor.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: low frequencies by a factor, a smooth passage to high ones, which stay.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
}

/// Sizes and switches of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::trainer) struct Design {
    pub(super) family: Family,
    pub(super) hidden: usize,
    pub(super) inner: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) key_heads: usize,
    pub(super) head_dim: usize,
    /// Rows of the embedding.
    pub(in crate::trainer) vocabulary: usize,
    pub(super) epsilon: f32,
    pub(super) theta: f64,
    pub(super) scaling: RopeScaling,
    pub(super) tied: bool,
    /// Biases on queries, keys and values.
    pub(super) qkv_bias: bool,
    /// Bias on the attention's output.
    pub(super) output_bias: bool,
    /// Biases in the feed-forward part.
    pub(super) inner_bias: bool,
    /// Keys a query sees, where that is limited: exact only while no sequence is longer.
    pub(in crate::trainer) window: Option<usize>,
    /// Dropout of attention probabilities in training.
    pub(in crate::trainer) dropout: f64,
}

/// Reads fields and collects what is wrong with them.
struct Reader<'a> {
    config: &'a Map<String, Value>,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.config.get(key).filter(|v| !v.is_null())
    }

    fn complain(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    fn size(&mut self, key: &str, default: Option<usize>) -> usize {
        let found = match self.get(key) {
            Some(value) => value.as_u64().and_then(|n| usize::try_from(n).ok()),
            None => default,
        };
        found.filter(|n| (1..=1 << 32).contains(n)).unwrap_or_else(|| {
            self.complain(format!("`{key}` is missing or not a positive integer"));
            1
        })
    }

    fn number(&mut self, map: &Map<String, Value>, key: &str, default: Option<f64>) -> f64 {
        let found = match map.get(key).filter(|v| !v.is_null()) {
            Some(value) => value.as_f64(),
            None => default,
        };
        found.filter(|n| n.is_finite()).unwrap_or_else(|| {
            self.complain(format!("`{key}` is missing or not a number"));
            1.0
        })
    }

    fn flag(&self, key: &str) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(false)
    }
}

impl Design {
    /// Reads the config of a model and compares its tensors with it. All reasons against it at once.
    pub(in crate::trainer) fn of(model: &Checkpoint) -> Result<Self, Vec<String>> {
        let Some(config) = model.config() else {
            return Err(vec!["it has no `config.json`".to_owned()]);
        };
        let design = Self::from_config(config)?;
        let problems = design.tensor_problems(model);
        if problems.is_empty() { Ok(design) } else { Err(problems) }
    }

    /// Reads a config.
    fn from_config(config: &Map<String, Value>) -> Result<Self, Vec<String>> {
        let mut r = Reader { config, problems: Vec::new() };
        let family = family(&mut r);
        if let Some(method) = quantization(config) {
            r.complain(format!("its weights are quantised (`{method}`)"));
        }
        let act = r.get("hidden_act").map_or("silu", |v| v.as_str().unwrap_or("?"));
        if !matches!(act, "silu" | "swish") {
            r.complain(format!("`hidden_act` is `{act}`; only `silu` is known"));
        }
        let partial = r.get("partial_rotary_factor").and_then(Value::as_f64).unwrap_or(1.0);
        if (partial - 1.0).abs() > f64::EPSILON {
            r.complain(format!("`partial_rotary_factor` is {partial}: rotary embedding of a part"));
        }
        let (hidden, heads) = (r.size("hidden_size", None), r.size("num_attention_heads", None));
        let head_dim = r.size("head_dim", Some((hidden / heads).max(1)));
        if head_dim % 2 == 1 {
            r.complain(format!("`head_dim` is {head_dim}, an odd number"));
        }
        let key_heads = r.size("num_key_value_heads", Some(heads));
        if heads % key_heads != 0 {
            r.complain(format!(
                "{heads} attention heads do not share {key_heads} key heads evenly"
            ));
        }
        let (theta, scaling) = rope(&mut r);
        let layers = r.size("num_hidden_layers", None);
        let bias = r.flag("attention_bias");
        let design = Self {
            family,
            hidden,
            inner: r.size("intermediate_size", None),
            layers,
            heads,
            key_heads,
            head_dim,
            vocabulary: r.size("vocab_size", None),
            epsilon: r.number(config, "rms_norm_eps", Some(1e-6)) as f32,
            theta,
            scaling,
            tied: r.flag("tie_word_embeddings"),
            qkv_bias: family == Family::Qwen2 || bias && family != Family::Mistral,
            output_bias: bias && matches!(family, Family::Llama | Family::Qwen3),
            inner_bias: family == Family::Llama && r.flag("mlp_bias"),
            window: window(&r, family, layers),
            dropout: r.number(config, "attention_dropout", Some(0.0)),
        };
        if r.problems.is_empty() { Ok(design) } else { Err(r.problems) }
    }

    /// Name, rows and columns (`None` for vectors: rows is their length) of every tensor the model must have.
    fn expected(&self) -> Vec<(String, usize, Option<usize>)> {
        let (h, wide) = (self.hidden, self.heads * self.head_dim);
        let narrow = self.key_heads * self.head_dim;
        let mut all = vec![("model.embed_tokens.weight".to_owned(), self.vocabulary, Some(h))];
        for layer in 0..self.layers {
            let mut add = |name: &str, rows, cols| {
                all.push((format!("model.layers.{layer}.{name}"), rows, cols));
            };
            add("input_layernorm.weight", h, None);
            for (name, rows) in [("q", wide), ("k", narrow), ("v", narrow)] {
                add(&format!("self_attn.{name}_proj.weight"), rows, Some(h));
                if self.qkv_bias {
                    add(&format!("self_attn.{name}_proj.bias"), rows, None);
                }
            }
            if self.family == Family::Qwen3 {
                add("self_attn.q_norm.weight", self.head_dim, None);
                add("self_attn.k_norm.weight", self.head_dim, None);
            }
            add("self_attn.o_proj.weight", h, Some(wide));
            if self.output_bias {
                add("self_attn.o_proj.bias", h, None);
            }
            add("post_attention_layernorm.weight", h, None);
            let sizes = [("gate", self.inner, h), ("up", self.inner, h), ("down", h, self.inner)];
            for (name, rows, cols) in sizes {
                add(&format!("mlp.{name}_proj.weight"), rows, Some(cols));
                if self.inner_bias {
                    add(&format!("mlp.{name}_proj.bias"), rows, None);
                }
            }
        }
        all.push(("model.norm.weight".to_owned(), h, None));
        if !self.tied {
            all.push(("lm_head.weight".to_owned(), self.vocabulary, Some(h)));
        }
        all
    }

    fn tensor_problems(&self, model: &Checkpoint) -> Vec<String> {
        let expected = self.expected();
        let mut problems = Vec::new();
        for (name, rows, cols) in &expected {
            let want: Vec<u64> =
                [Some(*rows), *cols].into_iter().flatten().map(|n| n as u64).collect();
            match model.tensor(name) {
                None => problems.push(format!("tensor `{name}` is missing")),
                Some((_, entry)) if entry.shape.0 != want => problems.push(format!(
                    "tensor `{name}` has shape {}, the config says {}",
                    entry.shape,
                    crate::format::Shape(want)
                )),
                Some((_, entry))
                    if !matches!(entry.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) =>
                {
                    let dtype = &entry.dtype;
                    problems
                        .push(format!("tensor `{name}` is {dtype}; known are F32, BF16 and F16"));
                }
                Some(_) => {}
            }
        }
        let known: std::collections::HashSet<&str> =
            expected.iter().map(|(name, ..)| name.as_str()).collect();
        for (name, _) in model.tensors() {
            if self.tied && name == "lm_head.weight" {
                problems
                    .push("`tie_word_embeddings` is true, yet there is a `lm_head.weight`".into());
            } else if !known.contains(name) && !name.ends_with(".rotary_emb.inv_freq") {
                problems.push(format!("tensor `{name}` has no place in this architecture"));
            }
        }
        problems
    }

    /// Angles per position, `[head_dim / 2]`, as `modeling_rope_utils.py` computes them.
    pub(super) fn frequencies(&self) -> Vec<f32> {
        (0..self.head_dim / 2)
            .map(|i| {
                let plain = 1.0 / self.theta.powf(2.0 * i as f64 / self.head_dim as f64);
                scaled(plain, self.scaling) as f32
            })
            .collect()
    }

    /// A small Llama, for tests.
    #[cfg(test)]
    pub(super) fn sample() -> Self {
        Self {
            family: Family::Llama,
            hidden: 12,
            inner: 10,
            layers: 2,
            heads: 4,
            key_heads: 2,
            head_dim: 4,
            vocabulary: 11,
            epsilon: 1e-5,
            theta: 100.0,
            scaling: RopeScaling::None,
            tied: false,
            qkv_bias: false,
            output_bias: false,
            inner_bias: false,
            window: None,
            dropout: 0.0,
        }
    }

    /// Random weights for this design, all trainable.
    #[cfg(test)]
    pub(super) fn random_weights(&self) -> super::Weights {
        let mut weights = super::Weights::default();
        for (i, (name, rows, cols)) in self.expected().into_iter().enumerate() {
            let noise = super::testing::numbers(rows * cols.unwrap_or(1), i as u64 + 1);
            let values = match cols {
                Some(_) => noise.iter().map(|x| 0.5 * x).collect(),
                None => noise.iter().map(|x| 1.0 + 0.2 * x).collect(),
            };
            let (is_matrix, trainable) = (cols.is_some(), true);
            let (rows, cols) = cols.map_or((1, rows), |cols| (rows, cols));
            weights.push(super::weights::Weight { name, rows, cols, is_matrix, trainable, values });
        }
        weights
    }
}

fn family(r: &mut Reader) -> Family {
    let kinds = [
        ("llama", "LlamaForCausalLM", Family::Llama),
        ("mistral", "MistralForCausalLM", Family::Mistral),
        ("qwen2", "Qwen2ForCausalLM", Family::Qwen2),
        ("qwen3", "Qwen3ForCausalLM", Family::Qwen3),
    ];
    let kind = r.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let Some((_, class, family)) = kinds.into_iter().find(|k| k.0 == kind) else {
        r.complain(format!("`model_type` is `{kind}`; known are llama, mistral, qwen2 and qwen3"));
        return Family::Llama;
    };
    let classes = r.get("architectures").and_then(Value::as_array);
    let named = classes.and_then(|all| all.first()?.as_str()).unwrap_or(class).to_owned();
    if named != class {
        r.complain(format!("`architectures` names `{named}`; known for `{kind}` is `{class}`"));
    }
    family
}

fn rope(r: &mut Reader) -> (f64, RopeScaling) {
    let nothing = Map::new();
    let new = r.get("rope_parameters").and_then(Value::as_object);
    let old = r.get("rope_scaling").and_then(Value::as_object);
    let map = new.or(old).unwrap_or(&nothing);
    let top = r.number(r.config, "rope_theta", Some(10_000.0));
    let theta = r.number(map, "rope_theta", Some(top));
    if theta <= 0.0 {
        r.complain("`rope_theta` is not positive");
    }
    if map.values().any(Value::is_object) {
        r.complain("`rope_parameters` differ between kinds of layers");
    }
    let partial = r.number(map, "partial_rotary_factor", Some(1.0));
    if (partial - 1.0).abs() > f64::EPSILON {
        r.complain(format!("`partial_rotary_factor` is {partial}: rotary embedding of a part"));
    }
    let kind = map.get("rope_type").or_else(|| map.get("type")).and_then(Value::as_str);
    let scaling = match kind.unwrap_or("default") {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: r.number(map, "factor", None) },
        "llama3" => RopeScaling::Llama3 {
            factor: r.number(map, "factor", None),
            low: r.number(map, "low_freq_factor", None),
            high: r.number(map, "high_freq_factor", None),
            original: r.number(map, "original_max_position_embeddings", None),
        },
        other => {
            r.complain(format!("rotary scaling `{other}`; known are default, linear and llama3"));
            RopeScaling::None
        }
    };
    (theta, scaling)
}

fn scaled(frequency: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low, high, original } => {
            let wavelength = TAU / frequency;
            if wavelength < original / high {
                frequency
            } else if wavelength > original / low {
                frequency / factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

/// How many keys a query of some layer sees at most, if a layer limits them.
fn window(r: &Reader, family: Family, layers: usize) -> Option<usize> {
    let width = r.get("sliding_window")?.as_u64().and_then(|n| usize::try_from(n).ok())?;
    let slides = match family {
        Family::Llama => false,
        Family::Mistral => true,
        Family::Qwen2 | Family::Qwen3 => {
            let kinds = r.get("layer_types").and_then(Value::as_array);
            let from = r.get("max_window_layers").and_then(Value::as_u64).unwrap_or(28);
            let listed =
                kinds.map(|k| k.iter().any(|kind| kind.as_str() == Some("sliding_attention")));
            r.flag("use_sliding_window") && listed.unwrap_or((from as usize) < layers)
        }
    };
    slides.then_some(width)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(changes: &Value) -> Result<Design, Vec<String>> {
        let mut config = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16,
            "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 24, "vocab_size": 9,
        });
        let map = config.as_object_mut().unwrap();
        map.extend(changes.as_object().unwrap().clone());
        Design::from_config(map)
    }

    #[test]
    fn both_spellings_of_rope_say_the_same() {
        let old =
            read(&json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}));
        let new = read(
            &json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}}),
        );
        assert_eq!(old, new);
        let old = old.unwrap();
        assert_eq!((old.theta, old.scaling), (5e5, RopeScaling::Linear { factor: 4.0 }));
        assert_eq!(old.frequencies(), [0.25, (0.25 / 5e5_f64.sqrt()) as f32]);
    }

    #[test]
    fn llama3_scaling_leaves_high_frequencies() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
        assert_eq!(scaled(1.0, scaling), 1.0);
        assert_eq!(scaled(1e-4, scaling), 1e-4 / 8.0);
        let between = scaled(TAU / 4096.0, scaling) / (TAU / 4096.0);
        assert!((between - (2.0 / 3.0 / 8.0 + 1.0 / 3.0)).abs() < 1e-12);
    }

    #[test]
    fn what_would_be_inexact_is_refused_with_all_reasons() {
        let refused = [
            (json!({"hidden_act": "gelu"}), "hidden_act"),
            (json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}), "yarn"),
            (json!({"model_type": "mixtral"}), "mixtral"),
            (json!({"architectures": ["LlamaForSequenceClassification"]}), "Sequence"),
            (json!({"quantization_config": {"quant_method": "fp8"}}), "fp8"),
            (json!({"partial_rotary_factor": 0.5}), "part"),
            (json!({"num_key_value_heads": 3}), "evenly"),
            (json!({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}), "kinds"),
        ];
        for (change, word) in &refused {
            let problems = read(change).unwrap_err();
            assert!(problems.len() == 1 && problems[0].contains(word), "{change}: {problems:?}");
        }
        let mut all = Map::new();
        refused[..2].iter().for_each(|(c, _)| all.extend(c.as_object().unwrap().clone()));
        assert_eq!(read(&Value::Object(all)).unwrap_err().len(), 2);
    }

    #[test]
    fn a_window_counts_where_the_family_uses_it() {
        let window = |changes: Value| read(&changes).unwrap().window;
        assert_eq!(window(json!({"sliding_window": 8})), None);
        let mistral = json!({"model_type": "mistral", "architectures": null, "sliding_window": 8});
        assert_eq!(window(mistral), Some(8));
        let qwen = |on: bool, from: u64| {
            json!({"model_type": "qwen2", "architectures": null, "sliding_window": 8,
                   "use_sliding_window": on, "max_window_layers": from})
        };
        assert_eq!(
            [window(qwen(false, 0)), window(qwen(true, 2)), window(qwen(true, 1))],
            [None, None, Some(8)]
        );
    }
}
