//! Stand-in until the tables land.
use super::Anatomy;
use crate::format::Dtype;
use serde_json::{Map, Value};
/// Why `config.json` cannot be used or cannot express a result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigProblem {
    /// x
    #[error("x")]
    X,
}
impl ConfigProblem {
    pub(crate) fn hint(&self) -> Option<String> {
        None
    }
}
/// k
pub struct Kept {
    /// c
    pub config: Map<String, Value>,
    /// n
    pub notes: Vec<String>,
}
/// k
pub fn keep_layers(
    config: &Map<String, Value>,
    _: &Anatomy,
    _: &[u64],
) -> Result<Kept, ConfigProblem> {
    Ok(Kept {
        config: config.clone(),
        notes: vec![],
    })
}
/// v
pub fn set_vocab_size(_: &mut Map<String, Value>, _: u64) {}
/// v
pub fn set_dtype(_: &mut Map<String, Value>, _: &Dtype) {}
/// v
pub fn vocab_size(_: &Map<String, Value>) -> Option<u64> {
    None
}
/// v
pub fn is_tied(_: &Map<String, Value>) -> Option<bool> {
    None
}
/// v
pub fn quantization(_: &Map<String, Value>) -> Option<String> {
    None
}
