//! Fields with entries of their own for the layers: cut and renumbered, entry by entry.
//!
//! To teach a field, add a row to [`FIELDS`].

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::problem::{ConfigProblem, shown};
use super::{Anatomy, Cut};

/// How a field speaks of layers.
#[derive(Clone, Copy)]
enum Kind {
    /// One entry a layer.
    List,
    /// One entry a layer, or one value for all of them.
    ListOrValue,
    /// One letter a layer; `|` only separates.
    Letters,
    /// A list of layer numbers, counted from this.
    Numbers(u64),
    /// Layer numbers from 0 in a comma-separated string.
    NumbersText,
    /// An object whose keys are layer numbers from 0, perhaps padded with zeros.
    Keyed,
    /// One entry a layer: the number of the layer whose keys and values it uses.
    Sources,
}

/// Every field that is cut entry by entry. A dot descends into an object.
const FIELDS: &[(&str, Kind)] = &[
    ("layer_types", Kind::List),
    ("mlp_layer_types", Kind::List),
    ("layers_block_type", Kind::List),
    ("hybrid_override_pattern", Kind::Letters),
    ("hybrid_layer_pattern", Kind::List),
    ("attn_type_list", Kind::List),
    ("attention_layers", Kind::List),
    ("no_rope_layers", Kind::List),
    ("indexer_types", Kind::List),
    ("layer_rope_theta", Kind::ListOrValue),
    ("intermediate_size", Kind::ListOrValue),
    ("activation_sparsity_pattern", Kind::ListOrValue),
    ("num_attention_heads_per_layer", Kind::List),
    ("num_key_value_heads_per_layer", Kind::List),
    ("num_query_heads", Kind::ListOrValue),
    ("num_kv_heads", Kind::ListOrValue),
    ("ffn_multipliers", Kind::ListOrValue),
    ("swiglu_limits", Kind::ListOrValue),
    ("swiglu_limits_shared", Kind::ListOrValue),
    ("num_experts", Kind::ListOrValue),
    ("num_shared_expert", Kind::ListOrValue),
    ("moe_topk", Kind::ListOrValue),
    ("moe_layer_freq", Kind::ListOrValue),
    ("block_configs", Kind::List),
    ("per_layer_config", Kind::Keyed),
    ("kv_source_layers", Kind::Sources),
    ("mlp_only_layers", Kind::Numbers(0)),
    ("moe_layers", Kind::Numbers(0)),
    ("full_attn_idxs", Kind::Numbers(0)),
    ("attn_layer_indices", Kind::Numbers(0)),
    ("cross_attention_layers", Kind::Numbers(0)),
    ("rope_scaling_layers", Kind::Numbers(0)),
    ("hybrid_layer_ids", Kind::Numbers(0)),
    ("ple_layer_ids", Kind::Numbers(1)),
    ("linear_attn_config.full_attn_layers", Kind::Numbers(1)),
    ("linear_attn_config.kda_layers", Kind::Numbers(1)),
    ("moe_layers_enum", Kind::NumbersText),
];

/// Lists whose length may equal the number of layers by chance.
const NOT_PER_LAYER: &[&str] =
    &["architectures", "eos_token_id", "mrope_section", "mtp_layer_types"];

/// Cuts every field of the table; notes lists that look per-layer and are not in it.
pub(super) fn cut(cut: &mut Cut<'_>) -> Result<(), ConfigProblem> {
    for (field, kind) in FIELDS {
        let (outer, inner) = field.split_once('.').map_or((*field, None), |(o, i)| (o, Some(i)));
        let Some(place) = cut.new.get(outer) else {
            continue;
        };
        let value = inner.map_or(Some(place), |inner| place.get(inner));
        let Some(value) = value.filter(|value| !value.is_null()) else {
            continue;
        };
        let new = Field { key: cut.scope.key(field), value, cut }.cut(*kind)?;
        if new == *value {
            continue;
        }
        let place = cut.new.get_mut(outer);
        let place = match inner {
            Some(inner) => place.and_then(|map| map.get_mut(inner)),
            None => place,
        };
        if let Some(place) = place {
            *place = new;
        }
    }
    note_unknown_lists(cut);
    Ok(())
}

/// One field at work.
struct Field<'a> {
    key: String,
    value: &'a Value,
    cut: &'a Cut<'a>,
}

impl Field<'_> {
    fn cut(&self, kind: Kind) -> Result<Value, ConfigProblem> {
        match kind {
            Kind::List => self.list(self.array("a list with one entry a layer")?),
            Kind::ListOrValue => match self.value {
                Value::Array(list) => self.list(list),
                Value::Number(_) | Value::Bool(_) => Ok(self.value.clone()),
                _ => Err(self.wrong("a number, or a list with one entry a layer")),
            },
            Kind::Letters => self.letters(),
            Kind::Numbers(first) => self.numbers(first),
            Kind::NumbersText => self.numbers_text(),
            Kind::Keyed => self.keyed(),
            Kind::Sources => self.sources(),
        }
    }

    fn array(&self, expected: &'static str) -> Result<&Vec<Value>, ConfigProblem> {
        self.value.as_array().ok_or_else(|| self.wrong(expected))
    }

    /// The entries of the kept layers. An empty list means "not given" to every reader.
    fn list(&self, list: &[Value]) -> Result<Value, ConfigProblem> {
        if list.is_empty() {
            return Ok(self.value.clone());
        }
        self.pick(list).map(Value::Array)
    }

    fn pick<T: Clone>(&self, list: &[T]) -> Result<Vec<T>, ConfigProblem> {
        let entries = list.len() as u64;
        let too_short = |layers| ConfigProblem::TooShort { key: self.key.clone(), entries, layers };
        if entries < self.cut.layers {
            return Err(too_short(self.cut.layers));
        }
        let entry = |old: &u64| {
            let found = usize::try_from(*old).ok().and_then(|old| list.get(old)).cloned();
            found.ok_or_else(|| too_short(old.saturating_add(1)))
        };
        self.cut.kept.iter().map(entry).collect()
    }

    fn letters(&self) -> Result<Value, ConfigProblem> {
        let text = self.value.as_str().ok_or_else(|| self.wrong("a letter a layer"))?;
        let letters: Vec<char> = text.chars().filter(|letter| *letter != '|').collect();
        let kept: String = self.pick(&letters)?.into_iter().collect();
        Ok(kept.into())
    }

    fn numbers(&self, first: u64) -> Result<Value, ConfigProblem> {
        let mut old = BTreeSet::new();
        for number in self.array("a list of layer numbers")? {
            let layer = number.as_u64().and_then(|number| number.checked_sub(first));
            old.insert(layer.ok_or_else(|| self.wrong("a list of layer numbers"))?);
        }
        let new = self.cut.positions(|layer| old.contains(&layer));
        Ok(new.into_iter().map(|position| position + first).collect::<Vec<u64>>().into())
    }

    fn numbers_text(&self) -> Result<Value, ConfigProblem> {
        let wrong = || self.wrong("layer numbers with commas between them");
        let text = self.value.as_str().ok_or_else(wrong)?;
        let mut old = BTreeSet::new();
        for piece in text.split(',').map(str::trim).filter(|piece| !piece.is_empty()) {
            old.insert(piece.parse::<u64>().map_err(|_| wrong())?);
        }
        let new = self.cut.positions(|layer| old.contains(&layer));
        Ok(new.iter().map(u64::to_string).collect::<Vec<_>>().join(",").into())
    }

    fn keyed(&self) -> Result<Value, ConfigProblem> {
        let wrong = || self.wrong("an object with layer numbers as keys");
        let old = self.value.as_object().ok_or_else(wrong)?;
        // Some writers pad the numbers: `05`.
        let width = old.keys().filter(|key| key.starts_with('0')).map(String::len).max();
        let mut by_layer = Vec::new();
        for (key, value) in old {
            by_layer.push((key.parse::<u64>().map_err(|_| wrong())?, value));
        }
        let mut new = Map::new();
        for (position, layer) in self.cut.kept.iter().enumerate() {
            if let Some((_, value)) = by_layer.iter().find(|(key, _)| key == layer) {
                let key = format!("{position:0width$}", width = width.unwrap_or(0));
                new.insert(key, (*value).clone());
            }
        }
        Ok(Value::Object(new))
    }

    fn sources(&self) -> Result<Value, ConfigProblem> {
        let list = self.array("a list of layer numbers, one a layer")?;
        let mut new = Vec::new();
        for source in self.pick(list)? {
            let source = source
                .as_u64()
                .ok_or_else(|| self.wrong("a list of layer numbers, one a layer"))?;
            match self.cut.kept.iter().position(|layer| *layer == source) {
                Some(position) if position <= new.len() => new.push(position as u64),
                _ => {
                    let reason = format!(
                        "layer {} lends its keys and values to layers behind it",
                        source.saturating_add(1)
                    );
                    return Err(self.cut.refuse("kv_source_layers", reason));
                }
            }
        }
        Ok(new.into())
    }

    fn wrong(&self, expected: &'static str) -> ConfigProblem {
        ConfigProblem::WrongType { key: self.key.clone(), expected, found: shown(self.value) }
    }
}

/// A list as long as the stack that no table knows may be per-layer: the user should look at it.
fn note_unknown_lists(cut: &mut Cut<'_>) {
    let suspicious = |(key, value): (&String, &Value)| {
        let listed = FIELDS.iter().any(|(field, _)| field == key);
        let length = value.as_array().map_or(0, Vec::len) as u64;
        let looks_per_layer = length == cut.layers && length > 2;
        (looks_per_layer && !listed && !NOT_PER_LAYER.contains(&key.as_str())).then(|| key.clone())
    };
    let found: Vec<String> = cut.old.iter().filter_map(suspicious).collect();
    for key in found {
        let text =
            format!("has {} entries, as many as there were layers; left as it is", cut.layers);
        cut.note(&key, text);
    }
}

/// Renumbers module names inside `quantization_config` (`model.layers.5.mlp`), which say what is
/// quantised how; those of removed layers go.
pub(super) fn rename_modules(cut: &mut Cut<'_>, anatomy: &Anatomy) {
    if anatomy.layer_prefix.is_empty() {
        return;
    }
    for key in ["quantization_config", "compression_config"] {
        if let Some(value) = cut.new.get_mut(key) {
            rename(value, anatomy, cut.kept);
        }
    }
}

fn rename(value: &mut Value, anatomy: &Anatomy, kept: &[u64]) {
    match value {
        Value::Array(list) if list.iter().any(Value::is_string) => {
            let renamed = list.iter().flat_map(|entry| match entry {
                Value::String(name) => {
                    renamed(name, anatomy, kept).into_iter().map(Value::String).collect()
                }
                other => vec![other.clone()],
            });
            *list = renamed.collect();
        }
        Value::Array(list) => list.iter_mut().for_each(|entry| rename(entry, anatomy, kept)),
        Value::Object(map) => {
            let old = std::mem::take(map);
            for (key, mut entry) in old {
                rename(&mut entry, anatomy, kept);
                for name in renamed(&key, anatomy, kept) {
                    map.insert(name, entry.clone());
                }
            }
        }
        _ => {}
    }
}

/// The new names of a module: one for each place its layer goes to, itself if it is in no layer.
fn renamed(name: &str, anatomy: &Anatomy, kept: &[u64]) -> Vec<String> {
    // The name of a layer itself ends with its number.
    let closed = format!("{name}.");
    let Some((layer, suffix)) = anatomy.layer_suffix(&closed) else {
        return vec![name.to_owned()];
    };
    let places = kept.iter().enumerate().filter(|(_, old)| **old == layer);
    let suffix = suffix.trim_end_matches('.');
    places
        .map(|(new, _)| format!("{}{new}.{suffix}", anatomy.layer_prefix))
        .map(|name| name.trim_end_matches('.').to_owned())
        .collect()
}
