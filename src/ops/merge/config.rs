//! mergekit's configuration language, read strictly.
//!
//! Unknown keys, wrong types and contradictions are all told at once, each with its path in the document; so is
//! whatever mergekit would do and this program does not do yet.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::extension::{Extension, Origin};
use super::methods::{Base, Kind, METHODS, Method};
use super::parameters::{Level, Parameters};
use super::read::{Problems, below, given, number, suggestion};
use super::reference::{Reference, model};
use super::vocabulary::{self, Chat, Wish};
use crate::error::{Error, Result};
use crate::format::Dtype;

/// A merge configuration that can be carried out, as far as the document alone tells.
#[derive(Clone, Debug)]
pub struct Config {
    /// What later documents of the file call its result.
    pub name: Option<String>,
    pub(super) method: &'static Method,
    /// Those of all modules, one after the other. Whole models are one slice without layer ranges.
    pub(super) slices: Vec<SliceOf>,
    pub(super) base: Option<Reference>,
    pub(super) parameters: Parameters,
    /// What inputs are cast to before anything else.
    pub(super) dtype: Option<Dtype>,
    pub(super) out_dtype: Option<Dtype>,
    /// Whose tokens the result has; none where all models have the same rows.
    pub(super) tokenizer: Option<Wish>,
    pub(super) chat: Option<Chat>,
    /// What mergekit has not.
    pub(super) extension: Extension,
    /// What it says without effect.
    pub(super) notes: Vec<String>,
    pub(super) text: String,
}

/// A run of output layers and where they come from.
#[derive(Clone, Debug, Default)]
pub(super) struct SliceOf {
    pub(super) sources: Vec<SourceOf>,
    pub(super) base: Option<Reference>,
    pub(super) parameters: Parameters,
    /// The module that it is of; none for all of them.
    pub(super) module: Option<String>,
    /// Whether it is of whole models, not of layers.
    pub(super) whole: bool,
    /// Its place in the document; empty for `models`.
    pub(super) at: String,
    /// Whether some source could not be read: what the others lack says nothing then.
    broken: bool,
}

/// A model, or some of its layers.
#[derive(Clone, Debug)]
pub(super) struct SourceOf {
    pub(super) model: Reference,
    /// Layers from 0, the end not included; none for all.
    pub(super) layers: Option<(u64, u64)>,
    pub(super) parameters: Parameters,
    /// Its place in the document.
    pub(super) at: String,
}

const KEYS: &[&str] = &[
    "name",
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "elo_surgery",
];

impl Config {
    /// Reads a configuration of one document. `name` is what messages call it.
    ///
    /// # Errors
    /// Everything that is wrong with it or not supported yet, all at once.
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        let mut configs = Self::parse_all(text, name)?;
        match (configs.pop(), configs.len()) {
            (Some(config), 0) => Ok(config),
            (_, more) => {
                let what = format!("has {} documents, expected one", more + 1);
                Err(refuse(name, vec![what]))
            }
        }
    }

    pub(super) fn parse_one(document: &Value, text: &str, name: &str) -> Result<Self> {
        let mut problems = Problems::default();
        match read(&mut problems, document, text) {
            Some(config) if problems.0.is_empty() => Ok(config),
            _ => Err(refuse(name, problems.0)),
        }
    }

    /// The models it names, each once: first the one whose config and tokenizer the result keeps.
    pub fn models(&self) -> Vec<&Reference> {
        let mut models = self.merged();
        for model in self.tokenizer.iter().flat_map(Wish::models) {
            if !models.contains(&model) {
                models.push(model);
            }
        }
        models
    }

    /// Those of [`models`](Self::models) that are not named for their tokens alone.
    pub(super) fn merged(&self) -> Vec<&Reference> {
        let named = self
            .slices
            .iter()
            .flat_map(|slice| slice.sources.iter().map(|source| &source.model).chain(&slice.base));
        let mut models: Vec<&Reference> = Vec::new();
        for model in self.base.iter().chain(named) {
            if !models.contains(&model) {
                models.push(model);
            }
        }
        models
    }

    /// Whether every tensor is the copy of one: then codes of quantised models may stay what they are.
    pub(super) fn copies(&self) -> bool {
        let scaled =
            |parameters: &Parameters| parameters.has("scale") || parameters.has("normalize");
        matches!(self.method.kind, Kind::Passthrough | Kind::Linear)
            && self.dtype.is_none()
            && self.out_dtype.is_none()
            && !scaled(&self.parameters)
            && self.slices.iter().all(|slice| {
                let of_models = slice.sources.iter().map(|source| &source.parameters);
                let alone = slice.sources.iter().all(|source| source.model.lora.is_none());
                slice.sources.len() == 1
                    && alone
                    && !of_models.chain([&slice.parameters]).any(scaled)
            })
    }

    /// Whether there are slices of whole models' layers, so that a model counts as one module.
    pub(super) fn is_sliced(&self) -> bool {
        self.slices.iter().any(|slice| !slice.whole && slice.module.is_none())
    }
}

/// What is wrong with a configuration.
pub(super) fn refuse(name: &str, mut problems: Vec<String>) -> Error {
    // Several slices may have one cause.
    let mut seen = HashSet::new();
    problems.retain(|problem| seen.insert(problem.clone()));
    let hint = "docs/merge.md has the language, and what is supported".into();
    Error::Mismatch { what: format!("`{name}` cannot be carried out"), problems, hint }
}

/// What is wrong with a text that is no YAML.
pub(super) fn syntax(error: &serde_saphyr::Error) -> String {
    error.without_snippet().render_with_formatter(&serde_saphyr::UserMessageFormatter)
}

pub(super) fn read(problems: &mut Problems, document: &Value, text: &str) -> Option<Config> {
    if let Some(what) = document.as_object().and_then(other_language) {
        problems.add("", what);
        return None;
    }
    let map = problems.map("", document, KEYS)?;
    let method = method(problems, map);
    let name = given(map, "name").and_then(|value| problems.text("name", value).map(str::to_owned));
    let base = given(map, "base_model").and_then(|value| model(problems, "base_model", value));
    let (at, value) = ("parameters", map.get("parameters"));
    let parameters = Parameters::read(problems, at, value, method, Level::Shared);
    let dtype = dtype(problems, map, "dtype");
    let out_dtype = self::dtype(problems, map, "out_dtype");
    let extension = Extension::read(problems, map, method);
    let tokenizer = vocabulary::read(problems, map);
    let chat = vocabulary::chat(problems, map);
    let slices = match given(map, "modules") {
        Some(value) => modules(problems, map, value, method, base.as_ref())?,
        None => sources(problems, "", map, method, base.as_ref())?,
    };
    let text = text.to_owned();
    let method = method?;
    let mut config = Config {
        name,
        method,
        slices,
        base,
        parameters,
        dtype,
        out_dtype,
        tokenizer,
        chat,
        extension,
        notes: Vec::new(),
        text,
    };
    check_rules(problems, &config);
    let whole = matches!(config.slices.as_slice(), [all] if all.whole && all.module.is_none());
    if config.extension.variant.trim && !whole {
        problems.add("elo_surgery.trim", "`model` is for merges of whole models (`models`)");
    }
    check_importance(problems, &config);
    for slice in config.slices.iter().filter(|slice| !slice.broken && !slice.sources.is_empty()) {
        check_inputs(problems, &config, slice);
    }
    config.notes = problems.take_notes();
    Some(config)
}

/// What a document is that is made for another program of mergekit.
fn other_language(map: &Map<String, Value>) -> Option<&'static str> {
    let has = |keys: [&str; 2]| keys.into_iter().any(|key| map.contains_key(key));
    if has(["experts", "gate_mode"]) {
        return Some("this is a mixture of experts: `elo-surgery moe CONFIG`");
    }
    has(["genome", "tasks"]).then_some("mergekit-evolve genomes are not carried out")
}

fn method(problems: &mut Problems, map: &Map<String, Value>) -> Option<&'static Method> {
    let at = "merge_method";
    let Some(value) = given(map, at) else {
        problems.add("", "`merge_method` is missing");
        return None;
    };
    let name = problems.text(at, value)?;
    let Some(method) = METHODS.iter().find(|method| method.name == name) else {
        let names: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
        problems.add(at, format!("`{name}` is not a known method{}", suggestion(name, &names)));
        return None;
    };
    Some(method)
}

pub(super) fn dtype(problems: &mut Problems, map: &Map<String, Value>, key: &str) -> Option<Dtype> {
    let name = problems.text(key, given(map, key)?)?;
    let name = name.strip_prefix("torch.").unwrap_or(name);
    match name {
        "bfloat16" => Some(Dtype::BF16),
        "float16" => Some(Dtype::F16),
        "float32" => Some(Dtype::F32),
        "float64" => Some(Dtype::F64),
        "int64" => {
            problems.unsupported(key, "int64 is");
            None
        }
        _ => {
            let known = ["bfloat16", "float16", "float32", "float64"];
            let near = suggestion(name, &known);
            problems.add(key, format!("`{name}` is not a known dtype{near}"));
            None
        }
    }
}

/// `models` or `slices`.
fn sources(
    problems: &mut Problems,
    at: &str,
    map: &Map<String, Value>,
    method: Option<&'static Method>,
    base: Option<&Reference>,
) -> Option<Vec<SliceOf>> {
    match (given(map, "models"), given(map, "slices")) {
        (Some(_), Some(_)) => {
            problems.add(at, "there are both `models` and `slices`: give one of them");
            None
        }
        (Some(value), None) => Some(vec![whole(problems, at, value, method, base)]),
        (None, Some(value)) => Some(slices(problems, at, value, method)),
        (None, None) => {
            problems.add(at, "there are neither `models` nor `slices`");
            None
        }
    }
}

/// `modules`: slices of each, whose parameters go before those of the whole merge.
fn modules(
    problems: &mut Problems,
    map: &Map<String, Value>,
    value: &Value,
    method: Option<&'static Method>,
    base: Option<&Reference>,
) -> Option<Vec<SliceOf>> {
    let at = "modules";
    for other in ["models", "slices"].into_iter().filter(|key| given(map, key).is_some()) {
        problems.add(other, "`modules` is there too: give one of them");
    }
    let Value::Object(modules) = value else {
        problems.wrong(at, value, "a group of keys");
        return None;
    };
    if modules.is_empty() {
        problems.add(at, "is empty");
    }
    let mut all = Vec::new();
    let mut complete = true;
    for (name, value) in modules {
        let at = below(at, name);
        let Some(map) = problems.map(&at, value, &["models", "slices", "parameters"]) else {
            complete = false;
            continue;
        };
        let own = below(&at, "parameters");
        let own = Parameters::read(problems, &own, map.get("parameters"), method, Level::Shared);
        let slices = sources(problems, &at, map, method, base);
        complete &= slices.is_some();
        all.extend(slices.into_iter().flatten().map(|slice| SliceOf {
            parameters: slice.parameters.before(&own),
            module: Some(name.clone()),
            ..slice
        }));
    }
    complete.then_some(all)
}

/// `models:`, as one slice. A base model that is not among them joins them.
fn whole(
    problems: &mut Problems,
    at: &str,
    value: &Value,
    method: Option<&'static Method>,
    base: Option<&Reference>,
) -> SliceOf {
    let mut slice = SliceOf { whole: true, at: at.to_owned(), ..SliceOf::default() };
    let list = below(at, "models");
    for (i, item) in problems.list(&list, value).into_iter().flatten().enumerate() {
        let at = format!("{list}[{i}]");
        let known = ["model", "parameters"];
        let source = source(problems, &at, item, &known, method);
        slice.broken |= source.is_none();
        slice.sources.extend(source);
    }
    if let Some(base) = base
        && slice.sources.iter().all(|source| source.model != *base)
        && method.is_none_or(|method| method.base != Base::Donor)
    {
        slice.sources.push(SourceOf {
            model: base.clone(),
            layers: None,
            parameters: Parameters::default(),
            at: "base_model".into(),
        });
    }
    slice
}

fn slices(
    problems: &mut Problems,
    at: &str,
    value: &Value,
    method: Option<&'static Method>,
) -> Vec<SliceOf> {
    let mut slices = Vec::new();
    let list = below(at, "slices");
    for (i, item) in problems.list(&list, value).into_iter().flatten().enumerate() {
        let at = format!("{list}[{i}]");
        let Some(map) = problems.map(&at, item, &["sources", "base_model", "parameters"]) else {
            continue;
        };
        let base_at = below(&at, "base_model");
        let base = given(map, "base_model").and_then(|value| model(problems, &base_at, value));
        let (own, value) = (below(&at, "parameters"), map.get("parameters"));
        let parameters = Parameters::read(problems, &own, value, method, Level::Shared);
        let mut slice = SliceOf { base, parameters, at, ..SliceOf::default() };
        let at = below(&slice.at, "sources");
        let Some(value) = given(map, "sources") else {
            problems.add(&slice.at, "has no `sources`");
            continue;
        };
        for (j, item) in problems.list(&at, value).into_iter().flatten().enumerate() {
            let at = format!("{at}[{j}]");
            let known = ["model", "layer_range", "parameters", "residual_weight"];
            let source = source(problems, &at, item, &known, method);
            slice.broken |= source.is_none();
            slice.sources.extend(source);
        }
        let lengths = slice.sources.iter().filter_map(|s| s.layers).map(|(from, to)| to - from);
        let lengths: Vec<u64> = lengths.collect();
        if lengths.iter().any(|length| *length != lengths[0]) {
            problems.add(&at, format!("have different numbers of layers: {lengths:?}"));
        }
        slices.push(slice);
    }
    slices
}

fn source(
    problems: &mut Problems,
    at: &str,
    value: &Value,
    known: &[&str],
    method: Option<&'static Method>,
) -> Option<SourceOf> {
    if value.is_string() {
        problems.add(at, "is text, expected a group of keys: `- model: PATH`");
        return None;
    }
    let map = problems.map(at, value, known)?;
    let own = below(at, "parameters");
    let parameters = Parameters::read(problems, &own, map.get("parameters"), method, Level::Model);
    let by_layers = known.contains(&"layer_range");
    if by_layers && given(map, "residual_weight").is_some() {
        let what = "`residual_weight` has no effect, as in mergekit";
        problems.note(&below(at, "residual_weight"), what);
    }
    let layers = match given(map, "layer_range") {
        Some(range) if by_layers => Some(layer_range(problems, &below(at, "layer_range"), range)?),
        None if by_layers => {
            problems.add(at, "has no `layer_range`");
            return None;
        }
        _ => None,
    };
    let Some(value) = given(map, "model") else {
        problems.add(at, "has no `model`");
        return None;
    };
    let model = model(problems, &below(at, "model"), value)?;
    Some(SourceOf { model, layers, parameters, at: at.to_owned() })
}

pub(super) fn layer_range(problems: &mut Problems, at: &str, value: &Value) -> Option<(u64, u64)> {
    let ends = value.as_array().map(|ends| ends.iter().map(layer).collect::<Vec<_>>());
    match ends.as_deref() {
        Some([Some(from), Some(to)]) if from < to => Some((*from, *to)),
        Some([Some(from), Some(to)]) => {
            problems.add(at, format!("[{from}, {to}] is empty: the end is not included"));
            None
        }
        _ => {
            problems.add(at, "is not a pair of layer numbers: `[0, 16]` is layers 0 to 15");
            None
        }
    }
}

/// A whole number, also one that is written as `2.0` or as text.
fn layer(value: &Value) -> Option<u64> {
    number(value)?.to_string().parse().ok()
}

/// Rules about tensors name models that are there.
fn check_rules(problems: &mut Problems, config: &Config) {
    let models = config.models();
    for rule in &config.extension.rules {
        if let Some(model) = rule.named().filter(|model| !models.contains(model)) {
            problems.add(&rule.at, format!("`{model}` is none of the models"));
        }
        if rule.copy == Some(Origin::Base) && config.base.is_none() {
            problems.add(&rule.at, "copies from the base, and there is no `base_model`");
        }
    }
}

/// All models that have a weight have importances, or none.
fn check_importance(problems: &mut Problems, config: &Config) {
    let sources = &config.extension.importance;
    for (i, source) in sources.iter().enumerate() {
        if !config.models().contains(&&source.model) {
            problems.add(&source.at, format!("`{}` is none of the models", source.model));
        } else if sources[..i].iter().any(|other| other.model == source.model) {
            problems.add(&source.at, format!("`{}` is there twice", source.model));
        }
    }
    if sources.is_empty() {
        return;
    }
    for slice in &config.slices {
        let base = slice.base.as_ref().or(config.base.as_ref());
        let apart = |model| config.method.sets_base_apart() && Some(model) == base;
        for model in slice.sources.iter().map(|s| &s.model) {
            match (sources.iter().find(|source| source.model == *model), apart(model)) {
                (None, false) => {
                    problems.add("elo_surgery.importance", format!("`{model}` has none"));
                }
                (Some(source), true) => {
                    problems.add(&source.at, format!("`{model}` is the base, which has no weight"));
                }
                _ => {}
            }
        }
    }
}

/// What the method needs of a slice: how many models, a base, parameters.
fn check_inputs(problems: &mut Problems, config: &Config, slice: &SliceOf) {
    let Config { method, .. } = config;
    let at = below(&slice.at, if slice.whole { "models" } else { "sources" });
    let base = slice.base.as_ref().or(config.base.as_ref());
    for (i, source) in slice.sources.iter().enumerate() {
        if slice.sources[..i].iter().any(|other| other.model == source.model) {
            let model = &source.model;
            problems.add(&source.at, format!("`{model}` is there twice in one slice"));
        }
    }
    let is_base = |source: &&SourceOf| method.sets_base_apart() && Some(&source.model) == base;
    let inputs = slice.sources.iter().filter(|source| !is_base(source)).count();
    if inputs < method.least || inputs > method.most {
        let beside = if method.base == Base::Required { " besides the base model" } else { "" };
        let needs = match (method.least, method.most) {
            (least, usize::MAX) => format!("at least {least}"),
            (least, _) => format!("exactly {least}"),
        };
        let problem = format!("{} takes {needs}{beside}, here are {inputs}", method.name);
        problems.add(&at, problem);
    }
    match (method.base, base) {
        (Base::Required, None) => problems.add("", format!("{} needs a `base_model`", method.name)),
        (Base::Required, Some(base)) if !slice.sources.iter().any(|s| s.model == *base) => {
            problems.add(&at, format!("the base model `{base}` must be one of them: with `slices` it has no layers of its own"));
        }
        (Base::Donor, Some(base))
            if slice.whole && slice.sources.iter().any(|s| s.model != *base) =>
        {
            let name = method.name;
            problems.add("base_model", format!("{name} takes one model alone: remove it"));
        }
        _ => {}
    }
    let shared = |name: &str| {
        config.parameters.has(name) || slice.parameters.has(name) || config.extension.sets(name)
    };
    for parameter in method.own.iter().filter(|parameter| parameter.required) {
        let lacks = |s: &&SourceOf| !is_base(s) && !s.parameters.has(parameter.name);
        for source in slice.sources.iter().filter(lacks).filter(|_| !shared(parameter.name)) {
            let (name, model) = (parameter.name, &source.model);
            let why = format!("`{model}` has no `{name}`, which {} needs", method.name);
            problems.add(&source.at, why);
        }
    }
    for parameter in method.shared.iter().filter(|p| p.required && !shared(p.name)) {
        problems.add("parameters", format!("{} needs `{}`", method.name, parameter.name));
    }
    if method.kind == Kind::TaskArithmetic {
        let places = slice.sources.iter().map(|s| (&s.parameters, below(&s.at, "parameters")));
        let shared = [
            (&slice.parameters, below(&slice.at, "parameters")),
            (&config.parameters, "parameters".to_owned()),
        ];
        for (parameters, at) in places.chain(shared) {
            if parameters.has("density") && !parameters.is_always("density", 1.0) {
                let what = "`density` has no effect with task_arithmetic, as in mergekit: every element is kept";
                problems.note(&below(&at, "density"), what);
            }
        }
    }
}
