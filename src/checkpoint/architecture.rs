//! Stand-in until the table lands.
use serde_json::{Map, Value};

use super::ConfigProblem;

/// What a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// l
    Layer(u64),
    /// e
    Embedding,
    /// p
    PositionEmbedding,
    /// n
    FinalNorm,
    /// h
    Head,
    /// m
    MultiToken,
    /// o
    Other,
}

/// Anatomy.
#[derive(Clone, Debug)]
pub struct Anatomy {
    /// f
    pub family: String,
    /// p
    pub layer_prefix: String,
    /// n
    pub layers: u64,
}

impl Anatomy {
    /// r
    pub fn resolve<'a>(
        _config: Option<&Map<String, Value>>,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<Self, ConfigProblem> {
        let mut a = Self {
            family: "llama".into(),
            layer_prefix: "model.layers.".into(),
            layers: 0,
        };
        a.layers = names
            .filter_map(|n| a.layer_suffix(n))
            .map(|(i, _)| i + 1)
            .max()
            .unwrap_or(0);
        Ok(a)
    }
    /// r
    pub fn role(&self, name: &str) -> Role {
        if let Some((i, _)) = self.layer_suffix(name) {
            return Role::Layer(i);
        }
        match name {
            "model.embed_tokens.weight" => Role::Embedding,
            "model.norm.weight" => Role::FinalNorm,
            "lm_head.weight" => Role::Head,
            _ => Role::Other,
        }
    }
    /// s
    pub fn layer_suffix<'a>(&self, name: &'a str) -> Option<(u64, &'a str)> {
        let (i, rest) = name.strip_prefix(&self.layer_prefix)?.split_once('.')?;
        Some((i.parse().ok()?, rest))
    }
    /// r
    pub fn renumbered(&self, name: &str, new_index: u64) -> String {
        match self.layer_suffix(name) {
            Some((_, rest)) => format!("{}{new_index}.{rest}", self.layer_prefix),
            None => name.to_owned(),
        }
    }
    /// c
    pub fn config_layers(&self) -> Option<u64> {
        None
    }
}
