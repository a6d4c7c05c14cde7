//! Reading and setting single values of a config, wherever the text model's settings are nested.

use serde_json::{Map, Value};

use super::problem::{ConfigProblem, shown};
use crate::format::Dtype;

/// Sub-configs that describe the text model. Anything else nested is another model's business.
const TEXT_CONFIGS: &[&str] = &["text_config", "llm_config", "language_config", "thinker_config"];

/// How deep text configs nest: `thinker_config.text_config`.
const DEEPEST: usize = 3;

/// The path of a sub-config; empty for the config itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::checkpoint) struct Scope(Vec<&'static str>);

impl Scope {
    /// The sub-config, where it exists and is an object.
    pub(in crate::checkpoint) fn get<'a>(
        &self,
        config: &'a Map<String, Value>,
    ) -> Option<&'a Map<String, Value>> {
        self.0.iter().try_fold(config, |map, key| map.get(*key)?.as_object())
    }

    fn get_mut<'a>(
        &self,
        config: &'a mut Map<String, Value>,
    ) -> Option<&'a mut Map<String, Value>> {
        self.0.iter().try_fold(config, |map, key| map.get_mut(*key)?.as_object_mut())
    }

    /// Puts a changed scope back. Deeper text configs stay those of `config`.
    pub(super) fn replace(&self, config: &mut Map<String, Value>, new: Map<String, Value>) {
        if let Some(place) = self.get_mut(config) {
            *place = new;
        }
    }

    /// The dotted name of a field here: `text_config.layer_types`.
    pub(in crate::checkpoint) fn key(&self, field: &str) -> String {
        let mut path = self.0.clone();
        path.push(field);
        path.join(".")
    }
}

/// The config itself, then every text config below it, outer before inner.
pub(in crate::checkpoint) fn text_scopes(config: &Map<String, Value>) -> Vec<Scope> {
    let mut scopes = vec![Scope::default()];
    let mut next = 0;
    while let Some(scope) = scopes.get(next).cloned() {
        next += 1;
        for key in TEXT_CONFIGS {
            let mut inner = scope.clone();
            inner.0.push(key);
            if inner.0.len() <= DEEPEST && inner.get(config).is_some() {
                scopes.push(inner);
            }
        }
    }
    scopes
}

/// A count: null and absent are `None`, anything but a whole number from 0 is an error.
pub(in crate::checkpoint) fn whole_number(
    map: &Map<String, Value>,
    key: &str,
    scope: &Scope,
) -> Result<Option<u64>, ConfigProblem> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| ConfigProblem::WrongType {
            key: scope.key(key),
            expected: "a whole number",
            found: shown(value),
        }),
    }
}

/// The first answer from the innermost text config outwards.
fn innermost<T>(
    config: &Map<String, Value>,
    read: impl Fn(&Map<String, Value>) -> Option<T>,
) -> Option<T> {
    text_scopes(config).iter().rev().find_map(|scope| read(scope.get(config)?))
}

/// The vocabulary size of the text model.
pub fn vocab_size(config: &Map<String, Value>) -> Option<u64> {
    innermost(config, |map| map.get("vocab_size")?.as_u64())
}

/// Sets `vocab_size` wherever the config has it, nested text configs included; adds it at the top
/// level if there is none.
pub fn set_vocab_size(config: &mut Map<String, Value>, size: u64) {
    let mut written = false;
    for scope in text_scopes(config) {
        if let Some(value) = scope.get_mut(config).and_then(|map| map.get_mut("vocab_size")) {
            *value = size.into();
            written = true;
        }
    }
    if !written {
        config.insert("vocab_size".to_owned(), size.into());
    }
}

/// Sets `tie_word_embeddings` at the top and wherever a nested text config has it.
pub fn set_tied(config: &mut Map<String, Value>, tied: bool) {
    for scope in text_scopes(config) {
        let map = scope.get_mut(config);
        if let Some(value) = map.and_then(|map| map.get_mut("tie_word_embeddings")) {
            *value = tied.into();
        }
    }
    config.insert("tie_word_embeddings".to_owned(), tied.into());
}

/// Sets the dtype under whichever of `dtype` and `torch_dtype` is there, nested text configs
/// included; adds nothing. A dtype without a name in PyTorch changes nothing.
pub fn set_dtype(config: &mut Map<String, Value>, dtype: &Dtype) {
    let Some(name) = torch_name(dtype) else {
        return;
    };
    for scope in text_scopes(config) {
        for key in ["dtype", "torch_dtype"] {
            let place = scope.get_mut(config).and_then(|map| map.get_mut(key));
            if let Some(value @ Value::String(_)) = place {
                *value = name.into();
            }
        }
    }
}

/// What `quantization_config` says.
pub(crate) fn quantization_settings(config: &Map<String, Value>) -> Option<&Map<String, Value>> {
    text_scopes(config).iter().rev().find_map(|scope| {
        let map = scope.get(config)?;
        ["quantization_config", "compression_config"]
            .iter()
            .find_map(|key| map.get(*key).and_then(Value::as_object))
    })
}

/// Takes every `quantization_config` out.
pub(crate) fn remove_quantization(config: &mut Map<String, Value>) {
    for scope in text_scopes(config) {
        for key in ["quantization_config", "compression_config"] {
            if let Some(map) = scope.get_mut(config) {
                map.shift_remove(key);
            }
        }
    }
}

/// The float dtype that the config names for the weights.
pub(crate) fn value_dtype(config: &Map<String, Value>) -> Option<Dtype> {
    let named = innermost(config, |map| {
        let name = ["dtype", "torch_dtype"].iter().find_map(|key| map.get(*key)?.as_str())?;
        name.trim_start_matches("torch.").parse().ok()
    });
    named.filter(|dtype: &Dtype| !dtype.is_f8())
}

/// PyTorch's name of a dtype.
fn torch_name(dtype: &Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::BF16 => "bfloat16",
        Dtype::F16 => "float16",
        Dtype::F32 => "float32",
        Dtype::F64 => "float64",
        Dtype::F8E4M3 => "float8_e4m3fn",
        Dtype::F8E5M2 => "float8_e5m2",
        _ => return None,
    })
}

/// Whether the config says that the head is the embedding; `None` if it does not say (Gemma files
/// of transformers 4 leave the key out and are tied): then the tensors decide.
pub fn is_tied(config: &Map<String, Value>) -> Option<bool> {
    // The outermost one counts: a vision-language model's class ties by its own config.
    text_scopes(config)
        .iter()
        .find_map(|scope| scope.get(config)?.get("tie_word_embeddings")?.as_bool())
}

/// The quantisation method, such as `fp8`, `awq` or `mxfp4`; `unknown` if there is one without a name.
pub fn quantization(config: &Map<String, Value>) -> Option<String> {
    innermost(config, |map| {
        let settings = ["quantization_config", "compression_config"]
            .iter()
            .find_map(|key| map.get(*key).filter(|value| !value.is_null()))?;
        let method = settings.get("quant_method").and_then(Value::as_str);
        Some(method.unwrap_or("unknown").to_owned())
    })
}
