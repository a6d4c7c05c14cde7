//! Parameters of a merge: scalars, gradients over the layers of a slice, and filters by tensor name.

use std::collections::BTreeMap;

use serde_json::Value;

use super::methods::{Method, Parameter, is_parameter};
use super::read::{Problems, below, given, kind, number};

/// The parameters of one level: of a model, a slice or the whole merge.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Parameters(BTreeMap<String, Option<Setting>>);

/// What a parameter says, clause by clause; the first whose filter fits counts.
#[derive(Clone, Debug, PartialEq)]
struct Setting(Vec<Clause>);

#[derive(Clone, Debug, PartialEq)]
struct Clause {
    /// A part of the tensor's name; none fits every tensor.
    filter: Option<String>,
    /// One value, or several spread over the layers of a slice.
    values: Vec<Scalar>,
}

/// A value of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scalar {
    Number(f64),
    Flag(bool),
}

impl Scalar {
    /// As a number: true is 1.
    pub(super) fn number(self) -> f64 {
        match self {
            Self::Number(number) => number,
            Self::Flag(flag) => f64::from(u8::from(flag)),
        }
    }

    /// As a flag: every number but 0 is true.
    pub(super) fn flag(self) -> bool {
        self.number() != 0.0
    }
}

/// Which level parameters belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// Of one model: parameters of the merge as a whole mean nothing there.
    Model,
    /// Of a slice, or of everything.
    Shared,
    /// Of a rule about tensors, which mergekit has not: nothing there is without effect.
    Rule,
}

impl Level {
    /// Why mergekit pays no attention to a parameter here, if that is so.
    fn ignores(self, name: &str, method: &Method) -> Option<String> {
        let known = method.parameter(name).is_some();
        match self {
            Self::Rule => None,
            _ if !known && is_parameter(name) => {
                Some(format!("`{name}` has no effect with {}, as in mergekit", method.name))
            }
            Self::Model if known && !method.of_models(name) => Some(format!(
                "`{name}` has no effect under a model, as in mergekit: it is a parameter of the whole merge"
            )),
            _ => None,
        }
    }
}

impl Parameters {
    /// Reads a `parameters` group. Without a known method only the form of the values is checked.
    pub(super) fn read(
        problems: &mut Problems,
        at: &str,
        value: Option<&Value>,
        method: Option<&Method>,
        level: Level,
    ) -> Self {
        let mut read = BTreeMap::new();
        let Some(value) = value.filter(|value| !value.is_null()) else {
            return Self(read);
        };
        let Value::Object(map) = value else {
            problems.wrong(at, value, "a group of keys");
            return Self(read);
        };
        for (key, value) in map {
            let at = below(at, key);
            let Some(method) = method else {
                let _ = Setting::read(problems, &at, value, None);
                continue;
            };
            if let Some(why) = level.ignores(key, method) {
                problems.note(&at, why);
                continue;
            }
            let parameter = method.parameter(key);
            if parameter.is_none() {
                problems.unknown(&at, &method.names(), &format!("parameter of {}", method.name));
                continue;
            }
            // One that is there but wrong is not missing as well.
            read.insert(key.clone(), Setting::read(problems, &at, value, parameter));
        }
        Self(read)
    }

    /// These, and where they have nothing to say those of another level.
    pub(super) fn before(mut self, other: &Self) -> Self {
        for (name, setting) in &other.0 {
            let own = self.0.entry(name.clone()).or_insert_with(|| Some(Setting(Vec::new())));
            if let (Some(own), Some(setting)) = (own.as_mut(), setting) {
                own.0.extend(setting.0.iter().cloned());
            }
        }
        self
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether a parameter has this value wherever it has one.
    pub(super) fn is_always(&self, name: &str, value: f64) -> bool {
        #[expect(clippy::float_cmp, reason = "the very value is asked for")]
        let same = |scalar: &Scalar| scalar.number() == value;
        let setting = self.0.get(name).and_then(Option::as_ref);
        setting.is_none_or(|setting| setting.0.iter().all(|c| c.values.iter().all(same)))
    }

    /// The value for a tensor at `t`, from 0 at the first layer of a slice to 1 at the last.
    pub(super) fn at(&self, name: &str, tensor: &str, t: f64) -> Option<Scalar> {
        let clauses = &self.0.get(name)?.as_ref()?.0;
        let fits = |clause: &&Clause| match clause.filter.as_deref() {
            None | Some("*") => true,
            Some(part) => tensor.contains(part),
        };
        interpolate(&clauses.iter().find(fits)?.values, t)
    }
}

impl Setting {
    fn read(
        problems: &mut Problems,
        at: &str,
        value: &Value,
        parameter: Option<&Parameter>,
    ) -> Option<Self> {
        let clauses = match value {
            Value::Array(items) if items.iter().any(Value::is_object) => {
                let clause =
                    |(i, item)| Clause::read(problems, &format!("{at}[{i}]"), item, parameter);
                items.iter().enumerate().map(clause).collect::<Option<Vec<_>>>()?
            }
            other => vec![Clause::read(problems, at, other, parameter)?],
        };
        if let Some(dead) = clauses.iter().position(|c| c.filter.is_none())
            && dead + 1 < clauses.len()
        {
            problems.add(
                &format!("{at}[{}]", dead + 1),
                "is never used: the value before it has no filter",
            );
        }
        Some(Self(clauses))
    }
}

impl Clause {
    fn read(
        problems: &mut Problems,
        at: &str,
        value: &Value,
        parameter: Option<&Parameter>,
    ) -> Option<Self> {
        let Value::Object(_) = value else {
            return Some(Self { filter: None, values: values(problems, at, value, parameter)? });
        };
        let map = problems.map(at, value, &["value", "filter"])?;
        let filter = match given(map, "filter") {
            None => None,
            Some(filter) => Some(problems.text(&below(at, "filter"), filter)?.to_owned()),
        };
        let Some(value) = given(map, "value") else {
            problems.add(at, "has no `value`");
            return None;
        };
        Some(Self { filter, values: values(problems, &below(at, "value"), value, parameter)? })
    }
}

fn values(
    problems: &mut Problems,
    at: &str,
    value: &Value,
    parameter: Option<&Parameter>,
) -> Option<Vec<Scalar>> {
    match value {
        Value::Array(items) if items.is_empty() => {
            problems.add(at, "is an empty list");
            None
        }
        Value::Array(items) => {
            let one = |(i, item)| scalar(problems, &format!("{at}[{i}]"), item, parameter);
            items.iter().enumerate().map(one).collect()
        }
        other => Some(vec![scalar(problems, at, other, parameter)?]),
    }
}

fn scalar(
    problems: &mut Problems,
    at: &str,
    value: &Value,
    parameter: Option<&Parameter>,
) -> Option<Scalar> {
    let flag_wanted = parameter.is_some_and(|p| p.flag);
    let Some(scalar) = plain(value) else {
        let expected = if flag_wanted { "true or false" } else { "a number" };
        problems.add(at, format!("is {}, expected {expected}", kind(value)));
        return None;
    };
    match scalar {
        Scalar::Flag(_) if parameter.is_some() && !flag_wanted => {
            problems.add(at, "is true or false, expected a number");
            None
        }
        Scalar::Number(number) if flag_wanted && ![0.0, 1.0].contains(&number) => {
            problems.add(at, "is a number, expected true or false");
            None
        }
        Scalar::Number(number) => {
            if let Some(misfit) = parameter.and_then(|parameter| parameter.misfit(number)) {
                problems.add(at, misfit);
                return None;
            }
            Some(scalar)
        }
        Scalar::Flag(_) => Some(scalar),
    }
}

/// A number or a flag, also one that is written as text.
fn plain(value: &Value) -> Option<Scalar> {
    match value {
        Value::Bool(flag) => Some(Scalar::Flag(*flag)),
        Value::String(text) => match text.trim() {
            "true" | "True" | "TRUE" => Some(Scalar::Flag(true)),
            "false" | "False" | "FALSE" => Some(Scalar::Flag(false)),
            _ => number(value).map(Scalar::Number),
        },
        _ => number(value).map(Scalar::Number),
    }
}

/// The value at `t` of a list spread evenly over 0 to 1: numbers linearly, flags by the entry before.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "lists have few entries, and t is from 0 to 1"
)]
fn interpolate(values: &[Scalar], t: f64) -> Option<Scalar> {
    let place = t * (values.len().checked_sub(1)?) as f64;
    let before = place.floor() as usize;
    let first = *values.get(before)?;
    match (first, values.get(before + 1)) {
        (Scalar::Number(a), Some(Scalar::Number(b))) => {
            let part = place - place.floor();
            Some(Scalar::Number((1.0 - part) * a + part * b))
        }
        _ => Some(first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(values: &[f64], t: f64) -> f64 {
        let values: Vec<Scalar> = values.iter().map(|v| Scalar::Number(*v)).collect();
        interpolate(&values, t).unwrap().number()
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "exact values")]
    fn levels_follow_one_another() {
        let read = |text: &str| {
            let mut problems = Problems::default();
            let value: Value = serde_json::from_str(text).unwrap();
            let read = Parameters::read(&mut problems, "", Some(&value), None, Level::Shared);
            assert!(problems.0.is_empty());
            // Without a method nothing is kept: build from the clauses.
            assert_eq!(read, Parameters::default());
            let clauses = value["weight"].as_array().unwrap().iter();
            let clause = |item: &Value| Clause {
                filter: item["filter"].as_str().map(str::to_owned),
                values: vec![Scalar::Number(item["value"].as_f64().unwrap())],
            };
            let setting = Setting(clauses.map(clause).collect());
            Parameters([("weight".to_owned(), Some(setting))].into())
        };
        let slice = read(r#"{"weight": [{"filter": "mlp", "value": 1}]}"#);
        let module = read(r#"{"weight": [{"filter": "attn", "value": 2}, {"value": 3}]}"#);
        let both = slice.before(&module);
        let at = |tensor: &str| both.at("weight", tensor, 0.0).unwrap().number();
        assert_eq!([at("a.mlp"), at("a.attn"), at("norm")], [1.0, 2.0, 3.0]);
        let alone = Parameters::default().before(&module);
        assert_eq!(alone, module);
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "exact values")]
    fn gradients_are_linear_between_their_entries() {
        assert_eq!(gradient(&[0.0, 0.2, 1.0], 0.0), 0.0);
        assert_eq!(gradient(&[0.0, 0.2, 1.0], 0.25), 0.1);
        assert_eq!(gradient(&[0.0, 0.2, 1.0], 0.5), 0.2);
        assert_eq!(gradient(&[0.0, 0.2, 1.0], 1.0), 1.0);
        assert_eq!(gradient(&[3.0], 0.7), 3.0);
        let flags = [Scalar::Flag(true), Scalar::Flag(false)];
        assert_eq!(interpolate(&flags, 0.9), Some(Scalar::Flag(true)));
        assert_eq!(interpolate(&flags, 1.0), Some(Scalar::Flag(false)));
    }

    #[test]
    fn text_that_is_a_number_is_one() {
        let read = |text: &str| plain(&Value::from(text));
        assert_eq!(read("0.5"), Some(Scalar::Number(0.5)));
        assert_eq!(read(" 1e-2 "), Some(Scalar::Number(0.01)));
        assert_eq!(read("True"), Some(Scalar::Flag(true)));
        assert_eq!([read("nan"), read("heavy"), read("1 2"), read("")], [None; 4]);
    }
}
