//! Why a config cannot be used or cannot express a result.

use serde_json::Value;

use crate::error::printable;

/// Why `config.json` cannot be used or cannot express a result.
///
/// Layers are counted from 1 in messages and from 0 in fields named `layer`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigProblem {
    /// A field has a value of the wrong type or range.
    #[error("`{key}` is {found}, expected {expected}")]
    WrongType {
        /// The field, with the sub-config: `text_config.layer_types`.
        key: String,
        /// What it should be, in words.
        expected: &'static str,
        /// What it is, as JSON.
        found: String,
    },
    /// A list has fewer entries than the model has layers.
    #[error("`{key}` has {entries} entries for {layers} layers")]
    TooShort {
        /// The field.
        key: String,
        /// Its length.
        entries: u64,
        /// How many it needs.
        layers: u64,
    },
    /// No layer at all would be left.
    #[error("no layer would be left")]
    NoLayersKept,
    /// A layer was asked for that does not exist.
    #[error("layer {} does not exist, the model has {layers}", layer + 1)]
    NoSuchLayer {
        /// The layer, counted from 0.
        layer: u64,
        /// How many there are.
        layers: u64,
    },
    /// The config format has no words for the chosen layers.
    #[error("layers {} cannot be expressed: `{key}` is {value}, and {reason}", ranges(layers))]
    NotExpressible {
        /// The field that stands in the way.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// The layers asked for, counted from 1.
        layers: Vec<u64>,
        /// Why not.
        reason: String,
    },
    /// The model computes with the layer's index or with the number of layers.
    #[error("layers of `{family}` compute something else in another stack: {reason}")]
    DependsOnDepth {
        /// The family, as `model_type`.
        family: String,
        /// How.
        reason: String,
    },
    /// Tensors outside the layers have a dimension per layer.
    #[error("`{tensors}` have one part a layer and would have to be cut too (`{key}` is {value})")]
    SizedByDepth {
        /// The tensors.
        tensors: &'static str,
        /// The field that sizes them.
        key: String,
        /// Its value, as JSON.
        value: String,
    },
    /// What the config says of experts is not what the tensors have, or it says nothing.
    #[error("`{key}` is {found}, and the tensors have {experts} experts a layer")]
    Experts {
        /// The field that counts them.
        key: String,
        /// Its value, as JSON, or `not set`.
        found: String,
        /// How many the tensors have.
        experts: u64,
    },
    /// The family has no twin of the other kind: dense without experts, or with experts.
    #[error("{reason}")]
    NoTwin {
        /// Why not.
        reason: String,
    },
    /// The model has an encoder and a decoder, whose layers a config counts apart.
    #[error("`{family}` is an encoder-decoder model, only decoders are supported")]
    EncoderDecoder {
        /// The family, as `model_type`.
        family: String,
    },
}

impl ConfigProblem {
    /// What the user can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        let text = match self {
            Self::WrongType { key, expected, .. } => {
                format!("set `{key}` in config.json to {expected}, or download the file again")
            }
            Self::TooShort { key, layers, .. } => {
                format!("give `{key}` one entry for each of the {layers} layers, or remove it")
            }
            Self::NoLayersKept => "choose at least one layer".to_owned(),
            Self::NoSuchLayer { layers, .. } if *layers > 0 => {
                format!("layers are numbered 1 to {layers}")
            }
            Self::NotExpressible { .. } => {
                "choose other layers, or keep the layers in their order".to_owned()
            }
            Self::DependsOnDepth { .. } => {
                "keep the first layers, in order and without gaps, if that serves you".to_owned()
            }
            _ => return None,
        };
        Some(text)
    }
}

/// A JSON value for a message: one line, not too long, nothing a terminal would act on.
pub(super) fn shown(value: &Value) -> String {
    const KEEP: usize = 60;
    match value {
        Value::Array(list) if list.len() > 8 => format!("a list of {} entries", list.len()),
        Value::Object(map) if map.len() > 4 => format!("an object of {} entries", map.len()),
        _ => {
            let text = value.to_string();
            let cut: String = text.chars().take(KEEP).collect();
            let more = if cut.len() < text.len() { "..." } else { "" };
            printable(&format!("{cut}{more}"))
        }
    }
}

/// `1, 3-5, 8`: numbers for people, at most a dozen pieces.
fn ranges(numbers: &[u64]) -> String {
    const SHOWN: usize = 12;
    let mut pieces: Vec<(u64, u64)> = Vec::new();
    for &number in numbers {
        match pieces.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(number) => *end = number,
            _ => pieces.push((number, number)),
        }
    }
    let text: Vec<String> = pieces
        .iter()
        .take(SHOWN)
        .map(|(start, end)| if start == end { start.to_string() } else { format!("{start}-{end}") })
        .collect();
    let more = if pieces.len() > SHOWN { ", ..." } else { "" };
    format!("{}{more}", text.join(", "))
}
