//! What `config.json` says of the layers, and how it reads once some of them are gone.
//!
//! Pure functions on the JSON object: key order and the text of numbers stay as they are, and only
//! what must change changes. [`fields`] lists what is cut entry by entry; [`cycles`], [`rules`] and
//! [`experts`] what follows a rule, often one hidden in a model class; [`depth`] what depends on the
//! number of layers. Vision and audio sub-configs are never touched.

mod access;
mod cycles;
mod depth;
mod experts;
mod fields;
mod moe;
mod problem;
mod rules;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

use super::architecture::{Anatomy, COUNT_KEYS};
pub(super) use access::{Scope, text_scopes, whole_number};
pub use access::{is_tied, quantization, set_dtype, set_tied, set_vocab_size, vocab_size};
pub(super) use access::{quantization_settings, remove_quantization, value_dtype};
pub use moe::{MoeTwin, densified, set_experts, sparsified};
pub use problem::ConfigProblem;
use problem::shown;

/// A config for some of the layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// The new `config.json`.
    pub config: Map<String, Value>,
    /// What was decided, one sentence each, for the user.
    pub notes: Vec<String>,
    /// Whether multi-token-prediction tensors still belong to the model: only when every layer was
    /// kept in order. Otherwise the config no longer names them and they must be left out.
    pub multi_token: bool,
}

/// The config of the model that has only the layers `kept`: old indices from 0, in their new order.
///
/// Cuts and renumbers every per-layer field, at the top level and in nested text configs. Patterns a
/// model class derives from the layer index are written out as lists. Keeping all layers in order
/// returns the config unchanged.
///
/// Fails when the config cannot express the result for the family, or has fields of the wrong type.
pub fn keep_layers(
    config: &Map<String, Value>,
    anatomy: &Anatomy,
    kept: &[u64],
) -> Result<Kept, ConfigProblem> {
    let layers = anatomy.config_layers().unwrap_or(anatomy.layers);
    let limit = if anatomy.layers > 0 { anatomy.layers } else { layers };
    if kept.is_empty() {
        return Err(ConfigProblem::NoLayersKept);
    }
    if let Some(&layer) = kept.iter().find(|&&layer| layer >= limit) {
        return Err(ConfigProblem::NoSuchLayer { layer, layers: limit });
    }
    if kept.iter().copied().eq(0..layers) {
        return Ok(Kept { config: config.clone(), notes: Vec::new(), multi_token: true });
    }
    if config.get("is_encoder_decoder") == Some(&Value::Bool(true)) {
        return Err(ConfigProblem::EncoderDecoder { family: anatomy.family.clone() });
    }
    let mut result = Kept { config: config.clone(), notes: Vec::new(), multi_token: false };
    let scopes = text_scopes(config);
    let stack = stack_scope(config, anatomy, &scopes);
    for scope in &scopes {
        let Some(old) = scope.get(config) else {
            continue;
        };
        let mut cut = Cut {
            old,
            new: old.clone(),
            scope,
            // Rules of the class apply only where the stack itself is described.
            family: if *scope == stack { &anatomy.family } else { "" },
            layers,
            kept,
            notes: &mut result.notes,
        };
        cut.apply(anatomy)?;
        let new = cut.new;
        scope.replace(&mut result.config, new);
    }
    Ok(result)
}

/// The scope that describes the decoder stack: where the layers are counted, else the innermost.
fn stack_scope(config: &Map<String, Value>, anatomy: &Anatomy, scopes: &[Scope]) -> Scope {
    let counted = scopes
        .iter()
        .rev()
        .find(|scope| COUNT_KEYS.iter().any(|word| Some(scope.key(word)) == anatomy.count_key));
    let innermost = scopes.iter().rev().find(|scope| scope.get(config).is_some());
    counted.or(innermost).cloned().unwrap_or_default()
}

/// One scope of the config at work: rules read `old` and write `new`.
struct Cut<'a> {
    old: &'a Map<String, Value>,
    new: Map<String, Value>,
    scope: &'a Scope,
    family: &'a str,
    layers: u64,
    kept: &'a [u64],
    notes: &'a mut Vec<String>,
}

impl Cut<'_> {
    fn apply(&mut self, anatomy: &Anatomy) -> Result<(), ConfigProblem> {
        depth::check(self)?;
        fields::cut(self)?;
        rules::translate(self)?;
        depth::rescale(self)?;
        depth::drop_multi_token(self, anatomy)?;
        fields::rename_modules(self, anatomy);
        self.count(anatomy.count_word);
        Ok(())
    }

    /// Writes the new number of layers over every key that counts them.
    fn count(&mut self, word: &str) {
        let kept = Value::from(self.kept.len());
        let mut written = false;
        for key in COUNT_KEYS {
            if self.has(key) {
                self.new.insert((*key).to_owned(), kept.clone());
                written = true;
            }
        }
        if !written && !self.family.is_empty() {
            self.new.insert(word.to_owned(), kept);
        }
    }

    /// Whether the old config has a value other than null for the key.
    fn has(&self, key: &str) -> bool {
        self.old.get(key).is_some_and(|value| !value.is_null())
    }

    /// Whether the new config has a list with entries under the key.
    fn has_list(&self, key: &str) -> bool {
        self.new.get(key).and_then(Value::as_array).is_some_and(|list| !list.is_empty())
    }

    fn is_family(&self, families: &[&str]) -> bool {
        families.contains(&self.family)
    }

    fn number(&self, key: &str) -> Result<Option<u64>, ConfigProblem> {
        whole_number(self.old, key, self.scope)
    }

    /// A period: a whole number above zero.
    fn period(&self, key: &str) -> Result<Option<u64>, ConfigProblem> {
        match self.number(key)? {
            Some(0) => Err(self.wrong(key, "a whole number above zero")),
            other => Ok(other),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, ConfigProblem> {
        match self.old.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.new.insert(key.to_owned(), value.into());
    }

    /// The new positions of the kept layers for which `test` holds on the old index.
    fn positions(&self, test: impl Fn(u64) -> bool) -> Vec<u64> {
        (0..).zip(self.kept).filter(|(_, old)| test(**old)).map(|(new, _)| new).collect()
    }

    /// `test` on the old index of each kept layer, in the new order.
    fn flags(&self, test: impl Fn(u64) -> bool) -> Vec<bool> {
        self.kept.iter().map(|old| test(*old)).collect()
    }

    /// Whether the kept layers keep their numbers: the first layers of the stack, in order.
    fn keeps_numbers(&self) -> bool {
        (0..).zip(self.kept).all(|(new, old)| new == *old)
    }

    fn note(&mut self, key: &str, text: impl AsRef<str>) {
        self.notes.push(format!("`{}`: {}", self.scope.key(key), text.as_ref()));
    }

    fn wrong(&self, key: &str, expected: &'static str) -> ConfigProblem {
        ConfigProblem::WrongType {
            key: self.scope.key(key),
            expected,
            found: shown(self.old.get(key).unwrap_or(&Value::Null)),
        }
    }

    fn refuse(&self, key: &str, reason: impl Into<String>) -> ConfigProblem {
        ConfigProblem::NotExpressible {
            key: self.scope.key(key),
            value: self.old.get(key).map_or("not set".to_owned(), shown),
            layers: self.kept.iter().map(|layer| layer + 1).collect(),
            reason: reason.into(),
        }
    }
}
