//! The dimensions of a decoder that its cost depends on.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::checkpoint::{Checkpoint, Role};

/// Dimensions and parameters of a decoder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// `model_type` of its config.
    pub family: String,
    /// Decoder layers.
    pub layers: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Width of the MLP; of one expert where there are several.
    pub intermediate: u64,
    /// Attention heads.
    pub heads: u64,
    /// Heads of keys and values.
    pub kv_heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// Rows of the embedding.
    pub vocab: u64,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// All parameters.
    pub parameters: u64,
    /// Parameters of one decoder layer; the mean where they differ.
    pub layer_parameters: u64,
    /// Those of a layer that one token meets: fewer where a router chooses experts.
    pub active_layer_parameters: u64,
    /// Parameters of the embedding; the head has as many where it is not the embedding.
    pub embedding_parameters: u64,
}

impl Shape {
    /// Reads headers and config. `None` where there is no decoder whose dimensions can be told.
    pub fn of(checkpoint: &Checkpoint) -> Option<Self> {
        let config = checkpoint.config()?;
        let scope = innermost(config);
        let number = |keys: &[&str]| {
            let found = keys.iter().find_map(|key| scope.get(*key)?.as_u64());
            found.filter(|value| *value > 0)
        };
        let anatomy = checkpoint.anatomy();
        let (mut parameters, mut in_layers, mut in_experts, mut embedding) = (0, 0, 0, None);
        for (name, tensor) in checkpoint.names_in_file_order().map(|(_, t)| (&t.name, t)) {
            let elements = tensor.shape.elements()?;
            parameters += elements;
            match anatomy.role(name) {
                Role::Layer(_) => {
                    in_layers += elements;
                    if name.contains(".experts.") {
                        in_experts += elements;
                    }
                }
                Role::Embedding => embedding = Some(&tensor.shape.0),
                _ => {}
            }
        }
        let (layers, embedding) = (checkpoint.layers(), embedding?);
        let [vocab, columns] = embedding[..] else {
            return None;
        };
        if layers == 0 {
            return None;
        }
        let hidden = number(&["hidden_size", "n_embd", "d_model"]).unwrap_or(columns);
        let heads = number(&["num_attention_heads", "n_head"])?;
        let experts = number(&["num_local_experts", "num_experts", "n_routed_experts"]);
        let asked = number(&["num_experts_per_tok", "num_experts_per_token", "top_k_experts"]);
        let idle = match (experts, asked) {
            (Some(experts), Some(asked)) if asked < experts => {
                in_experts - in_experts / experts * asked
            }
            _ => 0,
        };
        Some(Self {
            family: anatomy.family.clone(),
            layers,
            hidden,
            intermediate: number(&[
                "moe_intermediate_size",
                "intermediate_size",
                "ffn_dim",
                "n_inner",
            ])
            .unwrap_or(4 * hidden),
            heads,
            kv_heads: number(&["num_key_value_heads", "num_kv_heads"]).unwrap_or(heads),
            head_dim: number(&["head_dim"]).unwrap_or(hidden / heads),
            vocab,
            tied: checkpoint.is_tied(),
            parameters,
            layer_parameters: in_layers / layers,
            active_layer_parameters: (in_layers - idle) / layers,
            embedding_parameters: vocab * columns,
        })
    }

    /// The same model with another number of layers: what is left when the others are taken out.
    #[must_use]
    pub fn with_layers(&self, layers: u64) -> Self {
        let outside = self.parameters.saturating_sub(self.layers * self.layer_parameters);
        Self { layers, parameters: outside + layers * self.layer_parameters, ..self.clone() }
    }

    /// Bytes of its weights at so many bytes each.
    pub fn weight_bytes(&self, each: u64) -> u64 {
        self.parameters * each
    }
}

/// The config of the text model: of a vision-language model, the nested one.
fn innermost(config: &Map<String, Value>) -> &Map<String, Value> {
    let nested = ["text_config", "llm_config", "language_config"];
    nested.iter().find_map(|key| config.get(*key)?.as_object()).unwrap_or(config)
}
