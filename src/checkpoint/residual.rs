//! Where a decoder layer adds to the residual stream: the modules that must be zero for the layer to hand on its input.
//!
//! A layer computes `x + attention(norm(x))`, then `x + mlp(norm(x))`, or both at once. Zero weights and biases in the
//! last linear module of each branch make both branches zero, and the layer an identity, whatever else it holds: norms
//! behind a branch (Gemma 2, OLMo 2) have no bias, and what multiplies a branch multiplies zero.

use super::{Checkpoint, Role};
use crate::error::{Error, Result};
use crate::format::{Dtype, TensorEntry};

/// The last modules of the branches of one lineage. A layer has at least one module of each group; `*` is a number.
struct Branches {
    families: &'static [&'static str],
    groups: &'static [&'static [&'static str]],
}

/// The feed-forward outputs of Llama and nearly everything since, dense or with experts.
const MLP: &[&str] = &[
    "mlp.down_proj",
    "mlp.experts.*.down_proj",
    "mlp.experts.down_proj",
    "mlp.shared_expert.down_proj",
    "mlp.shared_experts.down_proj",
    "mlp.shared_mlp.down_proj",
    "block_sparse_moe.experts.*.w2",
];

/// Every lineage whose layers are known to be of this form.
const BRANCHES: &[Branches] = &[
    Branches {
        families: &[
            "llama",
            "mistral",
            "mixtral",
            "ministral",
            "qwen2",
            "qwen2_moe",
            "qwen2_vl",
            "qwen2_vl_text",
            "qwen2_5_vl",
            "qwen2_5_vl_text",
            "qwen3",
            "qwen3_moe",
            "gemma",
            "gemma2",
            "gemma3",
            "gemma3_text",
            "vaultgemma",
            "phi3",
            "phimoe",
            "cohere",
            "cohere2",
            "cohere2_moe",
            "olmo",
            "olmo2",
            "olmo3",
            "olmoe",
            "stablelm",
            "smollm3",
            "deepseek",
            "deepseek_v2",
            "deepseek_v3",
            "kimi_k2",
            "gpt_oss",
            "glm",
            "glm4",
            "glm4_moe",
            "granite",
            "exaone4",
            "exaone_moe",
            "afmoe",
            "seed_oss",
            "ernie4_5",
            "ernie4_5_moe",
            "dots1",
            "hunyuan_v1_dense",
            "hunyuan_v1_moe",
            "minicpm",
            "minicpm3",
        ],
        groups: &[&["self_attn.o_proj"], MLP],
    },
    Branches {
        families: &["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"],
        groups: &[&["self_attn.o_proj", "linear_attn.out_proj"], MLP],
    },
    Branches {
        families: &["granitemoe", "granitemoehybrid"],
        groups: &[
            &["self_attn.o_proj", "mamba.out_proj"],
            &["block_sparse_moe.output_linear", "shared_mlp.output_linear"],
        ],
    },
    Branches {
        families: &["jamba", "bamba"],
        groups: &[
            &["self_attn.o_proj", "mamba.out_proj"],
            &[
                "feed_forward.down_proj",
                "feed_forward.experts.*.down_proj",
                "feed_forward.experts.down_proj",
            ],
        ],
    },
    Branches {
        families: &["lfm2", "lfm2_moe"],
        groups: &[
            &["self_attn.out_proj", "conv.out_proj"],
            &["feed_forward.w2", "feed_forward.experts.*.w2", "feed_forward.experts.down_proj"],
        ],
    },
    Branches { families: &["starcoder2"], groups: &[&["self_attn.o_proj"], &["mlp.c_proj"]] },
    Branches { families: &["phi"], groups: &[&["self_attn.dense"], &["mlp.fc2"]] },
    Branches { families: &["gpt2", "gpt_bigcode"], groups: &[&["attn.c_proj"], &["mlp.c_proj"]] },
    Branches { families: &["gptj"], groups: &[&["attn.out_proj"], &["mlp.fc_out"]] },
    Branches {
        families: &["gpt_neo", "exaone"],
        groups: &[&["attn.attention.out_proj"], &["mlp.c_proj"]],
    },
    Branches { families: &["gpt_neox"], groups: &[&["attention.dense"], &["mlp.dense_4h_to_h"]] },
    Branches {
        families: &["falcon", "RefinedWeb", "RefinedWebModel", "bloom", "chatglm"],
        groups: &[&["self_attention.dense"], &["mlp.dense_4h_to_h"]],
    },
    Branches { families: &["mpt"], groups: &[&["attn.out_proj"], &["ffn.down_proj"]] },
    Branches { families: &["opt"], groups: &[&["self_attn.out_proj"], &["fc2"]] },
    Branches { families: &["internlm2"], groups: &[&["attention.wo"], &["feed_forward.w2"]] },
    Branches { families: &["mamba", "mamba2"], groups: &[&["mixer.out_proj"]] },
];

/// Settings under which the residual stream itself goes through a norm, so that no weight makes a layer an identity.
const NORMED_STREAM: &[(&str, bool)] =
    &[("apply_residual_connection_post_layernorm", true), ("do_layer_norm_before", false)];

/// What of a module a tensor is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Weight or bias: zero bits are zero.
    Values,
    /// Codes of a float format behind a scale: zero bits are zero whatever the scale.
    Codes,
    /// A scale.
    Scale,
    /// Something whose zero is not known.
    Unknown,
}

impl Checkpoint {
    /// Whether a tensor must be zero for its layer to hand on its input.
    pub fn writes_residual(&self, name: &str) -> bool {
        self.residual_part(name).is_some_and(|(_, part)| matches!(part, Part::Values | Part::Codes))
    }

    /// Refuses layers (from 0) that cannot be made to hand on their input: a family whose layers are not known to
    /// be built that way, a branch without an output, codes whose zero is not known.
    pub fn check_silenceable(&self, layers: &[u64]) -> Result<()> {
        let family = &self.anatomy().family;
        let refuse = |what: String, reason: String| Error::Unsupported {
            what,
            reason,
            hint: "`elo-surgery layers --repeat` copies layers as they are".into(),
        };
        let layer_text = "a copy that hands on its input";
        let Some(branches) = self.branches() else {
            let reason = format!(
                "it is not known how layers of the family `{family}` add to the residual stream"
            );
            return Err(refuse(layer_text.to_owned(), reason));
        };
        let normed = |(key, bad): &&(&str, bool)| {
            self.config().and_then(|config| config.get(*key)?.as_bool()) == Some(*bad)
        };
        if let Some((key, value)) = NORMED_STREAM.iter().find(normed) {
            let reason = format!("`{key}` is {value}: the residual stream itself is normed");
            return Err(refuse(layer_text.to_owned(), reason));
        }
        for &layer in layers {
            let mut found = vec![false; branches.groups.len()];
            for name in self.layer_tensors(layer) {
                match self.residual_part(name) {
                    Some((group, Part::Values | Part::Codes)) => found[group] = true,
                    Some((_, Part::Unknown)) => {
                        let reason = "its zero is not known".to_owned();
                        return Err(refuse(format!("tensor `{name}`"), reason));
                    }
                    Some((_, Part::Scale)) | None => {}
                }
            }
            if let Some(group) = found.iter().position(|found| !found) {
                let names = branches.groups[group].join("`, `");
                let reason = format!("there is no `{names}`, which layers of `{family}` end with");
                return Err(refuse(format!("layer {}", layer + 1), reason));
            }
        }
        Ok(())
    }

    fn branches(&self) -> Option<&'static Branches> {
        let family = self.anatomy().family.as_str();
        BRANCHES.iter().find(|row| row.families.contains(&family))
    }

    /// The branch that ends with a tensor's module, and what of the module it is.
    fn residual_part(&self, name: &str) -> Option<(usize, Part)> {
        let Role::Layer(_) = self.anatomy().role(name) else {
            return None;
        };
        let (_, suffix) = self.anatomy().layer_suffix(name)?;
        let groups = self.branches()?.groups;
        let (group, tail) = groups.iter().enumerate().find_map(|(i, modules)| {
            modules.iter().find_map(|module| Some((i, tail_of(suffix, module)?)))
        })?;
        let (_, entry) = self.tensor(name)?;
        Some((group, part_of(tail, entry)))
    }
}

/// What follows a module in a tensor's name: `.weight`, `_bias`, or nothing.
fn tail_of<'a>(suffix: &'a str, module: &str) -> Option<&'a str> {
    let mut rest = suffix;
    for (i, piece) in module.split('*').enumerate() {
        if i > 0 {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            if digits == 0 {
                return None;
            }
            rest = &rest[digits..];
        }
        rest = rest.strip_prefix(piece)?;
    }
    (rest.is_empty() || rest.starts_with(['.', '_'])).then_some(rest)
}

fn part_of(tail: &str, entry: &TensorEntry) -> Part {
    match tail {
        "" | ".weight" | ".bias" | "_bias" if entry.dtype.is_float() => Part::Values,
        // MXFP4: two 4-bit floats a byte.
        "_blocks" if entry.dtype == Dtype::U8 => Part::Codes,
        _ if tail.contains("scale") => Part::Scale,
        _ => Part::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_match_whole_names() {
        assert_eq!(tail_of("mlp.down_proj.weight", "mlp.down_proj"), Some(".weight"));
        assert_eq!(
            tail_of("mlp.experts.12.down_proj.weight", "mlp.experts.*.down_proj"),
            Some(".weight")
        );
        assert_eq!(tail_of("mlp.experts.down_proj", "mlp.experts.down_proj"), Some(""));
        assert_eq!(tail_of("mlp.experts.down_proj_bias", "mlp.experts.down_proj"), Some("_bias"));
        assert_eq!(tail_of("mlp.experts.x.down_proj.weight", "mlp.experts.*.down_proj"), None);
        assert_eq!(tail_of("fc2.weight", "fc"), None);
        assert_eq!(tail_of("self_attn.o_proj.weight", "self_attn.out_proj"), None);
    }

    #[test]
    fn a_family_has_one_row() {
        let mut seen = std::collections::BTreeSet::new();
        for family in BRANCHES.iter().flat_map(|row| row.families) {
            assert!(seen.insert(family), "{family}");
        }
    }
}
