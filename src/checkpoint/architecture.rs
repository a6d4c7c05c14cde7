//! What the tensors of a checkpoint are for: decoder layer, embedding, head, and so on.
//!
//! A table of families and their naming schemes ([`families`]) is tried first; a family it does not
//! know is inferred from the numbered group that looks like decoder layers. Reads names and
//! `config.json` values only, never files.

mod families;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

pub(super) use families::{COUNT_KEYS, MULTI_TOKEN_KEYS};
use families::{
    DECODER_COUNT_KEYS, FAMILIES, LAYER_WORDS, LLAMA, MULTI_TOKEN_GROUPS, MULTI_TOKEN_SUFFIXES,
    SCHEMES, Scheme, TOWERS, WRAPPERS,
};

use super::config::{ConfigProblem, Scope, text_scopes, whole_number};

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Belongs to this decoder layer, counted from 0.
    Layer(u64),
    /// The token embedding: one row a token.
    Embedding,
    /// A learned position embedding: one row a position.
    PositionEmbedding,
    /// The norm after the last decoder layer, with its bias.
    FinalNorm,
    /// The language-model head, with its bias: one row a token. Absent when tied to the embedding.
    Head,
    /// A multi-token-prediction (speculative) layer, which is not part of the decoder stack.
    MultiToken,
    /// Anything else: vision towers, projectors, rotary buffers.
    Other,
}

impl Role {
    /// Whether dimension 0 counts the vocabulary.
    pub fn is_vocabulary(self) -> bool {
        matches!(self, Self::Embedding | Self::Head)
    }
}

/// How a checkpoint is built: where its decoder layers are and how many it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anatomy {
    /// The text model's `model_type`, or `unknown` without a config.
    pub family: String,
    /// What stands before a layer's number, with the dot: `model.layers.`. Empty without layers.
    pub layer_prefix: String,
    /// Decoder layers in the tensors: the largest index plus one, multi-token layers left out.
    pub layers: u64,
    /// Where the config counts its layers: `num_hidden_layers`, `text_config.num_hidden_layers`.
    pub count_key: Option<String>,
    /// Indices of multi-token-prediction layers that share the decoder's numbering.
    pub multi_token: BTreeSet<u64>,
    declared: Option<u64>,
    present: BTreeSet<u64>,
    separate_multi_token: bool,
    pub(super) count_word: &'static str,
    embedding: Vec<String>,
    position: Vec<String>,
    norm: Vec<String>,
    head: Vec<String>,
}

/// The tensors that share a prefix up to their first number.
#[derive(Default)]
struct Group {
    tensors: u64,
    indices: BTreeSet<u64>,
    multi_token: BTreeSet<u64>,
}

impl Anatomy {
    /// Finds the decoder layers from the config, where there is one, and the tensor names.
    ///
    /// The number the config declares and the number in the tensors may differ: both are kept and
    /// nothing fails. No layers at all is a valid answer. Fails when the config's layer count or
    /// `model_type` has the wrong type.
    pub fn resolve<'a>(
        config: Option<&Map<String, Value>>,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<Self, ConfigProblem> {
        let declared = Declared::read(config)?;
        let (groups, separate_multi_token) = numbered_groups(names);
        let family = declared.family.unwrap_or("unknown");
        let known = FAMILIES.iter().find(|(name, _)| *name == family);
        let scheme = known.map_or(&LLAMA, |(_, scheme)| *scheme);
        let found = known
            .and_then(|_| match_scheme(scheme, &groups))
            .or_else(|| infer(&groups))
            .unwrap_or_else(|| without_layers(scheme));
        let mut anatomy = Self {
            family: family.to_owned(),
            count_key: declared.key,
            declared: declared.layers,
            count_word: scheme.count,
            separate_multi_token,
            ..found
        };
        if let Some(group) = groups.get(&anatomy.layer_prefix) {
            anatomy.take_layers(group, declared.multi_token);
        }
        Ok(anatomy)
    }

    /// Splits a group into decoder layers and the multi-token layers behind them.
    fn take_layers(&mut self, group: &Group, multi_token: u64) {
        let behind = self.declared.map(|n| n..n.saturating_add(multi_token));
        for &index in &group.indices {
            let counted = behind.as_ref().is_some_and(|range| range.contains(&index));
            // Declared layers never are, and layer 0 never is.
            let beyond = index >= self.declared.unwrap_or(1).max(1);
            if counted || (beyond && group.multi_token.contains(&index)) {
                self.multi_token.insert(index);
            } else {
                self.present.insert(index);
            }
        }
        self.layers = self.present.last().map_or(0, |last| last.saturating_add(1));
    }

    /// What a tensor is for.
    pub fn role(&self, name: &str) -> Role {
        if let Some((index, _)) = self.layer_suffix(name) {
            return if self.multi_token.contains(&index) {
                Role::MultiToken
            } else {
                Role::Layer(index)
            };
        }
        let is = |stems: &[String]| stems.iter().any(|stem| names_module(name, stem));
        if in_multi_token_group(name) {
            Role::MultiToken
        } else if is(&self.embedding) {
            Role::Embedding
        } else if is(&self.position) {
            Role::PositionEmbedding
        } else if is(&self.norm) {
            Role::FinalNorm
        } else if is(&self.head) {
            Role::Head
        } else {
            Role::Other
        }
    }

    /// Splits a layer tensor's name into the index (from 0) and what follows it:
    /// `model.layers.3.mlp.up_proj.weight` is `(3, "mlp.up_proj.weight")`.
    pub fn layer_suffix<'a>(&self, name: &'a str) -> Option<(u64, &'a str)> {
        if self.layer_prefix.is_empty() {
            return None;
        }
        let (number, suffix) = name.strip_prefix(&self.layer_prefix)?.split_once('.')?;
        Some((layer_index(number)?, suffix))
    }

    /// The same tensor in another layer; a tensor outside the layers keeps its name.
    pub fn renumbered(&self, name: &str, new_index: u64) -> String {
        match self.layer_suffix(name) {
            Some((_, suffix)) => format!("{}{new_index}.{suffix}", self.layer_prefix),
            None => name.to_owned(),
        }
    }

    /// How many layers the config declares; may disagree with [`Anatomy::layers`].
    pub fn config_layers(&self) -> Option<u64> {
        self.declared
    }

    /// The decoder layers that have tensors, in order; without gaps it is `0..layers`.
    pub fn present_layers(&self) -> impl Iterator<Item = u64> + '_ {
        self.present.iter().copied()
    }

    /// How many indices below [`Anatomy::layers`] have no tensor at all.
    pub fn missing_layers(&self) -> u64 {
        self.layers.saturating_sub(u64::try_from(self.present.len()).unwrap_or(u64::MAX))
    }

    /// Whether the checkpoint holds multi-token-prediction tensors, numbered or apart.
    pub fn has_multi_token(&self) -> bool {
        self.separate_multi_token || !self.multi_token.is_empty()
    }

    /// An anatomy with the stems of a scheme behind a wrapper, and no layers yet.
    fn with_stems(layer_prefix: String, base: &str, outer: &str, scheme: &Scheme) -> Self {
        let behind = |stems: &[&str]| stems.iter().map(|s| format!("{base}{s}")).collect();
        let mut head: Vec<String> = scheme.head.iter().map(|s| format!("{outer}{s}")).collect();
        head.extend(scheme.head.iter().map(|s| (*s).to_owned()));
        Self {
            family: String::new(),
            layer_prefix,
            layers: 0,
            count_key: None,
            multi_token: BTreeSet::new(),
            declared: None,
            present: BTreeSet::new(),
            separate_multi_token: false,
            count_word: scheme.count,
            embedding: behind(scheme.embedding),
            position: behind(scheme.position),
            norm: behind(scheme.norm),
            head,
        }
    }
}

/// What the config says about the stack.
#[derive(Default)]
struct Declared<'a> {
    family: Option<&'a str>,
    key: Option<String>,
    layers: Option<u64>,
    multi_token: u64,
}

impl<'a> Declared<'a> {
    fn read(config: Option<&'a Map<String, Value>>) -> Result<Self, ConfigProblem> {
        let mut read = Self::default();
        let Some(config) = config else {
            return Ok(read);
        };
        // Inner scopes first: a vision-language model's own `model_type` says less than its text model's.
        for scope in text_scopes(config).into_iter().rev() {
            read.take_scope(config, &scope)?;
        }
        Ok(read)
    }

    fn take_scope(
        &mut self,
        config: &'a Map<String, Value>,
        scope: &Scope,
    ) -> Result<(), ConfigProblem> {
        let Some(map) = scope.get(config) else {
            return Ok(());
        };
        if self.family.is_none() {
            self.family = map.get("model_type").and_then(Value::as_str);
        }
        let decoders = map.get("is_encoder_decoder") == Some(&Value::Bool(true));
        let own: &[&str] = if decoders { DECODER_COUNT_KEYS } else { &[] };
        for word in own.iter().chain(COUNT_KEYS) {
            let count = whole_number(map, word, scope)?;
            if self.layers.is_none() && count.is_some() {
                self.layers = count;
                self.key = Some(scope.key(word));
            }
        }
        for word in MULTI_TOKEN_KEYS {
            let count = whole_number(map, word, scope)?.unwrap_or(0);
            self.multi_token = self.multi_token.max(count);
        }
        Ok(())
    }
}

/// Groups the names by what precedes their first number; says also whether some belong to
/// multi-token groups.
fn numbered_groups<'a>(names: impl Iterator<Item = &'a str>) -> (BTreeMap<String, Group>, bool) {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    let mut multi_token = false;
    for name in names {
        multi_token |= in_multi_token_group(name);
        let Some((prefix, index, suffix)) = first_number(name) else {
            continue;
        };
        if !groups.contains_key(prefix) {
            groups.insert(prefix.to_owned(), Group::default());
        }
        if let Some(group) = groups.get_mut(prefix) {
            group.tensors += 1;
            group.indices.insert(index);
            if MULTI_TOKEN_SUFFIXES.iter().any(|s| suffix.starts_with(s)) {
                group.multi_token.insert(index);
            }
        }
    }
    (groups, multi_token)
}

/// Splits `a.b.3.c` into `a.b.`, 3 and `c`.
pub(super) fn first_number(name: &str) -> Option<(&str, u64, &str)> {
    let mut start = 0;
    for component in name.split('.') {
        let end = start + component.len();
        if let Some(index) = layer_index(component) {
            return Some((&name[..start], index, name.get(end + 1..)?));
        }
        start = end + 1;
    }
    None
}

/// A decimal number written the way checkpoints write it: no sign, no leading zero.
fn layer_index(text: &str) -> Option<u64> {
    // No model has more layers than this, and every sum with an index stays far from overflow.
    const MOST: u64 = 1_000_000;
    let canonical = text == "0" || !text.starts_with('0');
    (canonical && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok().filter(|index| *index < MOST))
        .flatten()
}

/// The first place where a scheme's layers are, from the plainest wrapper to the deepest.
fn match_scheme(scheme: &Scheme, groups: &BTreeMap<String, Group>) -> Option<Anatomy> {
    let spots = WRAPPERS.iter().flat_map(|outer| {
        [(outer, format!("{outer}{}", scheme.root)), (outer, (*outer).to_owned())]
    });
    for (outer, base) in spots {
        let prefix = format!("{base}{}", scheme.layers);
        if groups.contains_key(&prefix) {
            return Some(Anatomy::with_stems(prefix, &base, outer, scheme));
        }
    }
    None
}

/// The layers of a family no table knows: where some scheme keeps them, else the numbered group
/// that looks most like decoder layers.
fn infer(groups: &BTreeMap<String, Group>) -> Option<Anatomy> {
    let known = SCHEMES.iter().find_map(|scheme| match_scheme(scheme, groups));
    if let Some(anatomy) = known {
        return Some(everywhere_above(&anatomy.layer_prefix));
    }
    let components = |prefix: &str| -> Vec<String> {
        prefix.trim_end_matches('.').split('.').map(str::to_ascii_lowercase).collect()
    };
    let best = groups
        .iter()
        .filter(|(prefix, _)| {
            !components(prefix).iter().any(|c| TOWERS.iter().any(|tower| c.contains(tower)))
        })
        .max_by_key(|(prefix, group)| {
            let last = components(prefix).pop().unwrap_or_default();
            (LAYER_WORDS.contains(&last.as_str()), group.tensors)
        });
    let (prefix, _) = best?;
    Some(everywhere_above(prefix))
}

/// Stems of every scheme at every level above a layer prefix: an unknown family may keep its head
/// beside or above its layers.
fn everywhere_above(prefix: &str) -> Anatomy {
    let inner = prefix.trim_end_matches('.');
    let mut bases = vec![String::new()];
    bases.extend(inner.match_indices('.').map(|(at, _)| inner[..=at].to_owned()));
    let mut anatomy = Anatomy::with_stems(prefix.to_owned(), "", "", &LLAMA);
    for base in &bases {
        for scheme in SCHEMES {
            let more = Anatomy::with_stems(String::new(), base, base, scheme);
            anatomy.embedding.extend(more.embedding);
            anatomy.position.extend(more.position);
            anatomy.norm.extend(more.norm);
            anatomy.head.extend(more.head);
        }
    }
    anatomy
}

/// A checkpoint of only embedding, norm and head still has roles.
fn without_layers(scheme: &Scheme) -> Anatomy {
    let mut anatomy = everywhere_above(&format!("{}{}", scheme.root, scheme.layers));
    anatomy.layer_prefix.clear();
    anatomy
}

fn names_module(name: &str, stem: &str) -> bool {
    name.strip_prefix(stem).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn in_multi_token_group(name: &str) -> bool {
    name.split('.').any(|c| MULTI_TOKEN_GROUPS.contains(&c))
}
