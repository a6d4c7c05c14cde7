//! Reading a document strictly: every problem is written down with its place, and reading goes on.

use std::fmt::Display;

use serde_json::{Map, Value};

use crate::error::{nearest, printable};

/// What is wrong with a document, one line a problem: `models[1].parameters.weight: is text, expected a number`.
///
/// Beside them is what is right and has no effect: each with its place.
#[derive(Debug, Default)]
pub(super) struct Problems(pub(super) Vec<String>, Vec<(String, String)>);

impl Problems {
    pub(super) fn add(&mut self, at: &str, what: impl Display) {
        let place = if at.is_empty() { String::new() } else { format!("{}: ", printable(at)) };
        self.0.push(format!("{place}{what}"));
    }

    /// Something that is taken and has no effect.
    pub(super) fn note(&mut self, at: &str, what: impl Display) {
        self.1.push((what.to_string(), printable(at)));
    }

    /// The notes, those of one kind in one line.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        let mut kinds: Vec<(String, Vec<String>)> = Vec::new();
        for (what, place) in std::mem::take(&mut self.1) {
            match kinds.iter_mut().find(|known| known.0 == what) {
                Some((_, places)) if places.contains(&place) => {}
                Some((_, places)) => places.push(place),
                None => kinds.push((what, vec![place])),
            }
        }
        let line = |(what, places): (String, Vec<String>)| match places.as_slice() {
            [first, _, ..] => format!("{what} ({first} and {} more)", places.len() - 1),
            _ => format!("{what} ({})", places.concat()),
        };
        kinds.into_iter().map(line).collect()
    }

    /// Something mergekit knows and this program does not do.
    pub(super) fn unsupported(&mut self, at: &str, what: impl Display) {
        self.add(at, format!("{what} not supported yet"));
    }

    pub(super) fn wrong(&mut self, at: &str, found: &Value, expected: &str) {
        self.add(at, format!("is {}, expected {expected}", kind(found)));
    }

    /// A group of keys, each of them known.
    pub(super) fn map<'a>(
        &mut self,
        at: &str,
        value: &'a Value,
        known: &[&str],
    ) -> Option<&'a Map<String, Value>> {
        let Value::Object(map) = value else {
            self.wrong(if at.is_empty() { "the document" } else { at }, value, "a group of keys");
            return None;
        };
        for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
            self.unknown(&below(at, key), known, "key");
        }
        Some(map)
    }

    /// A name that is not one of the known ones.
    pub(super) fn unknown(&mut self, at: &str, known: &[&str], what: &str) {
        let word = at.rsplit('.').next().unwrap_or(at);
        self.add(at, format!("is not a known {what}{}", suggestion(word, known)));
    }

    pub(super) fn list<'a>(&mut self, at: &str, value: &'a Value) -> Option<&'a Vec<Value>> {
        let Value::Array(list) = value else {
            self.wrong(at, value, "a list");
            return None;
        };
        if list.is_empty() {
            self.add(at, "is empty");
        }
        Some(list)
    }

    pub(super) fn text<'a>(&mut self, at: &str, value: &'a Value) -> Option<&'a str> {
        let text = value.as_str();
        if text.is_none() {
            self.wrong(at, value, "text");
        }
        text
    }
}

/// `, did you mean ...?`, or which names there are.
pub(super) fn suggestion(word: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(near) => format!(", did you mean `{near}`?"),
        None if known.is_empty() => String::new(),
        None => format!(" (known: {})", known.join(", ")),
    }
}

/// The path of a key.
pub(super) fn below(at: &str, key: &str) -> String {
    if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") }
}

/// A value that is there and not null.
pub(super) fn given<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.get(key).filter(|value| !value.is_null())
}

/// A finite number, also one that is written as text.
pub(super) fn number(value: &Value) -> Option<f64> {
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
    number.filter(|number| number.is_finite())
}

/// What a value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a group of keys",
    }
}
