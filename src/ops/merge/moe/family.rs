//! The families with experts that dense models can become, and what each calls its parts.

use super::config::MoeConfig;
use crate::checkpoint::{Checkpoint, ExpertLayout, MoeTwin};

/// A family of models with experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Family {
    /// What mergekit calls it; `architecture` is the beginning of it.
    pub(super) name: &'static str,
    pub(super) twin: MoeTwin,
    /// The `model_type`s that can become it.
    inputs: &'static [&'static str],
    /// How many shared experts it takes, from and to.
    shared: (usize, usize),
    /// The block of routed experts where each has tensors of its own.
    block: &'static str,
    /// Gate, up and down projection of such an expert.
    matrices: [&'static str; 3],
    /// What stands before a shared expert's projections.
    pub(super) shared_prefix: &'static str,
    /// Whether the shared expert has a gate.
    pub(super) gated: bool,
    /// Tensors of a layer besides the norms, the projections of attention and the feed-forward part.
    extra: &'static [&'static str],
    /// Whether query, key and value must have biases.
    pub(super) wants_bias: bool,
    /// Whether transformers knows the fused layout of it.
    pub(super) fuses: bool,
}

const BIASES: &[&str] =
    &["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"];

/// In the order in which they are tried.
pub(super) const FAMILIES: [Family; 4] = [
    Family {
        name: "Mixtral",
        twin: MoeTwin::Mixtral,
        inputs: &["llama", "mistral"],
        shared: (0, 0),
        block: "block_sparse_moe",
        matrices: ["w1", "w3", "w2"],
        shared_prefix: "",
        gated: false,
        extra: &[],
        wants_bias: false,
        fuses: true,
    },
    Family {
        name: "DeepSeek MoE",
        twin: MoeTwin::DeepSeek,
        inputs: &["llama", "mistral"],
        shared: (0, 1),
        block: "mlp",
        matrices: PROJECTIONS,
        shared_prefix: "mlp.shared_experts",
        gated: false,
        extra: &[],
        wants_bias: false,
        fuses: false,
    },
    Family {
        name: "Qwen MoE",
        twin: MoeTwin::Qwen2,
        inputs: &["llama", "mistral", "qwen2"],
        shared: (1, 1),
        block: "mlp",
        matrices: PROJECTIONS,
        shared_prefix: "mlp.shared_expert",
        gated: true,
        extra: BIASES,
        wants_bias: true,
        fuses: true,
    },
    Family {
        name: "Qwen3 MoE",
        twin: MoeTwin::Qwen3,
        inputs: &["qwen3"],
        shared: (0, 0),
        block: "mlp",
        matrices: PROJECTIONS,
        shared_prefix: "",
        gated: false,
        extra: &["self_attn.q_norm.weight", "self_attn.k_norm.weight"],
        wants_bias: false,
        fuses: true,
    },
];

/// The projections of a dense model's feed-forward part: gate, up, down.
pub(super) const PROJECTIONS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// What every family has in a layer besides its feed-forward part.
const COMMON: &[&str] = &[
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
];

impl Family {
    /// The first family that the models and the configuration fit, or why none does.
    pub(super) fn choose(config: &MoeConfig, base: &Checkpoint) -> Result<Self, Vec<String>> {
        let input = base.anatomy().family.as_str();
        let mut reasons = Vec::new();
        let wanted = config.architecture.as_deref().unwrap_or("").to_lowercase();
        for family in FAMILIES.iter().filter(|f| f.name.to_lowercase().starts_with(&wanted)) {
            match family.refuses(config, input) {
                None => return Ok(*family),
                Some(reason) => reasons.push(format!("{}: {reason}", family.name)),
            }
        }
        if reasons.is_empty() {
            let names = FAMILIES.map(|family| family.name).join(", ");
            reasons.push(format!("architecture: there is no `{wanted}` (there are {names})"));
        }
        Err(reasons)
    }

    fn refuses(&self, config: &MoeConfig, input: &str) -> Option<String> {
        if !self.inputs.contains(&input) {
            return Some(format!("made from {}, not from `{input}`", self.inputs.join(", ")));
        }
        let shared = config.shared.len();
        let (least, most) = self.shared;
        if shared < least {
            return Some(format!("wants {least} shared expert"));
        }
        if shared > most {
            return Some(match most {
                0 => "has no shared experts".to_owned(),
                _ => format!("has at most {most} shared expert"),
            });
        }
        let routed = !config.prompts().is_empty();
        let prompts = config.shared.iter().any(|expert| !expert.positive.is_empty());
        match (self.gated, shared > 0 && routed) {
            (true, true) if !prompts => {
                Some("gates its shared expert, which needs `positive_prompts`".to_owned())
            }
            (false, true) if prompts => {
                Some("does not gate its shared expert, which has prompts".to_owned())
            }
            _ => None,
        }
    }

    /// An expert's projection, by its number among [`PROJECTIONS`].
    pub(super) fn expert(&self, expert: usize, projection: usize) -> String {
        format!("{}.experts.{expert}.{}.weight", self.block, self.matrices[projection])
    }

    /// The router's matrix.
    pub(super) fn router(&self, layout: ExpertLayout) -> String {
        match layout {
            ExpertLayout::PerExpert => format!("{}.gate.weight", self.block),
            ExpertLayout::Fused => "mlp.gate.weight".to_owned(),
        }
    }

    /// Whether a tensor of a dense layer, other than of its feed-forward part, belongs into one of this family.
    pub(super) fn takes(&self, suffix: &str) -> bool {
        COMMON.contains(&suffix)
            || self.extra.contains(&suffix)
            || (self.twin != MoeTwin::Mixtral
                && suffix.ends_with("_proj.bias")
                && self.attention_bias(suffix))
    }

    /// DeepSeek's and Qwen3's attention take biases where their config says so.
    fn attention_bias(&self, suffix: &str) -> bool {
        matches!(self.twin, MoeTwin::DeepSeek | MoeTwin::Qwen3) && suffix.starts_with("self_attn.")
    }
}
