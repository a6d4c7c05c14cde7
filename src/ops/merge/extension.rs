//! What this program has and mergekit has not, under the one key `elo_surgery`.
//!
//! ```yaml
//! elo_surgery:
//!   consensus: paper            # elect signs without weights
//!   trim: model                 # TIES keeps the largest of the whole model
//!   rescale: paper              # DARE divides by the probability
//!   missing_tensors: present    # what some models lack
//!   extra_tensors: drop         # what the result has no place for
//!   tensors:                    # by name and layer; the first that fits counts
//!   - {match: "*.mlp.*", layers: [0, 8], parameters: {density: 0.3}}
//!   - {regex: 'lm_head|embed', copy: base}
//! ```

use std::collections::BTreeMap;

use globset::{Glob, GlobMatcher};
use regex::Regex;
use serde_json::{Map, Value};

use super::config::layer_range;
use super::expression::{Expression, Place};
use super::importance::Source;
use super::methods::{Kind, Method, Variant};
use super::parameters::{Level, Parameters, Scalar};
use super::read::{Problems, below, given, suggestion};
use super::reference::{Reference, model};

/// The whole group.
#[derive(Clone, Debug, Default)]
pub(super) struct Extension {
    pub(super) variant: Variant,
    pub(super) missing: Missing,
    /// Tensors that the result has no place for are left out instead of refused.
    pub(super) drops_extra: bool,
    pub(super) rules: Vec<Rule>,
    /// Files of what models count for each tensor.
    pub(super) importance: Vec<Source>,
}

/// What becomes of a tensor that some models lack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Missing {
    /// An error.
    #[default]
    Refuse,
    /// It is the base model's.
    Base,
    /// It is made of those that have it.
    Present,
}

/// What is said of some tensors.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    globs: Vec<GlobMatcher>,
    regex: Option<Regex>,
    /// Layers of the result from 0, the end not included.
    layers: Option<(u64, u64)>,
    /// Only this model's parameters.
    model: Option<Reference>,
    parameters: Parameters,
    expressions: BTreeMap<String, Expression>,
    pub(super) copy: Option<Origin>,
    /// Its place in the document.
    pub(super) at: String,
}

/// Where a tensor is copied from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Base,
    Model(Reference),
}

const KEYS: &[&str] =
    &["consensus", "trim", "rescale", "missing_tensors", "extra_tensors", "tensors", "importance"];
const RULE: &[&str] = &["match", "regex", "layers", "model", "parameters", "expressions", "copy"];

impl Extension {
    pub(super) fn read(
        problems: &mut Problems,
        map: &Map<String, Value>,
        method: Option<&Method>,
    ) -> Self {
        let at = "elo_surgery";
        let mut read = Self::default();
        let Some(map) = given(map, at).and_then(|value| problems.map(at, value, KEYS)) else {
            return read;
        };
        let paper = |problems: &mut Problems, key: &str| {
            let known = ["mergekit", "paper"];
            let name = word(problems, &below(at, key), given(map, key)?, &known)?;
            Some(name == "paper")
        };
        let consensus = paper(problems, "consensus").unwrap_or(false);
        let rescale = paper(problems, "rescale").unwrap_or(false);
        let trim = given(map, "trim").and_then(|value| {
            Some(word(problems, &below(at, "trim"), value, &["tensor", "model"])? == "model")
        });
        let trim = trim.unwrap_or(false);
        read.variant = Variant { consensus, trim, rescale };
        if let Some(method) = method {
            if consensus && !method.kind.votes() {
                problems.add(&below(at, "consensus"), format!("{} takes no vote", method.name));
            }
            if trim && method.kind != Kind::Ties {
                problems.add(
                    &below(at, "trim"),
                    format!("{} trims nothing: it is for ties", method.name),
                );
            }
            if rescale && !matches!(method.kind, Kind::DareLinear | Kind::DareTies) {
                let why = format!("{} has no other rescaling: it is for DARE", method.name);
                problems.add(&below(at, "rescale"), why);
            }
        }
        if let Some(value) = given(map, "missing_tensors") {
            let known = ["refuse", "base", "present"];
            read.missing = match word(problems, &below(at, "missing_tensors"), value, &known) {
                Some("base") => Missing::Base,
                Some("present") => Missing::Present,
                _ => Missing::Refuse,
            };
        }
        if let Some(value) = given(map, "extra_tensors") {
            let known = ["refuse", "drop"];
            let found = word(problems, &below(at, "extra_tensors"), value, &known);
            read.drops_extra = found == Some("drop");
        }
        if let Some(value) = given(map, "tensors") {
            let at = below(at, "tensors");
            for (i, item) in problems.list(&at, value).into_iter().flatten().enumerate() {
                read.rules.extend(Rule::read(problems, format!("{at}[{i}]"), item, method));
            }
        }
        if let Some(value) = given(map, "importance") {
            let at = below(at, "importance");
            if let Some(method) = method.filter(|method| !method.of_models("weight")) {
                problems.add(&at, format!("{} has no weights", method.name));
            }
            for (i, item) in problems.list(&at, value).into_iter().flatten().enumerate() {
                read.importance.extend(importance(problems, format!("{at}[{i}]"), item));
            }
        }
        read
    }

    /// Whether some rule gives every tensor a parameter.
    pub(super) fn sets(&self, name: &str) -> bool {
        self.rules
            .iter()
            .any(|rule| rule.parameters.has(name) || rule.expressions.contains_key(name))
    }

    /// The rules that fit a tensor of the result, with their numbers.
    pub(super) fn of(&self, name: &str, layer: Option<u64>) -> Vec<(usize, &Rule)> {
        let rules = self.rules.iter().enumerate();
        rules.filter(|(_, rule)| rule.fits(name, layer)).collect()
    }
}

impl Rule {
    fn read(
        problems: &mut Problems,
        at: String,
        value: &Value,
        method: Option<&Method>,
    ) -> Option<Self> {
        let map = problems.map(&at, value, RULE)?;
        let globs = given(map, "match").map(|value| globs(problems, &below(&at, "match"), value));
        let regex = given(map, "regex").and_then(|value| {
            let at = below(&at, "regex");
            let text = problems.text(&at, value)?;
            let parsed = Regex::new(text);
            let told = |e: regex::Error| {
                let told = e.to_string();
                let last = told.lines().last().unwrap_or_default();
                let what = last.strip_prefix("error: ").unwrap_or(last);
                problems.add(&at, format!("is not a regular expression: {what}"));
            };
            parsed.map_err(told).ok()
        });
        let layers = given(map, "layers")
            .and_then(|value| layer_range(problems, &below(&at, "layers"), value));
        if globs.is_none() && given(map, "regex").is_none() && given(map, "layers").is_none() {
            problems.add(&at, "selects nothing: give `match`, `regex` or `layers`");
        }
        let only =
            given(map, "model").and_then(|value| model(problems, &below(&at, "model"), value));
        let copy = given(map, "copy").and_then(|value| match value.as_str() {
            Some("base") => Some(Origin::Base),
            _ => model(problems, &below(&at, "copy"), value).map(Origin::Model),
        });
        let (own, value) = (below(&at, "parameters"), map.get("parameters"));
        let parameters = Parameters::read(problems, &own, value, method, Level::Rule);
        if let (Some(_), Some(method)) = (&only, method) {
            let shared = method.shared.iter().map(|p| p.name);
            for name in shared.filter(|name| parameters.has(name)) {
                let why = format!(
                    "`{name}` is a parameter of the whole merge, not of a model: leave `model` out"
                );
                problems.add(&below(&own, name), why);
            }
        }
        let computed = below(&at, "expressions");
        let expressions = expressions(problems, &computed, map, method);
        let of_all = |name: &&String| only.is_some() && method.is_some_and(|m| !m.of_models(name));
        for name in expressions.keys().filter(of_all) {
            let why = format!(
                "`{name}` is a parameter of the whole merge, not of a model: leave `model` out"
            );
            problems.add(&below(&computed, name), why);
        }
        for name in expressions.keys().filter(|name| parameters.has(name)) {
            problems.add(&below(&own, name), "has an expression too: give one of them");
        }
        let sets = given(map, "parameters").is_some() || given(map, "expressions").is_some();
        match (sets, given(map, "copy").is_some()) {
            (true, true) => {
                problems.add(&at, "sets parameters of what is a `copy`: give one of them");
            }
            (false, false) => {
                problems.add(&at, "says nothing: give `parameters`, `expressions` or `copy`");
            }
            (false, true) if only.is_some() => {
                problems.add(&below(&at, "model"), "has no meaning beside `copy`");
            }
            _ => {}
        }
        let globs = globs.unwrap_or_default();
        Some(Self { globs, regex, layers, model: only, parameters, expressions, copy, at })
    }

    fn fits(&self, name: &str, layer: Option<u64>) -> bool {
        let within = |(from, to): (u64, u64)| layer.is_some_and(|l| (from..to).contains(&l));
        (self.globs.is_empty() || self.globs.iter().any(|glob| glob.is_match(name)))
            && self.regex.as_ref().is_none_or(|regex| regex.is_match(name))
            && self.layers.is_none_or(within)
    }

    /// A parameter of the merge, or of `model`.
    pub(super) fn parameter(
        &self,
        parameter: &str,
        tensor: &str,
        (t, place): (f64, Option<Place>),
        model: Option<&Reference>,
    ) -> Option<Scalar> {
        if self.model.is_some() && self.model.as_ref() != model {
            return None;
        }
        let computed = || Some(Scalar::Number(self.expressions.get(parameter)?.at(place?)));
        self.parameters.at(parameter, tensor, t).or_else(computed)
    }

    /// The model that it names, if it names one.
    pub(super) fn named(&self) -> Option<&Reference> {
        match &self.copy {
            Some(Origin::Model(model)) => Some(model),
            _ => self.model.as_ref(),
        }
    }
}

/// Expressions for parameters that are numbers.
fn expressions(
    problems: &mut Problems,
    at: &str,
    map: &Map<String, Value>,
    method: Option<&Method>,
) -> BTreeMap<String, Expression> {
    let mut read = BTreeMap::new();
    let Some(value) = given(map, "expressions") else { return read };
    let Value::Object(map) = value else {
        problems.wrong(at, value, "a group of keys");
        return read;
    };
    for (name, value) in map {
        let at = below(at, name);
        let parameter = method.and_then(|method| method.parameter(name));
        if let (Some(method), None) = (method, parameter) {
            problems.unknown(&at, &method.names(), &format!("parameter of {}", method.name));
        } else if parameter.is_some_and(|parameter| parameter.flag) {
            problems.add(&at, "is true or false, not computed");
        } else if let Some(text) = problems.text(&at, value) {
            match Expression::parse(text) {
                Ok(expression) => {
                    read.insert(name.clone(), expression);
                }
                Err(what) => problems.add(&at, what),
            }
        }
    }
    read
}

fn importance(problems: &mut Problems, at: String, value: &Value) -> Option<Source> {
    let map = problems.map(&at, value, &["model", "file"])?;
    let of = given(map, "model").and_then(|value| model(problems, &below(&at, "model"), value));
    let file = given(map, "file").and_then(|value| problems.text(&below(&at, "file"), value));
    for key in ["model", "file"].into_iter().filter(|key| given(map, key).is_none()) {
        problems.add(&at, format!("has no `{key}`"));
    }
    Some(Source { model: of?, file: file?.into(), at })
}

/// One glob or several.
fn globs(problems: &mut Problems, at: &str, value: &Value) -> Vec<GlobMatcher> {
    let one = |problems: &mut Problems, at: &str, value: &Value| {
        let text = problems.text(at, value)?;
        let parsed = Glob::new(text);
        let parsed = parsed.map_err(|e| problems.add(at, format!("is not a glob: {}", e.kind())));
        parsed.ok().map(|glob| glob.compile_matcher())
    };
    let Value::Array(items) = value else {
        return one(problems, at, value).into_iter().collect();
    };
    if items.is_empty() {
        problems.add(at, "is empty");
    }
    let items = items.iter().enumerate();
    items.filter_map(|(i, item)| one(problems, &format!("{at}[{i}]"), item)).collect()
}

/// One of some words.
fn word<'a>(
    problems: &mut Problems,
    at: &str,
    value: &'a Value,
    known: &[&str],
) -> Option<&'a str> {
    let text = problems.text(at, value)?;
    if known.contains(&text) {
        return Some(text);
    }
    problems.add(at, format!("`{text}` is not known{}", suggestion(text, known)));
    None
}
