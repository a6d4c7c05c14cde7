//! mergekit-moe's configuration, read as strictly as that of merges.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::super::config::dtype;
use super::super::read::{Problems, below, given, suggestion};
use super::super::reference::model;
use crate::error::{Error, Result};
use crate::format::Dtype;

/// A configuration that can be carried out, as far as the document alone tells.
#[derive(Clone, Debug)]
pub struct MoeConfig {
    pub(super) base: PathBuf,
    pub(super) experts: Vec<ExpertOf>,
    pub(super) shared: Vec<ExpertOf>,
    pub(super) gates: GateMode,
    pub(super) dtype: Option<Dtype>,
    pub(super) experts_per_token: u64,
    pub(super) architecture: Option<String>,
    pub(super) text: String,
}

/// A dense model whose feed-forward parts become an expert of every layer.
#[derive(Clone, Debug)]
pub(super) struct ExpertOf {
    pub(super) model: PathBuf,
    pub(super) positive: Vec<String>,
    pub(super) negative: Vec<String>,
    /// Factor of what the expert adds to the residual stream.
    pub(super) residual_scale: Option<f64>,
    /// Its place in the document.
    pub(super) at: String,
}

/// Where the routers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GateMode {
    CheapEmbed,
    Random,
    UniformRandom,
}

const KEYS: &[&str] = &[
    "base_model",
    "experts",
    "gate_mode",
    "dtype",
    "experts_per_token",
    "shared_experts",
    "architecture",
];

const EXPERT_KEYS: &[&str] =
    &["source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale"];

const GATE_MODES: &[&str] =
    &["hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random"];

impl MoeConfig {
    /// Reads a configuration. `name` is what messages call it. Unless `identical`, experts that are all one model are
    /// an error: with prompts to route by they give what one of them gives.
    ///
    /// # Errors
    /// Everything that is wrong with it or not supported yet, all at once.
    pub fn parse(text: &str, name: &str, identical: bool) -> Result<Self> {
        let refuse = |problems: Vec<String>| {
            let hint = "docs/growth.md has the language, and what is supported".into();
            Error::Mismatch { what: format!("`{name}` cannot be carried out"), problems, hint }
        };
        let document: Value = serde_saphyr::from_str(text).map_err(|e| {
            let problem = e.without_snippet();
            refuse(vec![problem.render_with_formatter(&serde_saphyr::UserMessageFormatter)])
        })?;
        let mut problems = Problems::default();
        let config = read(&mut problems, &document, text, identical);
        match config {
            Some(config) if problems.0.is_empty() => Ok(config),
            _ => Err(refuse(problems.0)),
        }
    }

    /// The models it names, each once, the base model first.
    pub fn models(&self) -> Vec<&Path> {
        let mut models = vec![self.base.as_path()];
        for expert in self.experts.iter().chain(&self.shared) {
            if !models.contains(&expert.model.as_path()) {
                models.push(&expert.model);
            }
        }
        models
    }

    /// The texts whose tokens the routers are made from, each once. They are to be tokenised with the base model's
    /// tokenizer, with the text of its beginning-of-sequence token in front and no other special tokens.
    pub fn prompts(&self) -> Vec<&str> {
        if self.gates != GateMode::CheapEmbed {
            return Vec::new();
        }
        let mut seen = HashSet::new();
        let experts = self.experts.iter().chain(&self.shared);
        let prompts = experts.flat_map(|expert| expert.positive.iter().chain(&expert.negative));
        prompts.map(String::as_str).filter(|prompt| seen.insert(*prompt)).collect()
    }
}

fn read(
    problems: &mut Problems,
    document: &Value,
    text: &str,
    identical: bool,
) -> Option<MoeConfig> {
    let map = problems.map("", document, KEYS)?;
    let base = match given(map, "base_model") {
        Some(value) => path(problems, "base_model", value),
        None => {
            problems.add("", "`base_model` is missing");
            None
        }
    };
    let gates = gate_mode(problems, map);
    let dtype = dtype(problems, map, "dtype");
    let experts = match given(map, "experts") {
        Some(value) => experts(problems, "experts", value),
        None => {
            problems.add("", "`experts` is missing");
            Vec::new()
        }
    };
    let shared = given(map, "shared_experts")
        .map(|value| self::experts(problems, "shared_experts", value))
        .unwrap_or_default();
    let experts_per_token = match given(map, "experts_per_token") {
        None => Some(2),
        Some(value) => value.as_u64().filter(|count| *count > 0),
    };
    match experts_per_token {
        Some(count) if count > experts.len() as u64 && !experts.is_empty() => problems.add(
            "experts_per_token",
            format!("is {count}{}, there are {} experts", default_text(map), experts.len()),
        ),
        None => problems.add("experts_per_token", "is not a whole number above zero"),
        _ => {}
    }
    let architecture = match given(map, "architecture") {
        Some(value) => problems.text("architecture", value).map(str::to_owned),
        None => None,
    };
    let gates = gates?;
    check_prompts(problems, gates, &experts, &shared, identical);
    let experts_per_token = experts_per_token?;
    let text = text.to_owned();
    let base = base?;
    Some(MoeConfig { base, experts, shared, gates, dtype, experts_per_token, architecture, text })
}

fn default_text(map: &Map<String, Value>) -> &'static str {
    if given(map, "experts_per_token").is_none() { " if it is not given" } else { "" }
}

fn gate_mode(problems: &mut Problems, map: &Map<String, Value>) -> Option<GateMode> {
    let at = "gate_mode";
    let name = match given(map, at) {
        Some(value) => problems.text(at, value)?,
        None => "hidden",
    };
    match name {
        "cheap_embed" => Some(GateMode::CheapEmbed),
        "random" => Some(GateMode::Random),
        "uniform_random" => Some(GateMode::UniformRandom),
        "hidden" | "hidden_avg" | "hidden_last" => {
            let default = if given(map, at).is_none() {
                ", which is what is meant if it is not given,"
            } else {
                ""
            };
            problems.unsupported(
                at,
                format!("`{name}`{default} wants the hidden states of the base model at work, which this program does not run; `cheap_embed` takes its embeddings, `random` and `uniform_random` are for training: it is"),
            );
            None
        }
        _ => {
            problems
                .add(at, format!("`{name}` is not a known mode{}", suggestion(name, GATE_MODES)));
            None
        }
    }
}

fn experts(problems: &mut Problems, at: &str, value: &Value) -> Vec<ExpertOf> {
    let mut experts = Vec::new();
    for (i, item) in problems.list(at, value).into_iter().flatten().enumerate() {
        experts.extend(expert(problems, &format!("{at}[{i}]"), item));
    }
    experts
}

fn expert(problems: &mut Problems, at: &str, value: &Value) -> Option<ExpertOf> {
    let map = problems.map(at, value, EXPERT_KEYS)?;
    let positive = prompts(problems, map, at, "positive_prompts");
    let negative = prompts(problems, map, at, "negative_prompts");
    let noise = number(problems, map, at, "noise_scale");
    if noise.is_some_and(|scale| scale.abs() > 0.0) {
        problems.unsupported(&below(at, "noise_scale"), "adding noise to weights is");
    }
    let residual_scale = number(problems, map, at, "residual_scale");
    let Some(value) = given(map, "source_model") else {
        problems.add(at, "has no `source_model`");
        return None;
    };
    let model = path(problems, &below(at, "source_model"), value)?;
    Some(ExpertOf { model, positive, negative, residual_scale, at: at.to_owned() })
}

fn path(problems: &mut Problems, at: &str, value: &Value) -> Option<PathBuf> {
    let named = model(problems, at, value)?;
    if named.lora.is_some() {
        problems.unsupported(at, "an expert with an adapter is");
        return None;
    }
    Some(named.path)
}

fn prompts(problems: &mut Problems, map: &Map<String, Value>, at: &str, key: &str) -> Vec<String> {
    let Some(value) = given(map, key) else {
        return Vec::new();
    };
    let at = below(at, key);
    let mut texts = Vec::new();
    for (i, item) in problems.list(&at, value).into_iter().flatten().enumerate() {
        texts.extend(problems.text(&format!("{at}[{i}]"), item).map(str::to_owned));
    }
    texts
}

fn number(problems: &mut Problems, map: &Map<String, Value>, at: &str, key: &str) -> Option<f64> {
    let value = given(map, key)?;
    let number = value.as_f64().filter(|number| number.is_finite());
    if number.is_none() {
        problems.wrong(&below(at, key), value, "a finite number");
    }
    number
}

/// What routing by prompts needs of them.
fn check_prompts(
    problems: &mut Problems,
    gates: GateMode,
    experts: &[ExpertOf],
    shared: &[ExpertOf],
    identical: bool,
) {
    if gates != GateMode::CheapEmbed {
        return;
    }
    for expert in experts.iter().filter(|expert| expert.positive.is_empty()) {
        problems.add(&expert.at, "has no `positive_prompts`, which `cheap_embed` routes by");
    }
    let with_prompts = shared.iter().filter(|expert| !expert.positive.is_empty()).count();
    if with_prompts > 0 && with_prompts < shared.len() {
        problems.add("shared_experts", "some have `positive_prompts` and some have not");
    }
    let Some((first, others)) = experts.split_first() else {
        return;
    };
    let same =
        |other: &ExpertOf| (&other.positive, &other.negative) == (&first.positive, &first.negative);
    if !others.is_empty() && others.iter().all(same) {
        problems.add("experts", "have the same prompts: nothing tells them apart");
    }
    if !identical && !others.is_empty() && others.iter().all(|other| other.model == first.model) {
        problems.add(
            "experts",
            "are all the same model, so that the result computes what one does: `--identical-experts` if it is to be trained",
        );
    }
}
